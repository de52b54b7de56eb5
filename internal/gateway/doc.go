// Package gateway is the whole assembled: configuration, the connections to
// Redis, the listeners, health, statistics, drain, and the cluster of `dev`.
//
// It owns the order in which things start and stop. It leaves everything they do
// to the packages it wires.
//
// Goroutines: Run starts the registry, the router, the sweep and the two HTTP
// servers, and joins them all before it returns. The Balancer of `dev` has two for
// each connection it carries, joined by its own Run.
//
// Locks: the Balancer's, a leaf over its set of open connections.
package gateway
