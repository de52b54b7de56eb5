//go:build !race

package gatewaytest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// An enemy is one way to misuse a connection. It gets one that is open, and need not close it.
type enemy func(r *Raw, g *Gateway, rnd *rand.Rand)

// noise is bytes of any kind.
func noise(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// name is one of few users, so that enemies meet each other.
func name(rnd *rand.Rand) string { return fmt.Sprintf("enemy%d", rnd.IntN(200)) }

// says is a frame with a line of JSON.
func says(format string, args ...any) []byte { return RawFrame(0x81, fmt.Sprintf(format, args...)) }

var enemies = map[string]enemy{
	"noise instead of HTTP": func(r *Raw, _ *Gateway, rnd *rand.Rand) { _, _ = r.Write(noise(rnd, 1+rnd.IntN(2000))) },
	"requests nobody waits for": func(r *Raw, g *Gateway, _ *rand.Rand) {
		_, _ = r.Write([]byte(strings.Repeat("GET /app.js HTTP/1.1\r\nHost: "+g.Addr+"\r\n\r\n", 50)))
	},
	"a handshake and goodbye": func(r *Raw, g *Gateway, _ *rand.Rand) { _, _ = r.Write([]byte(Handshake(g.Addr))) },
	"noise behind the handshake": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		if r.Upgrade(g.Addr, name(rnd)) == nil {
			_, _ = r.Write(noise(rnd, 1+rnd.IntN(5000)))
		}
	},
	"frames of noise": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		if r.Upgrade(g.Addr, name(rnd)) != nil {
			return
		}
		for range rnd.IntN(20) {
			_, _ = r.Write(RawFrame(byte(rnd.Uint32()), string(noise(rnd, rnd.IntN(300)))))
		}
	},
	"a good frame, bent": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		if r.Upgrade(g.Addr, name(rnd)) != nil {
			return
		}
		for range 20 {
			text := []byte(`{"type":"message","id":"m","to":"enemy1","content":{"a":[1,"\u00e9"]},"copy":true,"ephemeral":false}`)
			text[rnd.IntN(len(text))] = byte(0x20 + rnd.IntN(0x5F))
			_, _ = r.Write(RawFrame(0x81, string(text)))
		}
	},
	"half a frame": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		if r.Upgrade(g.Addr, name(rnd)) == nil {
			frame := says(`{"type":"heartbeat","x":%q}`, strings.Repeat("x", 60_000))
			_, _ = r.Write(frame[:1+rnd.IntN(len(frame)-1)])
		}
	},
	"a hundred rooms from nowhere, and gone": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		rooms := make([]string, 100)
		for i := range rooms {
			rooms[i] = fmt.Sprintf(`"room%d":{"epoch":"foreign","offset":%d}`, rnd.IntN(300), rnd.Uint32())
		}
		if _, err := r.Write([]byte(Handshake(g.Addr))); err == nil {
			_, _ = r.Read(make([]byte, 1))
			_, _ = r.Write(says(`{"type":"register","userId":%q,"deviceId":"d","resume":{"epoch":"foreign","offset":9},"rooms":{%s}}`, name(rnd), strings.Join(rooms, ",")))
		}
	},
	"in and out of a room": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		if r.Upgrade(g.Addr, name(rnd)) != nil {
			return
		}
		for range 20 {
			_, _ = r.Write(says(`{"type":"join","room":"room1","resume":{"offset":%d}}`, rnd.IntN(10)))
			_, _ = r.Write(says(`{"type":"message","room":"room1","content":1}`))
			_, _ = r.Write(says(`{"type":"leave","room":"room1"}`))
		}
	},
	"a thousand watched who don't exist": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		users := make([]string, 1000)
		for i := range users {
			users[i] = fmt.Sprintf("%q", fmt.Sprint("made up ", rnd.IntN(5000)))
		}
		if r.Upgrade(g.Addr, name(rnd)) == nil {
			_, _ = r.Write(says(`{"type":"watch","users":[%s]}`, strings.Join(users, ",")))
		}
	},
	"pings without reading": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		if r.Upgrade(g.Addr, name(rnd)) == nil {
			for range 50 {
				_, _ = r.Write(RawFrame(0x89, strings.Repeat("x", 125)))
			}
		}
	},
	"messages to itself without reading": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		self := name(rnd)
		if r.Upgrade(g.Addr, self) == nil {
			for range 20 {
				_, _ = r.Write(says(`{"type":"message","to":%q,"content":%q}`, self, strings.Repeat("x", 16<<10)))
			}
		}
	},
	"the same device everywhere": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		if _, err := r.Write([]byte(Handshake(g.Addr))); err == nil {
			_, _ = r.Read(make([]byte, 1))
			_, _ = r.Write(says(`{"type":"register","userId":"enemy1","deviceId":"d","meta":{"n":%d}}`, rnd.Uint32()))
		}
	},
	"a close that says too much": func(r *Raw, g *Gateway, rnd *rand.Rand) {
		if r.Upgrade(g.Addr, name(rnd)) == nil {
			_, _ = r.Write(RawFrame(0x88, string(binary.BigEndian.AppendUint16(nil, uint16(rnd.Uint32())))+string(noise(rnd, rnd.IntN(50)))))
			_, _ = r.Write(says(`{"type":"heartbeat"}`))
		}
	},
}

// Thousands come with all kinds of malice and leave in all kinds of ways: reset, half-closed, or by staying until they are cut. When the last
// is gone nothing is left of them: no connection, no goroutine, no memory.
func TestFaultHostileConnectionsLeaveNothing(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, StartRedis(t), Options{Flags: append([]string{"--limits.new-addresses=0", "--heartbeat.ping-after=4s", "--heartbeat.pong-wait=2s"}, unhurried...)})
	chat := talkOn(t, Connect(t, g.WS(), "alice"), Connect(t, g.WS(), "bob"))
	figure := func(name string) float64 {
		if strings.HasPrefix(name, "go_memstats") {
			if _, _, err := g.GetInternal("/debug/pprof/heap?gc=1"); err != nil {
				t.Error(err)
			}
		}
		n, err := g.metric(name)
		if err != nil {
			t.Error(err)
		}
		return n
	}
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	names := make([]string, 0, len(enemies))
	for name := range enemies {
		names = append(names, name)
	}
	// The first of them leave behind what is made once: buffers, goroutines of pools, logs in Redis.
	attack := func(n int) {
		var all sync.WaitGroup
		const abreast = 32
		for i := range abreast {
			rnd := rand.New(rand.NewPCG(seed, uint64(n*abreast+i)))
			all.Go(func() {
				for range n / abreast {
					r, err := DialRaw(g.Addr, 4096)
					if err != nil {
						t.Error(err)
						return
					}
					_ = r.SetDeadline(time.Now().Add(Deadline))
					enemies[names[rnd.IntN(len(names))]](r, g, rnd)
					tcp := r.Conn.(*net.TCPConn)
					switch rnd.IntN(20) {
					case 0: // stays until it is cut
						all.Go(func() {
							_, _ = r.Ended(time.Minute)
							r.Close()
						})
						continue
					case 1, 2, 3:
						_ = tcp.CloseWrite()
						_, _ = r.Ended(Deadline)
					case 4, 5, 6:
						r.Close()
						continue
					}
					_ = tcp.SetLinger(0)
					r.Close()
				}
			})
		}
		all.Wait()
		wantWithin(t, 12*Deadline, func() bool { return figure("gateway_raw_connections") == 0 && figure("gateway_connections") == 2 })
	}
	attack(320)
	goroutines, heap := figure("go_goroutines"), figure("go_memstats_heap_alloc_bytes")
	rss, err := g.RSS()
	if err != nil {
		t.Fatal(err)
	}
	many := scaled(1_000, 10_000)
	began := time.Now()
	attack(many)
	took := time.Since(began)
	// A few more or less: whoever asks for these figures has a connection, too.
	if err := Poll(4*Deadline, func() error {
		if now := figure("go_goroutines"); now > goroutines+10 {
			return fmt.Errorf("%v goroutines, %v before (seed %d)", now, goroutines, seed)
		}
		if now := figure("go_memstats_heap_alloc_bytes"); now > heap+8<<20 {
			return fmt.Errorf("%v MB of heap, %v before (seed %d)", int(now)>>20, int(heap)>>20, seed)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	after, err := g.RSS()
	if err != nil {
		t.Fatal(err)
	}
	row(t, "%d hostile connections of %d kinds within %v: %v goroutines, %v before; heap %.1f MB, %.1f before; RSS %d MB, %d before; %s", many, len(enemies),
		took.Round(10*time.Millisecond), figure("go_goroutines"), goroutines, figure("go_memstats_heap_alloc_bytes")/(1<<20), heap/(1<<20), after>>20, rss>>20, wantUnharmed(t, chat))
}
