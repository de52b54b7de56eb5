// Package router decides where a message goes and carries it there.
//
// It owns the lanes that batch messages into the send script, the ephemeral
// lane, this gateway's channels and the subscriptions to them, the feeds, and
// deliverMessage, which hands what arrives to local connections.
//
// It leaves to others who may send what (handler), which gateway holds whom
// (presence), and the socket itself (connection). It never forwards: what comes
// on a channel is for local connections only.
//
// Goroutines: Run owns one receiver and one deliverer for each group, and a
// watch over the lanes. A lane has one worker while it has work, or while Redis
// must be probed; questions of other gateways have up to 64, messages for everyone have
// one, and so has each trace. All are joined before Run returns.
//
// Locks: each lane has one mutex, and so have the queues of questions and of messages
// for everyone, the asks that wait and the traces. They are leaves, never held across a
// call to Redis, a callback or a channel send. Feeds have none: those of a group belong
// to its deliverer.
package router
