//go:build !secondpass

package gatewaytest

import "testing"

func TestTranscripts(t *testing.T) { Transcripts(t, "testdata/transcripts/*.txt") }
