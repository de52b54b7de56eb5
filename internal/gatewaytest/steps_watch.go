package gatewaytest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// watch alice bob [online | offline]: alice begins to watch bob, and is told that he is so now.
func (s *scene) watch(a *args) error { return s.watchOrNot("watch", a) }

// unwatch alice bob [online | offline]: alice is told of bob for the last time.
func (s *scene) unwatch(a *args) error { return s.watchOrNot("unwatch", a) }

func (s *scene) watchOrNot(kind string, a *args) error {
	c, err1 := s.client(a)
	user, err2 := a.next("the user")
	want := ""
	for _, state := range []string{"online", "offline"} {
		if a.word(state) {
			want = state
		}
	}
	if err := errors.Join(err1, err2, a.done()); err != nil {
		return err
	}
	states, err := c.Watch(kind, user)
	if err == nil && want != "" && states[user].State != want {
		err = fmt.Errorf("%s is told of %s: %+v, want %s", c.Name, user, states[user], want)
	}
	return err
}

// told alice bob offline [within 3s [calm]]: what alice is told of bob next, in a version above the last. Calm is that of presence.
func (s *scene) told(a *args) error {
	within, err1 := a.duration("within", Deadline)
	c, err2 := s.client(a)
	user, want, err3 := a.two("the user", "the state")
	calm := a.word("calm")
	if err := errors.Join(err1, err2, err3, a.done()); err != nil {
		return err
	}
	n := s.taken[c][user]
	err := s.whenCalm(calm, within, func() error {
		if len(c.Told(user)) <= n {
			return fmt.Errorf("%s was told of %s %d times, and nothing since", c.Name, user, n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	all := c.Told(user)
	if s.taken[c] == nil {
		s.taken[c] = make(map[string]int)
	}
	s.taken[c][user]++
	if got := all[n]; got.State != want {
		return fmt.Errorf("%s is told of %s: %+v, want %s", c.Name, user, got, want)
	}
	return CheckTold(all)
}

// untold alice bob [for 1s]: alice is told nothing of bob.
func (s *scene) untold(a *args) error {
	during, err1 := a.duration("for", quiet)
	c, err2 := s.client(a)
	user, err3 := a.next("the user")
	if err := errors.Join(err1, err2, err3, a.done()); err != nil {
		return err
	}
	n := s.taken[c][user]
	for end := time.Now().Add(during); ; time.Sleep(10 * time.Millisecond) {
		if all := c.Told(user); len(all) > n {
			return fmt.Errorf("%s is told of %s: %+v", c.Name, user, all[n])
		}
		if time.Now().After(end) {
			return nil
		}
	}
}

// untaken complains about what a client was told and no step expected.
func (s *scene) untaken(c *Client) error {
	for _, user := range c.toldUsers() {
		if all := c.Told(user); len(all) > s.taken[c][user] {
			return fmt.Errorf("%s was told of %s what nobody expected: %+v", c.Name, user, all[s.taken[c][user]:])
		}
	}
	return nil
}

// CheckTold checks what somebody was told of one user, in order: in each epoch, no version twice and none backwards.
func CheckTold(states []UserState) error {
	last := make(map[string]uint64) // by epoch
	for i, s := range states {
		epoch, n, ok := s.Position()
		if !ok {
			continue
		}
		if before, known := last[epoch]; known && n <= before {
			return fmt.Errorf("told version %s behind %s.%d: %+v", s.Version, epoch, before, states[max(0, i-3):i+1])
		}
		last[epoch] = n
	}
	return nil
}

// Position takes a version apart; false when there is none.
func (s UserState) Position() (epoch string, n uint64, ok bool) {
	epoch, number, ok := strings.Cut(s.Version, ".")
	n, err := strconv.ParseUint(number, 10, 64)
	return epoch, n, ok && err == nil
}

// Watch asks to be told of users, or with "unwatch" not to be, and returns the answer: the states now.
func (c *Client) Watch(kind string, users ...string) (map[string]UserState, error) {
	c.mu.Lock()
	c.nextID++
	id := kind + "-" + strconv.FormatUint(c.nextID, 10)
	c.mu.Unlock()
	if err := c.Write(object(kind, []any{"id", id, "users", users})); err != nil {
		return nil, err
	}
	answer, err := c.answerTo(id)
	return answer.States(), err
}

// Told returns what the client was told of a user without asking, in order.
func (c *Client) Told(user string) (states []UserState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.all {
		if f := &c.all[i]; f.Type == "presence" && f.ID == "" {
			if s, ok := f.States()[user]; ok {
				states = append(states, s)
			}
		}
	}
	return states
}

func (c *Client) toldUsers() (users []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.all {
		if f := &c.all[i]; f.Type == "presence" && f.ID == "" {
			for user := range f.States() {
				if !slices.Contains(users, user) {
					users = append(users, user)
				}
			}
		}
	}
	return users
}
