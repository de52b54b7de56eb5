//go:build !secondpass

package gatewaytest

import (
	"flag"
	"os"
	"testing"

	"pgregory.net/rapid"
)

// modelChecks is how many runs each kind of Redis gets in `make test`. For more:
//
//	go test ./internal/gatewaytest -run TestGatewaysDoWhatTheProtocolSays -rapid.checks=500 -timeout 60m
const modelChecks = 6

// Clients come, go, send and ask at random, gateways are killed, Redis forgets or can't publish; every answer and everything that arrives is
// what docs/protocol.md says. A failure is told as the shortest run that shows it.
func TestGatewaysDoWhatTheProtocolSays(t *testing.T) {
	t.Parallel()
	fewerChecks(t, modelChecks)
	for _, kind := range Kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			c := newModelCluster(t, Shared(t, kind))
			rapid.Check(t, c.run)
			for _, g := range c.gateways {
				if err := g.check(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// fewerChecks has rapid make so many runs, until the end of the test, unless the command line or the environment says how many. What it says
// elsewhere, 100, is meant for functions.
func fewerChecks(t *testing.T, checks int) {
	given := os.Getenv("RAPID_CHECKS") != ""
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if given {
		return
	}
	f := flag.Lookup("rapid.checks")
	before := f.Value.String()
	if err := f.Value.Set(itoa(checks)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Value.Set(before); err != nil {
			t.Error(err)
		}
	})
}
