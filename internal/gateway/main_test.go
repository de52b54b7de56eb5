package gateway

import (
	"testing"

	"chatgate/internal/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }
