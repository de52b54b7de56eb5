//go:build !race

package gatewaytest

// raceEnabled says whether the tests run with the race detector; the gateways they start then do, too.
const raceEnabled = false
