package handler

import (
	"context"

	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// membersPerMessage is how many members of a room cost Redis as much as a message.
const membersPerMessage = 100

// members answers with a page of who is in a room. The place where a page begins is the last name of the page before: it needs to be
// kept nowhere, and holds on any gateway.
func (s *session) members(f *protocol.Frame) {
	if f.Cursor != nil && !protocol.ValidID(f.Cursor, protocol.MaxIDBytes) {
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeBadRequest, Message: "after: not the next of an answer"})
		return
	}
	if !s.allow(f, 1+f.Limit/membersPerMessage) {
		return
	}
	a, ok := s.addressed(f)
	if !ok {
		return
	}
	err := presence.ErrUnavailable
	var page presence.MembersPage
	if s.handler.registry.Answers(a) { // otherwise nobody should wait to hear it
		page, err = s.handler.registry.Members(context.Background(), a, protocol.UserID(f.Cursor), f.Limit)
	}
	if err != nil {
		s.refuse(&protocol.ReplyError{
			ID: string(f.ID), Code: protocol.CodeUnavailable, Message: "redis does not answer", RetryAfterMs: 1000,
		})
		return
	}
	answer := protocol.AppendMembers(nil, &protocol.Members{
		ID: f.ID, Room: protocol.RoomID(f.Room), Count: page.Count, Users: page.Users, Next: page.Next,
	})
	for n := len(page.Users) / 2; n > 0 && int64(len(answer)) > s.handler.cfg.MaxFrameBytes; n /= 2 {
		answer = protocol.AppendMembers(nil, &protocol.Members{
			ID: f.ID, Room: protocol.RoomID(f.Room), Count: page.Count, Users: page.Users[:n], Next: page.Users[n-1],
		})
	}
	if s.awaitRoom(len(answer)) {
		s.conn.Send(answer)
	}
}
