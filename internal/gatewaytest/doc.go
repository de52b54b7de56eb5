// Package gatewaytest starts what tests of a chat cluster need: real gateways, real Redis servers of every kind, load
// balancers, scripted clients, and transcripts that tell a scenario line by line.
//
// What it owns: the processes it starts. Each has its own directory and ports, its log is printed when the test that
// started it fails, and it can't outlive the test binary (Pdeathsig). A server that many tests use one after the other
// (Shared) belongs to the test binary and is stopped by Main.
//
// What it leaves to others: it imports no other package of Chatgate. It knows a gateway only by its command line, its HTTP
// and its wire, so that any package's tests may import it, and so that a mistake in package protocol can't hide itself.
//
// Its goroutines: one for each process, which starts it and waits for its end; one reader for each Client; one clock for
// each embedded Redis. All end at the cleanup of their test, or in Main for what is shared. Main checks that none is left.
//
// Its locks: Client.mu guards what a client has received, Client.writeMu its writing side; shared.mu guards which shared
// servers are free. None is held while waiting for another.
//
// A server that is missing fails the test, unless the environment variable CHATGATE_SKIP_SERVERS names it (Need).
package gatewaytest
