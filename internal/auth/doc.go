// Package auth turns a token into an identity, and knows which tokens were
// revoked.
//
// It owns the verification of JSON Web Tokens (RFC 7519, by the rules of RFC
// 8725), the keys they are verified with, from files and from key sets, what
// their claims allow, and the list of revocations in Redis and its copy here.
//
// It leaves to others when a token is asked for, and what is done with a
// connection whose token ran out or was revoked (handler).
//
// Goroutines: one for each key set, and one that reads the revocations; Run of
// Verifier and of Revocations start and join them. Verify fetches nothing itself.
//
// Locks: that of a key set's schedule and that of the revocations held here, both
// leaves.
package auth
