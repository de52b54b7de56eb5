package api

import (
	"flag"
	"testing"

	"chatgate/internal/gatewaytest"
)

var update = flag.Bool("update", false, "rewrite generated documents and golden files")

func TestMain(m *testing.M) { gatewaytest.Main(m) }
