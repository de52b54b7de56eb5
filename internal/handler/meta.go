package handler

import (
	"context"
	"errors"

	"chatgate/internal/hook"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// A backend may bind other values to a connection while it lives: with a decision, or by the server API. Both merge into what is there,
// in the connection's turn, so that two of them never mix.

// merged is what a decision makes of the connection's meta; "": it says nothing of it.
func (s *session) merged(d *hook.Decision) (string, error) {
	if d.Meta == nil || string(d.Meta) == "null" {
		return "", nil
	}
	return protocol.MergeMeta(s.entry.MetaNow(), d.Meta)
}

// bind binds another meta to the connection; "" changes nothing. It counts from here on, and nobody waits until Redis has it.
func (s *session) bind(meta string) {
	if meta != "" && meta != s.entry.MetaNow() {
		s.handler.registry.SetMeta(s.entry, meta)
		s.identify()
	}
}

// setMeta merges into the meta of a connection here what a backend says by the server API, and waits for Redis to have it.
func (h *Handler) setMeta(ctx context.Context, q *protocol.MetaQuestion) protocol.MetaOutcome {
	c := h.manager.ByConn(q.Conn)
	if c == nil {
		return protocol.MetaOutcome{Result: protocol.MetaGone}
	}
	if _, ended := c.Cause(); !ended && sessionOf(c) == nil {
		return protocol.MetaOutcome{Result: protocol.MetaBusy} // its event was quicker than the end of its register
	}
	var meta string
	var err error
	var told <-chan error
	switch inTurn(ctx, c, func(s *session) {
		if meta, err = protocol.MergeMeta(s.entry.MetaNow(), []byte(q.Patch)); err == nil {
			told = h.registry.SetMeta(s.entry, meta)
			s.identify()
		}
	}) {
	case turnGone:
		return protocol.MetaOutcome{Result: protocol.MetaGone}
	case turnLate:
		return protocol.MetaOutcome{Result: protocol.MetaBusy}
	}
	if refused, ok := errors.AsType[*protocol.ReplyError](err); ok {
		return protocol.MetaOutcome{Result: protocol.MetaRefused, Code: refused.Code, Message: refused.Message}
	}
	// Out of the connection's turn: its client is not held up by Redis.
	select {
	case err = <-told:
	case <-ctx.Done():
		err = presence.ErrUnavailable
	}
	switch {
	case errors.Is(err, presence.ErrEnding):
		return protocol.MetaOutcome{Result: protocol.MetaGone}
	case err != nil:
		return protocol.MetaOutcome{Result: protocol.MetaUnsure, Meta: meta}
	}
	return protocol.MetaOutcome{Result: protocol.MetaSet, Meta: meta}
}
