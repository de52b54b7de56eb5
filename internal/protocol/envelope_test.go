package protocol

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// messages builds a stored envelope as lua/send.lua does: by concatenation alone.
func messages(number uint64, records ...Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\x01m%d\n", number)
	for _, r := range records {
		fmt.Fprintf(&b, "%s %d %d %d\n%s%s", r.Epoch, r.Offset, len(r.Address), len(r.Frame), r.Address, r.Frame)
	}
	return b.String()
}

// readAll reads the records of an envelope until its end or its cut.
func readAll(r Records) (all []Record, err error) {
	for {
		var rec Record
		ok, err := r.Next(&rec)
		if err != nil || !ok {
			return all, err
		}
		all = append(all, rec)
	}
}

// Addresses and frames may hold whatever separates records: lengths say where they end.
var awkward = []Record{
	{Address: "u:bob", Epoch: "9fK2mQx7aZ", Offset: 1, Frame: `{"type":"message","id":"m1"`},
	{Address: "r:a b\n1 2 3 4\n", Epoch: "e", Offset: math.MaxUint32, Frame: "\x01m7\n\x1f "},
	{Address: "u:алиса", Epoch: "e", Offset: 9007199254740991, Frame: strings.Repeat("x", 70_000)},
	{Address: "u:bob", Epoch: "AzL8n0Qp4Rt", Offset: 0, Frame: "{"},
}

func TestStoredEnvelopeRoundTrips(t *testing.T) {
	for name, records := range map[string][]Record{
		"none":    nil,
		"one":     awkward[:1],
		"awkward": awkward,
	} {
		t.Run(name, func(t *testing.T) {
			kind, body, err := OpenEnvelope(messages(42, records...))
			if err != nil || kind != EnvelopeMessages {
				t.Fatalf("kind %q, %v", kind, err)
			}
			number, r, err := OpenMessages(body)
			if err != nil || number != 42 {
				t.Fatalf("number %d, %v", number, err)
			}
			if got, err := readAll(r); err != nil || !slices.Equal(got, records) {
				t.Errorf("got %+v, %v, want %+v", got, err, records)
			}
		})
	}
}

// An ephemeral record has no position.
func TestEphemeralEnvelopeRoundTrips(t *testing.T) {
	payload := AppendEphemeralHeader(nil)
	var want []Record
	for _, r := range awkward {
		payload = AppendEphemeralRecord(payload, r.Address, []byte(r.Frame))
		want = append(want, Record{Address: r.Address, Frame: r.Frame})
	}
	kind, body, err := OpenEnvelope(string(payload))
	if err != nil || kind != EnvelopeEphemeral {
		t.Fatalf("kind %q, %v", kind, err)
	}
	if got, err := readAll(OpenEphemeral(body)); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

// Wherever a stored envelope is cut, what is read before the cut is whole, and the cut is noticed unless it lies exactly
// between two records: then nothing tells, and the channel's number will.
func TestACutEnvelopeIsNoticed(t *testing.T) {
	records := []Record{awkward[0], awkward[1], awkward[3]}
	whole := messages(7, records...)
	ends := map[int]int{} // length of the envelope -> records it holds
	for i := range len(records) + 1 {
		ends[len(messages(7, records[:i]...))] = i
	}
	for n := range len(whole) {
		_, body, err := OpenEnvelope(whole[:n])
		if n < 2 {
			if !errors.Is(err, ErrEnvelope) {
				t.Errorf("cut at %d: %v", n, err)
			}
			continue
		}
		_, r, err := OpenMessages(body)
		if n < len("\x01m7\n") {
			if !errors.Is(err, ErrEnvelope) {
				t.Errorf("cut at %d: %v", n, err)
			}
			continue
		}
		got, err := readAll(r)
		if !slices.Equal(got, records[:len(got)]) {
			t.Fatalf("cut at %d: read %+v", n, got)
		}
		if full, between := ends[n]; between {
			if err != nil || len(got) != full {
				t.Errorf("cut between records at %d: %d records, %v", n, len(got), err)
			}
		} else if !errors.Is(err, ErrEnvelope) {
			t.Errorf("cut at %d: %d records and no error", n, len(got))
		}
	}
}

func TestGarbageIsNoEnvelope(t *testing.T) {
	for name, payload := range map[string]string{
		"nothing":         "",
		"a version alone": "\x01",
		"version 0":       "\x00m1\n",
		"version 2":       "\x02m1\n",
		"an unknown kind": "\x01x",
		"text":            "hello",
		"a frame":         `{"type":"message"}`,
	} {
		if k, _, err := OpenEnvelope(payload); !errors.Is(err, ErrEnvelope) {
			t.Errorf("%s: kind %q, %v", name, k, err)
		}
	}
}

func TestGarbageIsNoRecord(t *testing.T) {
	for name, rest := range map[string]string{
		"no fields":           "\n",
		"no epoch":            " 1 1 0\nu",
		"no offset":           "e  1 0\nu",
		"a negative offset":   "e -1 1 0\nu",
		"a signed length":     "e 1 +1 0\nu",
		"a hexadecimal":       "e 1 0x1 0\nu",
		"a float":             "e 1 1.0 0\nu",
		"letters":             "e 1 one 0\nu",
		"address beyond end":  "e 1 2 0\nu",
		"frame beyond end":    "e 1 1 2\nux",
		"lengths that wrap":   "e 1 9999999999999999999 9999999999999999999\nux",
		"a length of 2^64+1":  "e 1 18446744073709551617 0\nu",
		"an offset of 2^64":   "e 18446744073709551616 1 0\nu",
		"no end of the head":  "e 1 1 0",
		"a head without body": "e 1 1 0\n",
	} {
		rec := Record{Address: "u:before"}
		r := OpenEphemeral(rest)
		ok, err := r.Next(&rec)
		if ok || !errors.Is(err, ErrEnvelope) {
			t.Errorf("%s: %v, %v, %+v", name, ok, err, rec)
		}
		if rec.Address != "u:before" {
			t.Errorf("%s: the record was touched: %+v", name, rec)
		}
		// A caller that goes on after the error must not be led on.
		if ok, err := r.Next(&rec); ok || err == nil {
			t.Errorf("%s: goes on after the cut", name)
		}
	}
	for name, body := range map[string]string{
		"no number": "\n", "letters": "x\n", "negative": "-1\n", "2^64": "18446744073709551616\n", "no end": "12", "spaces": " 1\n", "empty": "",
	} {
		if _, _, err := OpenMessages(body); !errors.Is(err, ErrEnvelope) {
			t.Errorf("number %s: %v", name, err)
		}
	}
}

func TestPulseRoundTrips(t *testing.T) {
	for body, want := range map[string]Pulse{
		"0 0 none":                            {Line: "none"},
		"17 15000 8f2d1b7c9a0e3f45":           {Number: 17, Own: 15000, Line: "8f2d1b7c9a0e3f45"},
		"18446744073709551615 1 0000000000ff": {Number: math.MaxUint64, Own: 1, Line: "0000000000ff"},
	} {
		if got, err := OpenPulse(body); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", body, got, err, want)
		}
	}
	for _, body := range []string{"", "1", "1 2", "1 2 3 4", "x 2 line", "1 x line", "-1 2 line", "18446744073709551616 1 line"} {
		if got, err := OpenPulse(body); !errors.Is(err, ErrEnvelope) {
			t.Errorf("%q: %+v, %v", body, got, err)
		}
	}
}

// A version that notes no time ends with who it was.
func TestKickRoundTrips(t *testing.T) {
	for body, want := range map[string]Kick{
		"c1\x1f1700000000000000\x1f4502\x1freplaced\x1fc2": {Conn: "c1", Fence: 1700000000000000, Code: CloseReplaced, Reason: "replaced", By: "c2"},
		"c1\x1f0\x1f4503\x1f\x1f":                          {Conn: "c1", Code: CloseKicked},
		"c1\x1f1\x1f4503\x1fkicked\x1fops desk\x1f17000":   {Conn: "c1", Fence: 1, Code: CloseKicked, Reason: "kicked", By: "ops desk", At: 17000},
	} {
		if got, err := OpenKick(body); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", body, got, err, want)
		}
	}
	for _, body := range []string{"", "c1", "c1\x1f1\x1f4503\x1fkicked", "c1\x1fx\x1f4503\x1fr\x1fb", "c1\x1f1\x1fx\x1fr\x1fb", "c1\x1f1\x1f65536\x1fr\x1fb", "c1\x1f-1\x1f1\x1fr\x1fb", "c1\x1f1\x1f1\x1fr\x1fb\x1f", "c1\x1f1\x1f1\x1fr\x1fb\x1f1\x1f2"} {
		if got, err := OpenKick(body); !errors.Is(err, ErrEnvelope) {
			t.Errorf("%q: %+v, %v", body, got, err)
		}
	}
}

func TestStateEnvelopeIsReadExactly(t *testing.T) {
	number, got, err := OpenState("17\na b\x1foffline\x1fe1\x1f4\x1f1700000000000")
	want := UserState{User: "a b", State: StateOffline, Epoch: "e1", N: 4, Since: 1700000000000}
	if number != 17 || got != want || err != nil {
		t.Errorf("%d %+v, %v, want %+v", number, got, err, want)
	}
	if v, seen := got.Version(), got.LastSeen(); v != "e1.4" || seen != 1700000000000 {
		t.Errorf("version %s, last seen %d", v, seen)
	}
	if s := (&UserState{State: StateOnline, Epoch: "e1", N: 1, Since: 5}); s.LastSeen() != 0 {
		t.Errorf("online, and last seen at %d", s.LastSeen())
	}
	if s := (&UserState{State: StateOffline}); s.Version() != "" {
		t.Errorf("a user nobody knows has the version %q", s.Version())
	}
	for name, body := range map[string]string{
		"nothing":        "",
		"without number": "a\x1fonline\x1fe1\x1f1\x1f1",
		"bad number":     "x\na\x1fonline\x1fe1\x1f1\x1f1",
		"cut":            "1\na\x1fonline\x1fe1\x1f1",
		"no user":        "1\n\x1fonline\x1fe1\x1f1\x1f1",
		"no epoch":       "1\na\x1fonline\x1f\x1f1\x1f1",
		"unknown state":  "1\na\x1faway\x1fe1\x1f1\x1f1",
		"bad n":          "1\na\x1fonline\x1fe1\x1f-1\x1f1",
		"bad time":       "1\na\x1fonline\x1fe1\x1f1\x1fx",
		"one field more": "1\na\x1fonline\x1fe1\x1f1\x1f1\x1f",
	} {
		if _, got, err := OpenState(body); !errors.Is(err, ErrEnvelope) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// Names of rooms and users hold no control character, so nothing but the ends of lines separates them.
func TestMembersRoundTrip(t *testing.T) {
	for body, want := range map[string]MembersChange{
		"lobby\n0":                     {Room: "lobby"},
		"lobby\n12\n+alice":            {Room: "lobby", Count: 12, Changes: "\n+alice"},
		"a +b\n30000\n-+x y\n+-\n+жук": {Room: "a +b", Count: 30000, Changes: "\n-+x y\n+-\n+жук"},
	} {
		got, err := OpenMembers(body)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", body, got, err, want)
		}
	}
	var read []string
	for rest := "\n-+x y\n+-\n+жук"; rest != ""; {
		user, joined, after, ok := NextChange(rest)
		if !ok {
			t.Fatalf("%q is no change", rest)
		}
		read, rest = append(read, fmt.Sprint(user, " ", joined)), after
	}
	if want := []string{"+x y false", "- true", "жук true"}; !slices.Equal(read, want) {
		t.Errorf("read %q, want %q", read, want)
	}
	for _, body := range []string{
		"", "lobby", "lobby\n", "\n1", "lobby\nx", "lobby\n-1", "lobby\n4294967296", "lobby\n1\n", "lobby\n1\n+", "lobby\n1\nalice",
		"lobby\n1\n+a\n", "lobby\n1\n\n+a", "lobby\n1\n+a\n-",
	} {
		if got, err := OpenMembers(body); !errors.Is(err, ErrEnvelope) {
			t.Errorf("%q: %+v, %v", body, got, err)
		}
	}
}

// An epoch is a word: scripts and envelopes separate it by spaces and colons. Two are the same with a chance of 2^-64.
func TestEpochsAreShortWordsAndDiffer(t *testing.T) {
	seen := make(map[string]bool)
	for range 10_000 {
		e := NewEpoch()
		if len(e) == 0 || len(e) > 11 || strings.Trim(e, epochAlphabet) != "" {
			t.Fatalf("epoch %q", e)
		}
		if seen[e] {
			t.Fatalf("epoch %q came twice", e)
		}
		seen[e] = true
	}
}

// Whatever arrives on a channel: no panic, no record outside the payload, and what was read can be written again as it was.
func FuzzEnvelope(f *testing.F) {
	f.Add(messages(42, awkward[0], awkward[1]))
	f.Add(messages(0))
	f.Add(string(AppendEphemeralRecord(AppendEphemeralHeader(nil), "u:bob", []byte(`{"type":"message"`))))
	f.Add("\x01p17 3 8f2d1b7c9a0e3f45")
	f.Add("\x01kc1\x1f17\x1f4502\x1freplaced\x1fc2")
	f.Add(string(AppendEveryone(nil, &MessageHead{ID: []byte("m"), From: "ops", Content: []byte("1")})))
	f.Add("\x01s17\nalice\x1fonline\x1fe\x1f3\x1f1700000000000")
	f.Add("\x01jlobby\n2\n+alice\n-bob")
	for payload := range questions {
		f.Add(payload)
	}
	for payload := range answers {
		f.Add(payload)
	}
	f.Add("\x01m1\ne 1 9999999999999999999 1\nxx")
	f.Add("\x02m1\n")
	f.Fuzz(func(t *testing.T, payload string) {
		kind, body, err := OpenEnvelope(payload)
		if err != nil {
			return
		}
		switch kind {
		case EnvelopeMessages:
			number, r, err := OpenMessages(body)
			if err == nil {
				fuzzRecords(t, r, body[strings.IndexByte(body, '\n')+1:])
				_ = strconv.FormatUint(number, 10)
			}
		case EnvelopeEphemeral:
			fuzzRecords(t, OpenEphemeral(body), body)
		case EnvelopePulse:
			if p, err := OpenPulse(body); err == nil {
				again, err := OpenPulse(fmt.Sprintf("%d %d %s", p.Number, p.Own, p.Line))
				if err != nil || again != p {
					t.Errorf("%q: %+v, then %+v, %v", body, p, again, err)
				}
			}
		case EnvelopeState:
			if number, s, err := OpenState(body); err == nil {
				n, again, err := OpenState(fmt.Sprintf("%d\n%s\x1f%s\x1f%s\x1f%d\x1f%d", number, s.User, s.State, s.Epoch, s.N, s.Since))
				if err != nil || n != number || again != s {
					t.Errorf("%q: %+v, then %+v, %v", body, s, again, err)
				}
			}
		case EnvelopeEveryone:
			if frame, err := OpenEveryone(body); err == nil && frame != body {
				t.Errorf("%q became %q", body, frame)
			}
		case EnvelopeMembers:
			if c, err := OpenMembers(body); err == nil {
				again, err := OpenMembers(fmt.Sprintf("%s\n%d%s", c.Room, c.Count, c.Changes))
				if err != nil || again != c {
					t.Errorf("%q: %+v, then %+v, %v", body, c, again, err)
				}
			}
		case EnvelopeQuestion:
			if q, err := OpenQuestion(body); err == nil {
				again, err := OpenQuestion(string(AppendQuestion(nil, &q)[2:]))
				if err != nil || again != q {
					t.Errorf("%q: %+v, then %+v, %v", body, q, again, err)
				}
			}
		case EnvelopeAnswer:
			if a, err := OpenAnswer(body); err == nil {
				again, err := OpenAnswer(string(AppendAnswer(nil, &a)[2:]))
				if err != nil || again != a {
					t.Errorf("%q: %+v, then %+v, %v", body, a, again, err)
				}
			}
		case EnvelopeKick:
			if k, err := OpenKick(body); err == nil {
				again, err := OpenKick(fmt.Sprintf("%s\x1f%d\x1f%d\x1f%s\x1f%s\x1f%d", k.Conn, k.Fence, k.Code, k.Reason, k.By, k.At))
				if err != nil || again != k {
					t.Errorf("%q: %+v, then %+v, %v", body, k, again, err)
				}
			}
		}
	})
}

// fuzzRecords checks that the records use up the input byte by byte, in order.
func fuzzRecords(t *testing.T, r Records, input string) {
	t.Helper()
	read := 0
	for {
		before := len(r.rest)
		var rec Record
		ok, err := r.Next(&rec)
		if err != nil {
			if len(r.rest) != before {
				t.Fatalf("a cut record was consumed: %d bytes of %d", before-len(r.rest), before)
			}
			return
		}
		if !ok {
			if read != len(input) {
				t.Fatalf("read %d bytes of %d, and says it is the end", read, len(input))
			}
			return
		}
		read += before - len(r.rest)
		if want := string(rec.Address) + rec.Frame; !strings.HasSuffix(input[:read], want) {
			t.Fatalf("record %+v is not what stands before byte %d of %q", rec, read, input)
		}
	}
}
