// Package api is the server edge: what a customer's backend asks and orders over HTTP.
//
// It owns the table of operations, from which routing, the OpenAPI document and the
// pages of docs/api.md come; the keys and their scopes; how a request is read and what
// a problem looks like.
//
// It leaves to others all that an operation is about: sending (router), who is where
// (presence), logs (history), tokens (auth). It listens nowhere by itself: package
// gateway puts it on the internal listener.
//
// Goroutines: none of its own. A call runs on that of its request, and what it has sent
// is answered from goroutines of the router. Locks: calls has one mutex, a leaf.
package api
