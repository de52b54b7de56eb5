package history

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

func (s *shelf) keepAt(u protocol.UserID, d protocol.DeviceID, epoch string, offset uint64, moves bool) {
	s.t.Helper()
	n, err := s.Keep(ctx, Cursor{Address: protocol.UserAddress(u), User: u, Device: d, At: protocol.Position{Epoch: epoch, Offset: offset}})
	if err != nil || (n == 1) != moves {
		s.t.Fatalf("%s/%d: %d moved (%v), want it to move: %v", epoch, offset, n, err, moves)
	}
}

// keptAt is a device's cursor; zero: none.
func (s *shelf) keptAt(a protocol.Address, u protocol.UserID, d protocol.DeviceID) (at protocol.Position, err error) {
	kept, err := s.Kept(ctx, u, d, a)
	if err == nil && kept[0] != nil {
		at = *kept[0]
	}
	return at, err
}

func (s *shelf) wantKept(u protocol.UserID, d protocol.DeviceID, epoch string, offset uint64) {
	s.t.Helper()
	at, err := s.keptAt(protocol.UserAddress(u), u, d)
	if err != nil || at != (protocol.Position{Epoch: epoch, Offset: offset}) {
		s.t.Fatalf("%s of %s: %v (%v), want %s/%d", d, u, at, err, epoch, offset)
	}
}

// Bob's phone confirms what it has. Its cursor only moves forward, and no further than the log; his laptop has its own.
func TestCursorsOnlyMoveForward(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		s.wantKept("bob", "phone", "", 0)
		s.store("bob", 10, 60)
		e := s.head("bob").Epoch
		s.keepAt("bob", "phone", e, 3, true)
		s.keepAt("bob", "phone", e, 3, false)
		s.keepAt("bob", "phone", e, 2, false)
		for _, future := range []uint64{11, 1 << 53, 1 << 63, 1<<64 - 1} {
			s.keepAt("bob", "phone", e, future, false)
		}
		s.keepAt("bob", "phone", "foreign", 5, false)
		s.keepAt("bob", "phone", "", 5, false)
		s.wantKept("bob", "phone", e, 3)
		s.keepAt("bob", "phone", e, 10, true)
		s.wantKept("bob", "phone", e, 10)
		s.keepAt("bob", "laptop", e, 0, true)
		s.wantKept("bob", "laptop", e, 0)
		s.keepAt("carol", "phone", e, 0, false) // no log, no cursor
		s.wantKept("carol", "phone", "", 0)
		s.trim("bob", 100)
		s.wantKept("bob", "phone", e, 10) // positions outlive messages
	})
}

// Redis' history changed. A position is judged in its own epoch: the old one reaches to where it ended, and what the two mean in the
// present log decides which is further.
func TestCursorsAreJudgedInTheirOwnEpoch(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		s.store("bob", 10, 60)
		e1 := s.head("bob").Epoch
		s.keepAt("bob", "phone", e1, 4, true)
		e2 := s.roll("bob").Epoch
		s.keepAt("bob", "phone", e1, 11, false) // it ended at 10
		s.keepAt("bob", "phone", e1, 6, true)
		s.keepAt("bob", "phone", e2, 5, false) // the same log, further back
		s.keepAt("bob", "phone", e2, 6, true)  // the same place, an epoch that lasts longer
		s.keepAt("bob", "phone", e1, 6, false)
		s.keepAt("bob", "phone", e1, 9, true)
		s.keepAt("bob", "phone", e2, 12, false) // beyond the top
		s.store("bob", 2, 60)
		s.keepAt("bob", "phone", e2, 12, true)
		s.keepAt("bob", "phone", e1, 10, false)
		s.wantKept("bob", "phone", e2, 12)
		// Redis comes back with less: 11 and 12 are lost, and what the cursor says is in no log any more.
		s.setField("bob", 1, "10")
		e3 := s.roll("bob").Epoch
		s.setField("bob", 1, "11")
		s.keepAt("bob", "phone", e3, 11, true)
		s.wantKept("bob", "phone", e3, 11)
		// Eight rolls later nobody knows the epoch any more: any position of the log is better.
		for range 9 {
			s.roll("bob")
		}
		s.keepAt("bob", "phone", e3, 11, false)
		e := s.head("bob").Epoch
		s.keepAt("bob", "phone", e, 1, true)
	})
}

// A user has so many devices; the one that was silent for longest is forgotten.
func TestDevicesAreBounded(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		s.store("bob", 10, 60)
		e := s.head("bob").Epoch
		for i := range 64 {
			s.keepAt("bob", protocol.DeviceID(fmt.Sprint("d", i)), e, 1, true)
		}
		// The clock of Redis counts ms: d0 speaks again in a later one than all others.
		now, err := s.c.Time(ctx).Result()
		if err != nil {
			t.Fatal(err)
		}
		if err := gatewaytest.Poll(5*time.Second, func() error {
			if later, err := s.c.Time(ctx).Result(); err != nil || later.UnixMilli() <= now.UnixMilli()+1 {
				return errors.New("the same ms")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		s.keepAt("bob", "d0", e, 2, true)
		s.keepAt("bob", "new", e, 1, true)
		if n, err := s.c.HLen(ctx, keyspace.Cursors("u:bob", "bob")).Result(); n != 64 || err != nil {
			t.Errorf("%d devices remembered (%v), want 64", n, err)
		}
		s.wantKept("bob", "d0", e, 2)
		s.wantKept("bob", "new", e, 1)
	})
}

// The cursors of many users, in all groups, go in one call of Keep; each is judged by itself.
func TestCursorsOfManyUsers(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		var all []Cursor
		for i := range 200 {
			u := protocol.UserID(fmt.Sprint("user", i))
			at := protocol.Position{Epoch: s.head(u).Epoch}
			if i%2 == 1 {
				at.Offset = 1 << (i / 2 % 64) // beyond the top, also where no script can count to
			}
			all = append(all, Cursor{Address: protocol.UserAddress(u), User: u, Device: "phone", At: at})
		}
		if n, err := s.Keep(ctx, all...); n != 100 || err != nil {
			t.Errorf("%d moved (%v), want 100", n, err)
		}
		if n, err := s.Keep(ctx); n != 0 || err != nil {
			t.Errorf("nothing: %d moved (%v)", n, err)
		}
	})
}

// A user's device has a cursor of its own in each room, judged by the room's log; another user's device of the same name has another.
func TestCursorsOfRooms(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		s.store("bob", 5, 60)
		lobby, err := s.Heads(ctx, "r:lobby")
		if err != nil {
			t.Fatal(err)
		}
		at := protocol.Position{Epoch: lobby[0].Epoch}
		if n, err := s.Keep(ctx, Cursor{Address: "r:lobby", User: "bob", Device: "phone", At: at}); n != 1 || err != nil {
			t.Errorf("%d moved (%v)", n, err)
		}
		s.keepAt("bob", "phone", s.head("bob").Epoch, 5, true)
		if got, err := s.Kept(ctx, "bob", "phone", "r:lobby", "r:other", "u:bob"); err != nil || got[0] == nil || *got[0] != at || got[1] != nil || got[2].Offset != 5 {
			t.Errorf("bob's phone kept %v (%v)", got, err)
		}
		if got, err := s.Kept(ctx, "carol", "phone", "r:lobby"); err != nil || got[0] != nil {
			t.Errorf("carol's phone was never there: %v (%v)", got, err)
		}
		s.wantKept("bob", "phone", s.head("bob").Epoch, 5)
	})
}

// Redis is away: every call says so, and may be repeated.
func TestRedisThatIsAway(t *testing.T) {
	r := gatewaytest.StartRedis(t)
	s := newShelf(t, r, func(c *Config) { c.Timeout = 200 * time.Millisecond })
	s.store("bob", 1, 60)
	e := s.head("bob").Epoch
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	_, err1 := s.After(ctx, "u:bob", 0, 1)
	_, err2 := s.Heads(ctx, "u:bob")
	_, err3 := s.Keep(ctx, Cursor{Address: "u:bob", User: "bob", Device: "phone", At: protocol.Position{Epoch: e, Offset: 1}})
	_, err4 := s.Kept(ctx, "bob", "phone", "u:bob")
	for i, err := range []error{err1, err2, err3, err4} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	p, err := s.After(ctx, "u:bob", 0, 1)
	s.wantPage(p, err, false, 1, 1)
}
