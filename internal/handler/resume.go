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

// entrance is a log that a client enters: the own inbox at register, or a room.
type entrance struct {
	address protocol.Address
	asked   protocol.Resume
	log     history.Log // as it stood when the address was registered or held
	opening opening     // found by open
}

// open finds out what the client gets of each log: what it asks to resume from, else what its device has not confirmed, else what
// comes from now on. However many they are, it asks Redis twice at most (on Cluster, once or twice for each group).
func (s *session) open(ctx context.Context, entrances []*entrance) error {
	positions := make([]*protocol.Position, len(entrances)) // nil: the client is new here
	var unasked []int
	var addresses []protocol.Address
	for i, e := range entrances {
		if e.asked.Set {
			positions[i] = &protocol.Position{Epoch: string(e.asked.Epoch), Offset: e.asked.Offset}
		} else if s.entry.Device != "" {
			unasked, addresses = append(unasked, i), append(addresses, e.address)
		}
	}
	if len(unasked) > 0 {
		kept, err := s.handler.history.Kept(ctx, s.entry.User, s.entry.Device, addresses...)
		if err != nil {
			return err
		}
		for j, i := range unasked {
			positions[i] = kept[j]
		}
	}

	// Only the log itself knows its former epochs, and what they were worth.
	var stale []int
	addresses = addresses[:0]
	for i, e := range entrances {
		if at := positions[i]; at != nil && !e.log.Continues(*at) {
			stale, addresses = append(stale, i), append(addresses, e.address)
		}
	}
	if len(stale) > 0 {
		logs, err := s.handler.history.AllHeads(ctx, addresses...)
		if err != nil {
			return err
		}
		for j, i := range stale {
			entrances[i].log = logs[j]
		}
	}
	for i, e := range entrances {
		e.opening = s.openingOf(&e.log, positions[i])
	}
	return nil
}

func (s *session) openingOf(log *history.Log, at *protocol.Position) opening {
	out := opening{at: protocol.Position{Epoch: log.Epoch, Offset: log.Top}, first: log.First, top: log.Top}
	switch {
	case at != nil:
		r := log.Resume(*at)
		out.at.Offset, out.gaps = r.Start, r.Gaps
	case s.entry.Device != "":
		out.at.Offset = max(log.First-1, log.Top-min(log.Top, newDeviceBacklog))
	}
	return out
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
	page, err := history.Page{}, history.ErrUnavailable
	if s.handler.registry.Answers(a) { // otherwise nobody should wait to hear it
		page, err = s.page(a, f)
	}
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
		page, err := h.Before(ctx, a, f.Before, f.Limit)
		if err != nil || f.Epoch == nil || f.Before == 0 {
			return page, err
		}
		if r := page.Resume(protocol.Position{Epoch: string(f.Epoch), Offset: f.Before - 1}); r.Start+1 < f.Before {
			return h.Before(ctx, a, r.Start+1, f.Limit)
		}
		return page, nil
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
