package handler

import (
	"context"

	"chatgate/internal/presence"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// Watches belong to a connection and end with it. They are about the state that waits until the grace is over: who is back within it was
// never away, and nothing would tell so. It may differ from what presence counts.

// watch answers with the states of users now, and has their changes told. All of them are watched, or none that was not before: an answer
// for some could not say for which.
func (s *session) watch(f *protocol.Frame) {
	if !s.allow(f, 1+len(f.Users)/usersPerMessage) || !s.mayWatch(f) {
		return
	}
	h := s.handler
	all := make([]*router.Watch, len(f.Users))
	var fresh []*router.Watch
	for i, name := range f.Users {
		if all[i] = s.watches[protocol.UserID(name)]; all[i] == nil {
			all[i] = router.NewWatch(protocol.UserID(name), s.conn)
			fresh = append(fresh, all[i])
		}
	}
	if most, limited := s.grant().MaxWatches(h.limits.Load().MaxWatches); limited && len(s.watches)+len(fresh) > most {
		s.refuse(&protocol.ReplyError{
			ID: string(f.ID), Code: protocol.CodeLimited, Message: "too many users watched", Limit: protocol.LimitWatchesPerConnection,
		})
		return
	}
	h.router.Collect(all...)
	states, err := s.beginToWatch(all, fresh)
	if err != nil {
		h.router.Unwatch(fresh...)
		h.router.Tell(all, nil)
		h.cfg.Log.Warn("watch failed", "conn", s.conn, "users", len(all), "err", err)
		s.refuse(&protocol.ReplyError{
			ID: string(f.ID), Code: protocol.CodeUnavailable, Message: "redis does not answer", RetryAfterMs: 1000,
		})
		return
	}
	if s.watches == nil {
		s.watches = make(map[protocol.UserID]*router.Watch, len(fresh))
	}
	for _, w := range fresh {
		s.watches[w.User()] = w
	}
	for len(all) > 0 {
		n := min(len(all), presenceChunk)
		if !s.answerStates(f.ID, states[:n]) {
			return
		}
		told := make([]protocol.UserState, n)
		for i := range told {
			told[i] = states[i].State
		}
		h.router.Tell(all[:n], told)
		all, states = all[n:], states[n:]
	}
}

// beginToWatch has this gateway hold the watches that are new, and reads the states of all. In this order: what changes behind the read
// is told to the holders.
func (s *session) beginToWatch(all, fresh []*router.Watch) (states []presence.Whereabouts, err error) {
	h := s.handler
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.RegisterWait)
	defer cancel()
	addresses := addressesOf(fresh)
	if !h.registry.Answers(addresses...) { // nobody should wait to hear it
		return nil, presence.ErrUnavailable
	}
	standings := h.registry.Hold(ctx, addresses...)
	for i := range standings {
		if standings[i].Err != nil {
			err = standings[i].Err
		}
	}
	if err == nil {
		states, err = s.locate(ctx, usersOf(all))
	}
	if err == nil {
		return states, nil
	}
	for i, a := range addresses {
		if standings[i].Err == nil {
			h.registry.Release(a)
		}
	}
	return nil, err
}

// unwatch ends watches. What it answers is the last word, and unknown of those that the token lets nobody ask for: an error would leave open
// which watches have ended.
func (s *session) unwatch(f *protocol.Frame) {
	if !s.allow(f, 1+len(f.Users)/usersPerMessage) {
		return
	}
	var users, secret []protocol.UserID
	var watches []*router.Watch
	for _, name := range f.Users {
		user := protocol.UserID(name)
		if w := s.watches[user]; w != nil {
			watches = append(watches, w)
		}
		if s.allowsWatch(user) {
			users = append(users, user)
		} else {
			secret = append(secret, user)
		}
	}
	s.endWatches(watches...)
	states, err := s.locate(context.Background(), users)
	if err != nil { // they are not watched any more all the same
		states, secret = nil, append(secret, users...)
	}
	for _, u := range secret {
		states = append(states, presence.Whereabouts{User: u, State: protocol.UserState{User: u, State: protocol.StateUnknown}})
	}
	for len(states) > 0 {
		n := min(len(states), presenceChunk)
		if !s.answerStates(f.ID, states[:n]) {
			return
		}
		states = states[n:]
	}
}

func (s *session) endWatches(watches ...*router.Watch) {
	s.handler.router.Unwatch(watches...)
	for _, w := range watches {
		s.handler.registry.Release(protocol.WatchAddress(w.User()))
		delete(s.watches, w.User())
	}
}

// locate reads where users are and what is told of them. With a Redis that is known not to answer, nobody waits to hear it.
func (s *session) locate(ctx context.Context, users []protocol.UserID) ([]presence.Whereabouts, error) {
	addresses := make([]protocol.Address, len(users))
	for i, u := range users {
		addresses[i] = protocol.UserAddress(u)
	}
	if !s.handler.registry.Answers(addresses...) {
		return nil, presence.ErrUnavailable
	}
	found := make([]presence.Whereabouts, 0, len(users))
	for len(users) > 0 {
		n := min(len(users), presenceChunk)
		some, err := s.handler.registry.Locate(ctx, users[:n]...)
		if err != nil {
			return nil, err
		}
		found, users = append(found, some...), users[n:]
	}
	return found, nil
}

// answerStates answers with what those who watch are told, at the pace of the client; false when the connection ends.
func (s *session) answerStates(id []byte, found []presence.Whereabouts) bool {
	users := make([]protocol.UserPresence, len(found))
	for i := range found {
		w := &found[i]
		users[i] = protocol.UserPresence{User: w.User, State: w.State.State, Version: w.State.Version(), LastSeen: w.State.LastSeen()}
		if w.State.State == protocol.StateOnline {
			users[i].Devices = len(w.Locations)
		}
	}
	answer := protocol.AppendPresence(nil, id, users)
	return s.awaitRoom(len(answer)) && s.conn.Send(answer)
}

func usersOf(watches []*router.Watch) []protocol.UserID {
	out := make([]protocol.UserID, len(watches))
	for i, w := range watches {
		out[i] = w.User()
	}
	return out
}

func addressesOf(watches []*router.Watch) []protocol.Address {
	out := make([]protocol.Address, len(watches))
	for i, w := range watches {
		out[i] = protocol.WatchAddress(w.User())
	}
	return out
}
