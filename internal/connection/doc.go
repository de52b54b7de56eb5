// Package connection is one WebSocket (Connection) and this gateway's indexes of them (Manager).
//
// # What it owns
//
// The socket from the upgrade to its end: framing of what goes out, the bounded outbox and the coalesced writes, pings, the rules of
// silence and age, the closing handshake, the values bound to a connection, its hooks, and the one typed Cause for which it ended. The
// Manager owns the two indexes, by connection and by user, and the sweep that enforces every time limit.
//
// # What it leaves to others
//
// What a frame means, who may register, rate limits and presence (package handler), and which connections get a message (package
// router). It never decodes a frame.
//
// # Its goroutines
//
// A connection at rest has one: the reader, which is whoever called Run. It only waits, on a stack that never grows; what has come is
// read and handled on a stack that is lent for it (see stack), and the two are one goroutine to everybody else. A writer goroutine exists only while the socket takes no more
// bytes: it is started by the Flush that found out, ends when the outbox is empty, and is joined by Run. A hook goroutine exists only
// while start or stop hooks run, and is joined by Manager.Close. Manager.Run is the sweep; it is the caller's goroutine. There is no
// timer for each connection. What calls Run must itself have little on its stack.
//
// # Its locks
//
// Connection.mu guards the outbox, Manager.mu the writing of the indexes, carried.mu the bound values, stacks.mu those to be lent. Each is a leaf: no lock is held
// while another is taken, nor across a system call, a channel operation that could wait, or a callback. Looking up a user or a
// connection takes no lock.
//
// A connection's life, as its caller writes it:
//
//	c, err := connection.Upgrade(w, r, &upgrader, id, &cfg)
//	// on error the reply has been written; otherwise
//	if err := manager.Add(c); err != nil {
//		c.Close(connection.Cause{Kind: connection.KindDraining})
//	}
//	go serve(c) // and the HTTP handler returns, which frees what net/http held
//
//	func serve(c *connection.Connection) {
//		defer manager.Remove(c)
//		cause := c.Run(handle)
//		...
//	}
package connection
