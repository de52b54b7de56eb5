//go:build !race

package protocol

import (
	"strings"
	"testing"
)

// Every message that arrives passes here once for each gateway: nothing of it may be copied. The race detector would count
// allocations of its own.
func TestReadingRecordsDoesNotAllocate(t *testing.T) {
	records := make([]Record, 64)
	for i := range records {
		records[i] = Record{Address: "u:bob", Epoch: "9fK2mQx7aZ", Offset: uint64(i + 1), Frame: strings.Repeat("x", 150)}
	}
	payload := messages(42, records...)
	if n := testing.AllocsPerRun(100, func() {
		_, body, _ := OpenEnvelope(payload)
		_, r, _ := OpenMessages(body)
		read := 0
		var rec Record
		for {
			ok, err := r.Next(&rec)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			read++
		}
		if read != len(records) {
			t.Fatalf("read %d", read)
		}
	}); n != 0 {
		t.Errorf("reading 64 records allocates %.1f times", n)
	}
	dst, frame := make([]byte, 0, 4096), []byte(records[0].Frame)
	if n := testing.AllocsPerRun(100, func() {
		dst = AppendEphemeralRecord(AppendEphemeralHeader(dst[:0]), "u:bob", frame)
	}); n != 0 {
		t.Errorf("writing an ephemeral envelope allocates %.1f times", n)
	}
}
