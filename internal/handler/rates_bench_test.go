//go:build !race

package handler

import (
	"testing"

	"chatgate/internal/auth"
	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// newPaced is a session that only counts.
func newPaced(limits Limits) *session {
	h := &Handler{cfg: Config{MaxFrameBytes: 64 << 10}}
	h.Reload(limits)
	return &session{handler: h, conn: new(connection.Connection), token: &auth.Identity{}}
}

const never = 1 << 30 // a rate that nobody reaches

// What a message costs to be counted: nothing is limited; messages are; and frames and bytes too.
func BenchmarkPace(b *testing.B) {
	for _, tc := range []struct {
		name   string
		limits Limits
	}{
		{"no limits", Limits{}},
		{"messages", Limits{MessageRate: never}},
		{"messages, frames and bytes", Limits{MessageRate: never, FrameRate: never, ByteRate: never}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			s := newPaced(tc.limits)
			var f protocol.Frame
			b.ReportAllocs()
			for b.Loop() {
				if !s.pace(connection.Came{Frames: 1, Bytes: 150}, nil) || !s.allow(&f, 1) {
					b.Fatal("refused")
				}
			}
		})
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	s := newPaced(Limits{MessageRate: never, FrameRate: never, ByteRate: never})
	var f protocol.Frame
	if n := testing.AllocsPerRun(100, func() {
		if !s.pace(connection.Came{Frames: 1, Bytes: 150}, nil) || !s.allow(&f, 1) {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations for each message", n)
	}
}
