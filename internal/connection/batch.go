package connection

// Batch appends to many connections and flushes each that it touched once. It belongs to one goroutine, and is reused: after Flush it is
// empty. The zero value is ready.
//
// A connection remembers in touched which Batch has it in its list, so that a second frame for it adds no second entry. The mark belongs
// to the Batch that set it; nobody relies on another goroutine's Flush. With batches A and B on one connection c:
//
//   - touched == A implies that c is in A's list: only A stores A there, and its Flush takes the mark back with the entry.
//   - A appends, B appends, A appends: the marks go A, B, A, and c is in A's list twice. A's second flush of it finds nothing and costs a
//     mutex, no system call.
//   - A flushes between B's append and B's mark: A's flush carries B's frame; B's mark then finds nil, B flushes c in vain.
//   - A's flush takes the pending frames, then B appends: B's mark is set after its append and is B's own, so B's Flush comes after it.
//   - A flushes while B's flush is writing: A's Flush leaves a note under the outbox's mutex (again), and B's goroutine goes on with
//     what is pending. It reads the note under the same mutex before it ceases to be the writer, so the note is never missed.
type Batch struct {
	touched []*Connection
}

// Append queues one text frame on c, as Connection.Append does.
func (b *Batch) Append(c *Connection, payload []byte) bool {
	if !c.Append(payload) {
		return false
	}
	b.touch(c)
	return true
}

// AppendFrame queues a message with its frame header on c, as Connection.AppendFrame does.
func (b *Batch) AppendFrame(c *Connection, ws []byte) bool {
	if !c.AppendFrame(ws) {
		return false
	}
	b.touch(c)
	return true
}

func (b *Batch) touch(c *Connection) {
	if c.touched.Load() != b {
		c.touched.Store(b)
		b.touched = append(b.touched, c)
	}
}

// Len is how many flushes Flush will do.
func (b *Batch) Len() int { return len(b.touched) }

// Flush flushes every connection that was appended to since the last Flush.
func (b *Batch) Flush() {
	for i, c := range b.touched {
		c.touched.CompareAndSwap(b, nil)
		c.Flush()
		b.touched[i] = nil
	}
	b.touched = b.touched[:0]
}
