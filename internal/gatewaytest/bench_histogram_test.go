//go:build !race

package gatewaytest_test

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets a sixteenth wide, from a microsecond to hours.
type histogram struct{ buckets [16 * 34]uint64 }

func (h *histogram) add(d time.Duration) {
	h.buckets[min(bucketOf(uint64(max(d, 0)/time.Microsecond)), len(h.buckets)-1)]++
}

func bucketOf(us uint64) int {
	if us < 16 {
		return int(us)
	}
	power := bits.Len64(us) - 5 // of 2; us>>power is 16 to 31
	return 16*power + int(us>>power)
}

func (h *histogram) merge(other *histogram) {
	for i, n := range other.buckets {
		h.buckets[i] += n
	}
}

// quantile returns the middle of the bucket where the share q of all durations is reached.
func (h *histogram) quantile(q float64) time.Duration {
	var total, sum uint64
	for _, n := range h.buckets {
		total += n
	}
	for i, n := range h.buckets {
		if sum += n; n > 0 && float64(sum) >= q*float64(total) {
			if i < 32 {
				return time.Duration(i) * time.Microsecond
			}
			power := i/16 - 1
			return time.Duration((float64(i-16*power) + 0.5) * float64(uint64(1)<<power) * float64(time.Microsecond))
		}
	}
	return 0
}
