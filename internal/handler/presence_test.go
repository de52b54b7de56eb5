//go:build !secondpass

package handler

import (
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

// Redis was emptied. Until everyone who is there had the time to register again, nobody who isn't found is said to be offline.
func TestPresenceIsUnknownOfWhoMayBeForgotten(t *testing.T) {
	t.Parallel()
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	g := newGateway(t, r, func(s *settings) { s.registry.Quiet = 3 * time.Second })
	alice := g.connect("alice")
	state := func(user string) string {
		states, err := alice.Presence(user)
		if err != nil {
			t.Fatal(err)
		}
		return states[user].State
	}
	// On a busy machine a pulse may be late, and then nobody is sure for a while.
	eventually(t, "who was never here is offline", func() bool { return state("nobody") == "offline" })
	if err := r.FlushAll(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody is said to be offline", func() bool { return state("nobody") == "unknown" })
	eventually(t, "alice is found again", func() bool { return state("alice") == "online" })
	eventually(t, "who was never here is offline again", func() bool { return state("nobody") == "offline" })
}
