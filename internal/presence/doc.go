// Package presence is the registry: which gateway holds which connection of a
// user, and which gateways are alive.
//
// It owns the registry's keys and every script that writes them: register,
// refresh, remove, kick, hold with the rooms and who is in them, the pulse with its
// leases, reaping, and the end of the grace period after which a user is offline.
//
// It leaves to others the sockets (connection), the messages (router), and what
// a client is told (handler).
//
// Goroutines: Run owns the pulse and the refresh window, and joins what it
// started. Beside the pulse, one goroutine for each group ends graces, reaps dead
// gateways and takes out ghosts, and another compares the members of rooms, while
// there is reason to. A batch of registrations, removals or holds has one worker
// for each group while there is work; it ends when its queue is empty.
//
// Locks: each queue has one mutex, a leaf, never held across a call to Redis.
// What the pulses saw is published as immutable values through atomics.
package presence
