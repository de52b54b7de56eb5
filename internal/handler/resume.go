package handler

import (
	"context"

	"chatgate/internal/history"
	"chatgate/internal/protocol"
)

// opening is where a client goes on in a log.
type opening struct {
	at         protocol.Position
	first, top uint64
	gaps       []protocol.Gap
}

// newDeviceBacklog is how much of what is kept a device gets that was never seen.
const newDeviceBacklog = 200

// open finds out what the client gets of a log that stands as said: what it asks to resume from, else what its device has not
// confirmed, else what comes from now on.
func (s *session) open(ctx context.Context, a protocol.Address, asked protocol.Resume, log history.Log) (opening, error) {
	h := s.handler.history
	out := opening{at: protocol.Position{Epoch: log.Epoch, Offset: log.Top}, first: log.First, top: log.Top}
	if !asked.Set && s.entry.Device == "" {
		return out, nil
	}
	at, known := protocol.Position{Epoch: string(asked.Epoch), Offset: asked.Offset}, asked.Set
	if !known {
		var err error
		if at, known, err = h.Kept(ctx, a, s.entry.User, s.entry.Device); err != nil {
			return out, err
		}
	}
	if !known {
		out.at.Offset = max(log.First-1, log.Top-min(log.Top, newDeviceBacklog))
		return out, nil
	}
	if !log.Continues(at) {
		// Only the log itself knows its former epochs.
		logs, err := h.Heads(ctx, a)
		if err != nil {
			return out, err
		}
		log = logs[0]
	}
	r := log.Resume(at)
	out = opening{at: protocol.Position{Epoch: log.Epoch, Offset: r.Start}, first: log.First, top: log.Top, gaps: r.Gaps}
	return out, nil
}

// received notes how far this device has kept what it got.
func (s *session) received(f *protocol.Frame) {
	if s.entry.Device == "" {
		return // a client without a device resumes by position
	}
	a, ok := s.addressed(f)
	if !ok {
		return
	}
	s.handler.cursors.note(history.Cursor{
		Address: a, User: s.entry.User, Device: s.entry.Device, At: protocol.Position{Epoch: string(f.Epoch), Offset: f.Offset},
	})
}

// addressed is the log that a frame is about: a room this connection is in, which is checked, or the own inbox.
func (s *session) addressed(f *protocol.Frame) (protocol.Address, bool) {
	if f.Room == nil {
		return s.stay.Address(), true
	}
	stay := s.rooms[protocol.RoomID(f.Room)]
	if stay == nil {
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeNotJoined, Message: "room: not joined"})
		return "", false
	}
	return stay.Address(), true
}

// history answers with a page of the own inbox, or of a room.
func (s *session) history(f *protocol.Frame) {
	if !s.allow(f, 1) {
		return
	}
	a, ok := s.addressed(f)
	if !ok {
		return
	}
	page, err := s.page(a, f)
	if err != nil {
		s.refuse(&protocol.ReplyError{
			ID: string(f.ID), Code: protocol.CodeUnavailable, Message: "redis does not answer", RetryAfterMs: 1000,
		})
		return
	}
	out := protocol.AppendHistoryHead(nil, &protocol.HistoryHead{
		ID: f.ID, Room: protocol.RoomID(f.Room), Epoch: page.Epoch, First: page.First, Top: page.Top, More: page.More,
	})
	for i := range page.Messages {
		if i > 0 {
			out = append(out, ',')
		}
		m := &page.Messages[i]
		out = protocol.AppendMessageTail(append(out, m.Frame...), page.Epoch, m.Offset)
	}
	s.conn.Send(protocol.AppendHistoryTail(out))
}

func (s *session) page(a protocol.Address, f *protocol.Frame) (history.Page, error) {
	ctx, h := context.Background(), s.handler.history
	switch {
	case f.HasBefore:
		return h.Before(ctx, a, f.Before, f.Limit)
	case !f.HasAfter:
		return h.Before(ctx, a, history.Newest, f.Limit)
	}
	page, err := h.After(ctx, a, f.After, f.Limit)
	if err != nil || f.Epoch == nil {
		return page, err
	}
	// An offset means something in its own epoch only.
	if r := page.Resume(protocol.Position{Epoch: string(f.Epoch), Offset: f.After}); r.Start < f.After {
		return h.After(ctx, a, r.Start, f.Limit)
	}
	return page, nil
}
