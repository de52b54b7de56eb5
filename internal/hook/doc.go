// Package hook is where a gateway speaks to the customer's backend. Hooks tells it what
// happened, who connected and left and why: by a webhook, a MySQL database, a Redis stream,
// a file of JSON lines. Decider asks it over HTTP who may register, join and send what.
//
// It owns the consumer groups on the events streams, the lease under which one
// gateway at a time carries the events of a group to a sink (lua/carry.lua), and
// the sinks; what a backend is asked, how its answer is read, and what counts as none.
// docs/events.md and docs/hooks.md are its promises to whoever writes a backend.
//
// It leaves to presence and router that an event is written, in the step that makes the
// change it tells of, to handler what a decision comes to, and to gateway what is
// configured.
//
// Goroutines: one for each sink, which alone speaks to Redis for it, and while a
// group has events to deliver one for that. Run joins them all, but for a write to a
// file that stands still. Nothing of a message's way to its receiver waits for any of
// them: they have a Redis client of their own, and hold one batch for each group and
// sink at most. A question is asked on the goroutine of who waits for the decision.
//
// Locks: gate.mu, breaker.mu, file.mu, database.mu; leaves.
package hook
