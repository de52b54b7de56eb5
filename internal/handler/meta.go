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

// saysMeta reports whether a decision says something of the connection's meta.
func saysMeta(d *hook.Decision) bool { return d.Meta != nil && string(d.Meta) != "null" }

// checkMeta finds what is wrong with what a decision says of the connection's meta, whatever is there now.
func checkMeta(d *hook.Decision) error {
	if !saysMeta(d) {
		return nil
	}
	_, err := protocol.MergeMeta("", d.Meta)
	return err
}

// bindSaid binds what a decision says of the connection's meta, or returns what its client is told where what is there now leaves no room for
// it. It counts from here on, and nobody waits until Redis has it.
func (s *session) bindSaid(d *hook.Decision) *protocol.ReplyError {
	if !saysMeta(d) {
		return nil
	}
	meta, err := protocol.MergeMeta(s.entry.MetaNow(), d.Meta)
	if err != nil {
		return &protocol.ReplyError{Code: protocol.CodeTooLarge, Message: "meta: no room for what the backend binds", Limit: protocol.LimitMeta}
	}
	if meta != s.entry.MetaNow() {
		s.handler.registry.SetMeta(s.entry, meta)
		s.identify()
	}
	return nil
}

// setMeta merges into the meta of a connection here what a backend says by the server API, and waits for Redis to have it.
func (h *Handler) setMeta(ctx context.Context, q *protocol.MetaQuestion) protocol.MetaOutcome {
	c := h.manager.ByConn(q.Conn)
	if c == nil {
		return protocol.MetaOutcome{Result: protocol.MetaGone}
	}
	h.arriving.await(ctx, c)
	if _, ended := c.Cause(); !ended && sessionOf(c) == nil {
		return protocol.MetaOutcome{Result: protocol.MetaBusy} // the registry has it, and its register is not over, or has to be made again
	}
	var meta string
	var err error
	var told <-chan error
	switch h.inTurn(ctx, c, func(s *session) {
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
