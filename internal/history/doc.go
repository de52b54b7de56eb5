// Package history reads the durable ordered log of an address, and keeps how far
// each device of a user has it.
//
// It owns reading (pages up and down, heads of many logs), what a position that a
// client gives is worth, and the cursors of devices.
//
// It leaves to others the writing of the log, which is one atomic step with its
// delivery (router), and what is done with what was read (router, handler).
//
// Goroutines: none. Locks: none. All methods may be called from any goroutine.
package history
