// Package hook tells the outside what happened: who connected and left, and why,
// to a webhook, a MySQL database, a Redis stream, a file of JSON lines.
//
// It owns the consumer groups on the events streams, the lease under which one
// gateway at a time carries the events of a group to a sink (lua/carry.lua), and
// the sinks. docs/events.md is its promise to whoever receives events.
//
// It leaves to presence that an event is written, in the step that makes the
// change it tells of, and to gateway what is configured.
//
// Goroutines: one for each sink, which alone speaks to Redis for it, and while a
// group has events to deliver one for that. Run joins them all, but for a write to a
// file that stands still. Nothing of a
// message's way to its receiver waits for any of them: they have a Redis client of
// their own, and hold one batch for each group and sink at most.
//
// Locks: gate.mu, file.mu, database.mu; leaves.
package hook
