package router

import (
	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// sendBoth stores m, and then the copy of it that its sender keeps, each by its own script in its own group; m.Done is called after
// both. The copy comes second: a message that was refused leaves none. A gateway that dies between the two has acknowledged
// nothing, and the repeat finds the message stored and stores the copy.
func (r *Router) sendBoth(out *connection.Batch, m *Message) {
	done, own := m.Done, m.Copy
	own.hashCopy(m.To)
	own.Done = func(out *connection.Batch, own *Message) {
		if e := own.Result.Err; e != nil {
			m.failCopy(e)
		}
		done(out, m)
	}
	m.Done = func(out *connection.Batch, m *Message) {
		if m.Result.Err != nil {
			done(out, m)
			return
		}
		r.send(out, own)
	}
	r.send(out, m)
}

// failCopy answers a message whose copy failed. The message itself is stored, so what would be certainly not stored for the copy
// alone is not known for both: the sender repeats, and both are there once.
func (m *Message) failCopy(e *protocol.ReplyError) {
	e.ID = string(m.ID)
	if e.Code != protocol.CodeConflict {
		e.Code, e.Message = protocol.CodeUnknown, "stored, but not yet the copy: repeat with the same id"
	}
	m.Result = Result{Err: e}
}
