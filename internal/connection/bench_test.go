package connection

import (
	"strconv"
	"strings"
	"testing"
)

// BenchmarkAppendFlush is one flush of n frames of 100 bytes to a client that reads on the same machine, whose work is in the figure.
func BenchmarkAppendFlush(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			g := newGate(b, func(cfg *Config) { cfg.OutboxBytes, cfg.OutboxFrames = 0, 0 })
			c, r := g.rawDial(0)
			drainClient(r)
			frame := append(AppendTextHeader(nil, 100), strings.Repeat("x", 100)...)
			b.ReportAllocs()
			for b.Loop() {
				for range n {
					c.AppendFrame(frame)
				}
				c.Flush()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/frame")
		})
	}
}
