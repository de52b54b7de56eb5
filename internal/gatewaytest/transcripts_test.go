//go:build !secondpass

package gatewaytest

import "testing"

func TestTranscripts(t *testing.T) {
	t.Parallel()
	Transcripts(t, "testdata/transcripts/*.txt")
}
