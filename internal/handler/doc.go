// Package handler is the client edge: it admits a WebSocket, runs its session,
// and answers its frames.
//
// It owns admission (rates, limits, origins, the client's address), the session
// of each connection, what each frame means, and the rules a client must keep.
//
// It leaves to others the bytes (protocol), the socket and its clocks
// (connection), whose a token is (auth), who is where (presence) and how a message
// travels (router).
//
// Goroutines: one for each connection, which is its reader and its life; Handler
// counts them and Wait joins them. Answers to messages come from the router's
// goroutines.
//
// Locks: those of admission, of the tables of buckets and of who registers, all leaves. A session has none: its fields
// belong to its reader.
package handler
