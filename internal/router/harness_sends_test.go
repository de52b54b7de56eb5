package router

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// sent is a message on its way.
type sent struct {
	*Message
	t       *testing.T
	at      time.Time
	answers atomic.Int32
	done    chan struct{} // closed with the first answer

	// Written before done is closed.
	result Result
	took   time.Duration
}

var ids atomic.Uint64

func newID(prefix string) string { return prefix + strconv.FormatUint(ids.Add(1), 10) }

// make prepares a message.
func (g *gateway) message(from, to protocol.UserID, id, content string) *sent {
	s := &sent{t: g.t, done: make(chan struct{})}
	s.Message = &Message{
		To: protocol.UserAddress(to), From: from, ID: []byte(id), Content: []byte(content), Ts: time.Now().UnixMilli(), HasID: true,
	}
	s.Frame = protocol.AppendMessageHead(nil, &protocol.MessageHead{ID: s.ID, From: from, To: []byte(to), Content: s.Content, Ts: s.Ts})
	s.Origin = protocol.AppendMessageOrigin(nil, &protocol.MessageOrigin{ID: s.ID, From: from, To: []byte(to), Gateway: g.id})
	s.Done = func(_ *connection.Batch, m *Message) {
		if s.answers.Add(1) == 1 {
			s.result, s.took = m.Result, time.Since(s.at)
			close(s.done)
		}
	}
	g.mu.Lock()
	g.sent = append(g.sent, s)
	g.mu.Unlock()
	return s
}

// post gives a message to the router.
func (g *gateway) post(s *sent) *sent {
	var out connection.Batch
	s.at = time.Now()
	g.router.Send(&out, s.Message)
	out.Flush()
	return s
}

// send sends a stored message.
func (g *gateway) send(from, to protocol.UserID, id, content string) *sent {
	return g.post(g.message(from, to, id, content))
}

// sendUntilTaken repeats a message until Redis answers again, as a client does.
func (g *gateway) sendUntilTaken(from, to protocol.UserID, id, content string) *sent {
	g.t.Helper()
	var s *sent
	eventually(g.t, "message "+id+" is taken", func() bool {
		s = g.send(from, to, id, content)
		return s.answer().Err == nil
	})
	return s
}

// signal sends an ephemeral message.
func (g *gateway) signal(from, to protocol.UserID, id, content string) *sent {
	s := g.message(from, to, id, content)
	s.Ephemeral = true
	s.Frame = protocol.AppendMessageHead(nil, &protocol.MessageHead{
		ID: s.ID, From: from, To: []byte(to), Content: s.Content, Ts: s.Ts, Ephemeral: true,
	})
	return g.post(s)
}

// answer waits for what became of the message.
func (s *sent) answer() Result {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		s.t.Fatalf("message %s was not answered within %v", s.ID, patience)
	}
	return s.result
}

func (s *sent) answered() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *sent) want(status protocol.Status) Result {
	s.t.Helper()
	r := s.answer()
	if r.Err != nil || r.Status != status {
		s.t.Fatalf("message %s: %s, want %s", s.ID, r.text(), status)
	}
	return r
}

func (s *sent) wantRouted(offset uint64, devices int) Result {
	s.t.Helper()
	r := s.want(protocol.StatusRouted)
	if r.Offset != offset || r.Devices != devices {
		s.t.Fatalf("message %s: %s, want offset %d and %d devices", s.ID, r.text(), offset, devices)
	}
	return r
}

func (s *sent) wantStored(offset uint64) Result {
	s.t.Helper()
	r := s.want(protocol.StatusStored)
	if r.Offset != offset || r.Devices != 0 {
		s.t.Fatalf("message %s: %s, want offset %d and no devices", s.ID, r.text(), offset)
	}
	return r
}

func (s *sent) wantCode(code protocol.ErrorCode) *protocol.ReplyError {
	s.t.Helper()
	r := s.answer()
	if r.Err == nil || r.Err.Code != code {
		s.t.Fatalf("message %s: %s, want %s", s.ID, r.text(), code)
	}
	return r.Err
}

func (s *sent) wantAnswer(want Result) {
	s.t.Helper()
	if r := s.answer(); r != want {
		s.t.Fatalf("message %s: %s, want the first answer, %s", s.ID, r.text(), want.text())
	}
}

func (r Result) text() string {
	if r.Err != nil {
		return fmt.Sprintf("%s (%s, retry after %d ms)", r.Err.Code, r.Err.Message, r.Err.RetryAfterMs)
	}
	return fmt.Sprintf("%s %s/%d devices %d ts %d", r.Status, r.Epoch, r.Offset, r.Devices, r.Ts)
}
