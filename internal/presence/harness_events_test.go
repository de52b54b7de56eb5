//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// group is the group a user's keys are in.
func (f *fleet) group(user string) keyspace.Group {
	return f.cfg.Layout.GroupOf(protocol.UserAddress(protocol.UserID(user)))
}

// state is what Redis keeps of a user's being online: "epoch n state ms line", or empty.
func (f *fleet) state(user string) (epoch, n, state string) {
	f.t.Helper()
	v, err := f.client.Get(context.Background(), keyspace.State(protocol.UserID(user))).Result()
	if err != nil && !isNil(err) {
		f.t.Fatal(err)
	}
	if s := strings.Fields(v); len(s) == 5 {
		return s[0], s[1], s[2]
	}
	return "", "", v
}

// wantState waits until a user is online, offline or never seen ("").
func (f *fleet) wantState(user, want string) {
	f.t.Helper()
	f.eventually(func() error {
		if _, _, got := f.state(user); got != want {
			return fmt.Errorf("%s is %q, want %q", user, got, want)
		}
		return nil
	})
}

// An event is one entry of the events stream: its fields.
type event map[string]string

// events are what happened to a user according to the stream of events, in order.
func (f *fleet) events(user string) []event {
	f.t.Helper()
	return f.eventsOf(f.group(user))[user]
}

// allEvents are the events of all users.
func (f *fleet) allEvents() map[string][]event {
	f.t.Helper()
	all := make(map[string][]event)
	for _, g := range f.cfg.Layout.Groups() {
		maps.Copy(all, f.eventsOf(g))
	}
	return all
}

func (f *fleet) eventsOf(g keyspace.Group) map[string][]event {
	f.t.Helper()
	all := make(map[string][]event)
	for _, e := range f.entriesOf(g) {
		all[e["user"]] = append(all[e["user"]], e)
	}
	return all
}

// entriesOf are the events of a group, in their order.
func (f *fleet) entriesOf(g keyspace.Group) (all []event) {
	f.t.Helper()
	entries, err := f.client.XRange(context.Background(), keyspace.Events(g), "-", "+").Result()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, x := range entries {
		e := make(event)
		for k, v := range x.Values {
			e[k] = fmt.Sprint(v)
		}
		all = append(all, e)
	}
	return all
}

// story is the types of a user's events, in order.
func (f *fleet) story(user string) string {
	f.t.Helper()
	var types []string
	for _, e := range f.events(user) {
		types = append(types, e["type"])
	}
	return strings.Join(types, " ")
}

// wantStory waits until a user's events are exactly these types in this order.
func (f *fleet) wantStory(user, want string) {
	f.t.Helper()
	f.eventually(func() error {
		if got := f.story(user); got != want {
			return fmt.Errorf("events of %s: %q, want %q", user, got, want)
		}
		return nil
	})
}
