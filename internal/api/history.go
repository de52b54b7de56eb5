package api

import (
	"context"
	"encoding/json"

	"chatgate/internal/history"
	"chatgate/internal/protocol"
)

// Stretch says which messages of a log are asked for.
type Stretch struct {
	After  *uint64 `query:"after" doc:"Those above this offset, the lowest first."`
	Before *uint64 `query:"before" doc:"Those next below this offset. With neither: the newest."`
	Epoch  string  `query:"epoch" max:"128" doc:"The epoch that after or before is of. Where it is over, what is known of it is given; absent: the one of now."`
	Limit  int     `query:"limit" min:"1" max:"200" default:"50" doc:"Messages, at most."`
}

// UserHistoryRequest asks for a user's messages.
type UserHistoryRequest struct {
	User protocol.UserID `path:"user" doc:"The user, percent-encoded." example:"bob"`
	Stretch
}

// RoomHistoryRequest asks for a room's.
type RoomHistoryRequest struct {
	Room protocol.RoomID `path:"room" doc:"The room, percent-encoded." example:"lobby"`
	Stretch
}

// HistoryAnswer is a stretch of a log.
type HistoryAnswer struct {
	Epoch    string            `json:"epoch" doc:"The log's epoch." example:"vZ3kq0aTn1c"`
	First    uint64            `json:"first" doc:"The oldest offset kept; top + 1: none is." example:"1"`
	Top      uint64            `json:"top" doc:"The newest." example:"1"`
	More     bool              `json:"more" doc:"It goes on in the direction that was asked."`
	Messages []json.RawMessage `json:"messages" type:"Message" doc:"Ascending; a page may hold fewer than were asked for, for its size."`
}

// Message is a message as clients get it.
type Message struct {
	Type    string          `json:"type" doc:"message." example:"message"`
	ID      string          `json:"id" doc:"The sender's id of it." example:"order-17"`
	From    protocol.UserID `json:"from" doc:"Who sent it." example:"system"`
	To      protocol.UserID `json:"to,omitempty" doc:"The user it was for; or room."`
	Room    protocol.RoomID `json:"room,omitempty" doc:"The room it was for; or to."`
	Content json.RawMessage `json:"content" doc:"Any JSON value; white space between its parts may be gone." example:"{\"text\":\"hello\"}"`
	Ts      int64           `json:"ts" doc:"When it was taken, ms since 1970." example:"1795305600000"`
	Own     bool            `json:"own,omitempty" doc:"A copy in the log of its sender."`
	Epoch   string          `json:"epoch" doc:"The log's epoch." example:"vZ3kq0aTn1c"`
	Offset  uint64          `json:"offset" doc:"Its place there." example:"1"`
}

const historyText = "A page of what is kept: the newest, or those above or below an offset. Nobody's cursor moves by it."

var getUserHistory = on(operation{
	Name: "getUserHistory", Method: "GET", Path: "/users/{user}/history", Scope: ScopeHistory,
	Summary: "Read a user's messages", Description: historyText,
	Codes: []Code{CodeUnavailable},
}, func(a *API, ctx context.Context, q *UserHistoryRequest) (*HistoryAnswer, error) {
	return a.history(ctx, protocol.UserAddress(q.User), &q.Stretch)
})

var getRoomHistory = on(operation{
	Name: "getRoomHistory", Method: "GET", Path: "/rooms/{room}/history", Scope: ScopeHistory,
	Summary: "Read a room's messages", Description: historyText,
	Codes: []Code{CodeUnavailable},
}, func(a *API, ctx context.Context, q *RoomHistoryRequest) (*HistoryAnswer, error) {
	return a.history(ctx, protocol.RoomAddress(q.Room), &q.Stretch)
})

func (a *API) history(ctx context.Context, from protocol.Address, s *Stretch) (*HistoryAnswer, error) {
	if s.After != nil && s.Before != nil {
		return nil, bad("before", "not together with after")
	}
	if !a.cfg.Registry.Answers(from) {
		return nil, unavailable()
	}
	page, err := a.page(ctx, from, s)
	if err != nil {
		return nil, err
	}
	answer := &HistoryAnswer{Epoch: page.Epoch, First: page.First, Top: page.Top, More: page.More, Messages: make([]json.RawMessage, len(page.Messages))}
	for i := range page.Messages {
		m := &page.Messages[i]
		answer.Messages[i] = protocol.AppendMessageTail([]byte(m.Frame), page.Epoch, m.Offset)
	}
	return answer, nil
}

// page reads a log. An offset means something in its own epoch only: where that is over, what is above its end counts from there.
func (a *API) page(ctx context.Context, from protocol.Address, s *Stretch) (history.Page, error) {
	h := a.cfg.History
	switch {
	case s.Before != nil:
		page, err := h.Before(ctx, from, *s.Before, s.Limit)
		if err != nil || s.Epoch == "" || *s.Before == 0 {
			return page, err
		}
		if r := page.Resume(protocol.Position{Epoch: s.Epoch, Offset: *s.Before - 1}); r.Start+1 < *s.Before {
			return h.Before(ctx, from, r.Start+1, s.Limit)
		}
		return page, nil
	case s.After == nil:
		return h.Before(ctx, from, history.Newest, s.Limit)
	}
	page, err := h.After(ctx, from, *s.After, s.Limit)
	if err != nil || s.Epoch == "" {
		return page, err
	}
	if r := page.Resume(protocol.Position{Epoch: s.Epoch, Offset: *s.After}); r.Start < *s.After {
		return h.After(ctx, from, r.Start, s.Limit)
	}
	return page, nil
}
