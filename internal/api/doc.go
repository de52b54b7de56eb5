// Package api is the server edge: what a customer's backend asks and orders over HTTP.
//
// It owns the table of operations, from which routing, the OpenAPI document and the
// tables of docs/api.md come; the keys and their scopes; how a request is read and which
// problem it is answered with; and Commands, which has the same operations done for who
// puts them into a stream of Redis.
//
// It leaves to others all that an operation is about: sending (router), who is where
// (presence), logs (history), tokens (auth); and what a problem looks like (problem). It
// listens nowhere by itself: package gateway puts it on the internal listener.
//
// Goroutines: a call runs on that of its request, and what it has sent is answered from
// goroutines of the router. Commands has one for each command in hand, which its Run joins.
//
// Locks: calls has one mutex, a leaf.
package api
