//go:build !secondpass

package auth

import (
	"strings"
	"testing"
	"time"

	"chatgate/internal/protocol"
)

func wordOf(t *testing.T, w Word) *Identity {
	t.Helper()
	id, err := w.Identity(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Token and backend must both allow; of numbers and ends the lower counts, and of meta the backend's.
func TestATokenUnderAWordAllowsWhatBothAllow(t *testing.T) {
	now := time.Now()
	token := wordOf(t, Word{Rooms: []byte(`["team.*","hall"]`), Limits: []byte(`{"rooms":5,"messageRate":3}`), Meta: []byte(`{"a":1}`), ExpiresAt: now.Add(time.Hour).UnixMilli()})
	token.TokenID = "7"
	word := wordOf(t, Word{Rooms: []byte(`["hall","lobby"]`), Watch: []byte(`["bob"]`), Limits: []byte(`{"rooms":2,"watches":0}`), Meta: []byte(`{"b":2}`), ExpiresAt: now.Add(time.Minute).UnixMilli()})
	both := token.Under(word)
	for room, want := range map[protocol.RoomID]bool{"hall": true, "team.1": false, "lobby": false} {
		if both.Grant.AllowsRoom(room) != want {
			t.Errorf("%s allowed: %v", room, !want)
		}
	}
	if !both.Grant.AllowsWatch("bob") || both.Grant.AllowsWatch("carol") {
		t.Error("who may be watched")
	}
	rooms, _ := both.Grant.MaxRooms(10)
	rate, _ := both.Grant.MessageRate(0)
	watches, limited := both.Grant.MaxWatches(10)
	if rooms != 2 || rate != 3 || watches != 0 || !limited {
		t.Errorf("%d rooms, %d messages, %d watches", rooms, rate, watches)
	}
	if both.Meta != `{"b":2}` || both.Expires != word.Expires || both.TokenID != "7" {
		t.Errorf("%+v", both)
	}
	if token.Grant.also != nil || !token.Grant.AllowsRoom("team.1") {
		t.Error("the token's own identity was changed")
	}
	if token.Under(nil) != token || (*Identity)(nil).Under(word) != word {
		t.Error("one of them alone isn't itself")
	}
}

func TestAWordThatCanNotBeUnderstoodIsRefused(t *testing.T) {
	name := func(s string) *string { return &s }
	for what, w := range map[string]Word{
		"empty name": {User: name("")}, "name with a newline": {User: name("a\nb")}, "name with a broken character": {User: name("a\ufffd")}, "meta a list": {Meta: []byte(`[]`)},
		"rooms null": {Rooms: []byte(`null`)}, "watch null": {Watch: []byte(`null`)}, "limits null": {Limits: []byte(`null`)}, "rooms a text": {Rooms: []byte(`"hall"`)},
		"over": {ExpiresAt: time.Now().Add(-time.Second).UnixMilli()}, "in seconds": {ExpiresAt: time.Now().Add(time.Hour).Unix()},
	} {
		if id, err := w.Identity(time.Now()); err == nil || strings.Contains(err.Error(), "token") {
			t.Errorf("%s: %+v, %v", what, id, err) // who wrote it has no token to look at
		}
	}
	if id := wordOf(t, Word{Meta: []byte(`null`)}); id.Meta != "" || !id.ExpiresAt().IsZero() || !id.Grant.AllowsRoom("any") {
		t.Errorf("%+v", id)
	}
}
