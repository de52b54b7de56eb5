package connection

import (
	"fmt"
	"time"
)

// Config is what the connections of one Manager share. It is not changed after the first connection was made with it.
type Config struct {
	MaxFrameBytes int64 // a longer message from the client ends the connection (1009); 0: no limit
	// Compression lets clients compress what they send (RFC 7692), each message by itself. Inflated it is held to MaxFrameBytes all the same.
	// What is sent to them is not compressed: a frame is built once for all its receivers, and small.
	Compression  bool
	OutboxBytes  int // bytes the client has not taken yet; more ends the connection as a slow consumer; 0: no limit
	OutboxFrames int // the same, counted in frames; 0: no limit
	InFlight     int // messages handed on and not yet answered; the reader waits above it; 0: no limit

	WriteTimeout    time.Duration // for a piece of 16 KB to be taken by a socket that was full; 0: no limit
	PingAfter       time.Duration // a ping goes out when no byte came for this long; 0: no pings
	PongWait        time.Duration // and any byte must come within this; 0: not checked
	SilenceTimeout  time.Duration // a text frame must come within this; 0: not checked
	MessageTimeout  time.Duration // a message must be complete this long after its beginning; 0: not checked
	RegisterTimeout time.Duration // Identify must be called within this; 0: not checked
	MaxAge          time.Duration // a connection lives no longer; 0: as long as it likes
	CloseWait       time.Duration // for the client's close frame after ours; 0: the socket is closed at once

	// OnStart hooks run, in order, once a connection was added to a Manager; OnStop hooks once it ended, always after its OnStart hooks.
	// They run on a goroutine of their own, never on the read path. Values bound to the connection can still be read in OnStop.
	OnStart []func(*Connection)
	OnStop  []func(*Connection, Cause)

	// Now is the clock of every rule above but WriteTimeout and CloseWait, which are the socket's. nil: the monotonic clock.
	Now func() time.Time
	// Wall is the clock that ExpireAt is held against. nil: Now, or the wall clock.
	Wall func() time.Time
}

// DefaultConfig has the figures of docs/protocol.md and docs/configuration.md.
func DefaultConfig() Config {
	return Config{
		MaxFrameBytes:   64 << 10,
		OutboxBytes:     256 << 10,
		OutboxFrames:    1024,
		InFlight:        64,
		WriteTimeout:    5 * time.Second,
		PingAfter:       20 * time.Second,
		PongWait:        10 * time.Second,
		SilenceTimeout:  90 * time.Second,
		MessageTimeout:  10 * time.Second,
		RegisterTimeout: 10 * time.Second,
		CloseWait:       time.Second,
	}
}

// Validate names the first field that makes no sense.
func (cfg *Config) Validate() error {
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"MaxFrameBytes", cfg.MaxFrameBytes},
		{"OutboxBytes", int64(cfg.OutboxBytes)},
		{"OutboxFrames", int64(cfg.OutboxFrames)},
		{"InFlight", int64(cfg.InFlight)},
		{"WriteTimeout", int64(cfg.WriteTimeout)},
		{"PingAfter", int64(cfg.PingAfter)},
		{"PongWait", int64(cfg.PongWait)},
		{"SilenceTimeout", int64(cfg.SilenceTimeout)},
		{"MessageTimeout", int64(cfg.MessageTimeout)},
		{"RegisterTimeout", int64(cfg.RegisterTimeout)},
		{"MaxAge", int64(cfg.MaxAge)},
		{"CloseWait", int64(cfg.CloseWait)},
	} {
		if f.value < 0 {
			return fmt.Errorf("%s: must not be negative", f.name)
		}
	}
	if cfg.OutboxBytes > 0 && int64(cfg.OutboxBytes) < cfg.MaxFrameBytes {
		return fmt.Errorf("OutboxBytes: %d could not hold one frame of MaxFrameBytes, %d", cfg.OutboxBytes, cfg.MaxFrameBytes)
	}
	return nil
}

// origin is the zero of instants. It lies before the start of the process, so that 0 can mean "never".
var origin = time.Now().Add(-time.Hour)

// An instant is a moment in nanoseconds after origin, read from the monotonic clock: a step of the wall clock must not end connections.
// Eight bytes where a time.Time takes 24.
type instant = int64

func instantOf(t time.Time) instant { return int64(t.Sub(origin)) }

func timeOf(at instant) time.Time { return origin.Add(time.Duration(at)) }

// wall is the time in ms since 1970.
func (cfg *Config) wall() int64 {
	switch {
	case cfg.Wall != nil:
		return cfg.Wall().UnixMilli()
	case cfg.Now != nil:
		return cfg.Now().UnixMilli()
	}
	return time.Now().UnixMilli()
}

func (cfg *Config) now() instant {
	if cfg.Now != nil {
		return instantOf(cfg.Now())
	}
	return int64(time.Since(origin))
}
