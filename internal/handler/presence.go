package handler

import (
	"context"

	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

const (
	// presenceChunk is how many users one answer holds; a longer list is answered
	// in several frames, so that no client is closed for an answer it asked for.
	presenceChunk = 1000
	// usersPerMessage is how many looked up users cost Redis as much as a message.
	usersPerMessage = 10
)

// presence answers with what is known of users now.
func (s *session) presence(f *protocol.Frame) {
	if !s.allow(f, 1+len(f.Users)/usersPerMessage) || !s.mayWatch(f) {
		return
	}
	for rest := f.Users; len(rest) > 0; {
		n := min(len(rest), presenceChunk)
		answer := s.presenceOf(f.ID, rest[:n])
		if !s.awaitRoom(len(answer)) || !s.conn.Send(answer) {
			return
		}
		rest = rest[n:]
	}
}

func (s *session) presenceOf(id []byte, names [][]byte) []byte {
	users, addresses := make([]protocol.UserID, len(names)), make([]protocol.Address, len(names))
	for i, u := range names {
		users[i] = protocol.UserID(u)
		addresses[i] = protocol.UserAddress(users[i])
	}
	var found []presence.Whereabouts
	err := presence.ErrUnavailable
	if s.handler.registry.Answers(addresses...) { // otherwise nobody should wait to hear it
		found, err = s.handler.registry.Locate(context.Background(), users...)
	}
	states := make([]protocol.UserPresence, len(users))
	for i, u := range users {
		states[i] = protocol.UserPresence{User: u, State: protocol.StateUnknown}
		if err != nil {
			continue
		}
		w := found[i]
		if w.Unsure {
			continue
		}
		states[i].State, states[i].Version, states[i].LastSeen = protocol.StateOffline, w.Version, w.LastSeen
		if n := len(w.Locations); n > 0 {
			states[i].State, states[i].Devices = protocol.StateOnline, n
		}
	}
	return protocol.AppendPresence(nil, id, states)
}
