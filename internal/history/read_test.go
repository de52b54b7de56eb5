package history

import (
	"context"
	"fmt"
	"testing"

	"chatgate/internal/protocol"
)

var ctx = context.Background()

// Bob reads his log upwards from the start and downwards from the end: pages lie next to each other, and say whether there is more.
func TestPagesLieNextToEachOther(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		s.store("bob", 100, 60)
		p, err := s.After(ctx, "u:bob", 0, 40)
		s.wantPage(p, err, true, 1, 40)
		p, err = s.After(ctx, "u:bob", 40, 40)
		s.wantPage(p, err, true, 41, 80)
		p, err = s.After(ctx, "u:bob", 80, 40)
		s.wantPage(p, err, false, 81, 100)
		p, err = s.After(ctx, "u:bob", 60, 40) // exactly to the end
		s.wantPage(p, err, false, 61, 100)

		p, err = s.Before(ctx, "u:bob", Newest, 40)
		s.wantPage(p, err, true, 61, 100)
		p, err = s.Before(ctx, "u:bob", 61, 40)
		s.wantPage(p, err, true, 21, 60)
		p, err = s.Before(ctx, "u:bob", 21, 40)
		s.wantPage(p, err, false, 1, 20)
		p, err = s.Before(ctx, "u:bob", 41, 40) // exactly to the start
		s.wantPage(p, err, false, 1, 40)
		if p.First != 1 || p.Top != 100 || p.Epoch == "" {
			t.Errorf("the page stands in %+v", p.Log)
		}
		s.trim("bob", 31)
		p, err = s.After(ctx, "u:bob", 10, 5)
		s.wantPage(p, err, true, 31, 35)
		p, err = s.Before(ctx, "u:bob", 35, 40)
		s.wantPage(p, err, false, 31, 34)
		if p.First != 31 {
			t.Errorf("the oldest is %d, want 31", p.First)
		}
	})
}

// What a client may ask for at the ends of the numbers: nothing is there, and it is no error.
func TestPagesAtTheEndsOfTheNumbers(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		s.store("bob", 3, 60)
		for _, offset := range []uint64{3, 4, 1 << 53, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
			p, err := s.After(ctx, "u:bob", offset, 10)
			s.wantPage(p, err, false, 4, 3)
			if offset > 3 {
				p, err = s.Before(ctx, "u:bob", offset, 10)
				s.wantPage(p, err, false, 1, 3)
			}
		}
		for _, offset := range []uint64{0, 1} {
			p, err := s.Before(ctx, "u:bob", offset, 10)
			s.wantPage(p, err, false, 1, 0)
		}
		p, err := s.After(ctx, "u:bob", 0, 0)
		s.wantPage(p, err, true, 1, 0)
	})
}

// A page fits one frame to a client, however large its messages are; a single larger message still comes.
func TestPagesAreBoundedByBytes(t *testing.T) {
	for name, tc := range map[string]struct {
		size, limit int
		want        uint64
	}{
		"small messages": {60, 200, 80},
		"by bytes":       {1000, 200, 9},
		"exactly":        {1936, 200, 5},
		"one too large":  {20_000, 200, 1},
	} {
		t.Run(name, func(t *testing.T) {
			eachRedis(t, func(t *testing.T, s *shelf) {
				s.store("bob", 100, tc.size)
				p, err := s.After(ctx, "u:bob", 0, tc.limit)
				s.wantPage(p, err, true, 1, tc.want)
				p, err = s.Before(ctx, "u:bob", Newest, tc.limit)
				s.wantPage(p, err, true, 101-tc.want, 100)
			}, func(c *Config) { c.PageBytes = 10_000 })
		})
	}
}

// A whole page of the default figures is a frame of at most 64 KB, whatever the size of its messages.
func TestPageFitsOneFrame(t *testing.T) {
	if n := DefaultConfig().PageBytes; n+512 > protocol.MaxFrameBytes {
		t.Errorf("%d bytes of messages", n)
	}
	tail := protocol.AppendMessageTail(nil, "0123456789ab", 1<<53)
	if n := len(tail) + len(","); n > 64 {
		t.Errorf("a position takes %d bytes, the page counts 64", n)
	}
}

// A log that was never written has a position all the same, which stays; each has its own.
func TestLogNeverWrittenHasAPosition(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		bob := s.head("bob")
		if bob.Epoch == "" || bob.First != 1 || bob.Top != 0 || len(bob.Rolls) != 0 {
			t.Errorf("%+v", bob)
		}
		if again := s.head("bob"); again.Epoch != bob.Epoch {
			t.Errorf("epoch %s, then %s", bob.Epoch, again.Epoch)
		}
		if carol := s.head("carol"); carol.Epoch == "" {
			t.Errorf("carol: %+v", carol)
		}
		p, err := s.After(ctx, "u:dave", 7, 10)
		if err != nil || p.Epoch == "" || p.First != 1 || p.Top != 0 || len(p.Messages) != 0 || p.More {
			t.Errorf("%+v, %v", p, err)
		}
	})
}

// Many logs of one group are looked at in one call, in the order asked.
func TestHeadsComeInTheOrderAsked(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		s.store("bob", 3, 60)
		if s.cfg.Layout.Sharded {
			t.Skip("a group is one partition there")
		}
		logs, err := s.Heads(ctx, "u:carol", "u:bob", "u:dave")
		if err != nil || len(logs) != 3 || logs[0].Top != 0 || logs[1].Top != 3 || logs[2].Top != 0 {
			t.Errorf("%+v, %v", logs, err)
		}
		if logs, err = s.Heads(ctx); err != nil || len(logs) != 0 {
			t.Errorf("nothing asked: %+v, %v", logs, err)
		}
	})
}

// Redis' history changes again and again. Each time the epoch is another one and says where the one before ended; offsets go on, and
// eight are remembered.
func TestEpochRollsWithTheHistoryLine(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		var want []protocol.Position
		epoch := s.head("bob").Epoch
		for i := range uint64(11) {
			s.store("bob", 2, 60)
			want = append([]protocol.Position{{Epoch: epoch, Offset: 2 * (i + 1)}}, want...)
			l := s.roll("bob")
			if l.Epoch == epoch || l.Top != 2*(i+1) || l.First != 1 {
				t.Fatalf("roll %d: %+v", i, l)
			}
			epoch = l.Epoch
		}
		l := s.head("bob")
		if l.Epoch != epoch {
			t.Errorf("rolled without a reason")
		}
		if fmt.Sprint(l.Rolls) != fmt.Sprint(want[:8]) {
			t.Errorf("rolls %v, want %v", l.Rolls, want[:8])
		}
		p, err := s.After(ctx, "u:bob", 0, 100)
		s.wantPage(p, err, false, 1, 22)
	})
}

// The messages have expired, or an operator deleted the stream: the head still tells the position.
func TestHeadOutlivesItsMessages(t *testing.T) {
	eachRedis(t, func(t *testing.T, s *shelf) {
		s.store("bob", 5, 60)
		s.trim("bob", 4)
		if l := s.head("bob"); l.First != 4 || l.Top != 5 {
			t.Errorf("trimmed: %+v", l)
		}
		s.trim("bob", 100)
		if l := s.head("bob"); l.First != 6 || l.Top != 5 {
			t.Errorf("emptied: %+v", l)
		}
		p, err := s.After(ctx, "u:bob", 2, 10)
		if err != nil || len(p.Messages) != 0 || p.More || p.Continues(protocol.Position{Epoch: p.Epoch, Offset: 2}) {
			t.Errorf("%+v, %v", p, err)
		}
	})
}
