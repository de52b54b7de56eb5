package auth

import (
	"context"
	"testing"

	"chatgate/internal/protocol"
)

func identityOf(t *testing.T, claims any) *Identity {
	t.Helper()
	id, err := newVerifier(t, settings(t)).Verify(context.Background(), []byte(mint(hs, claims, keyring().secret)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestRoomsAndWatchNameWhatIsAllowed(t *testing.T) {
	id := identityOf(t, but(object{"rooms": []string{"lobby", "team-7/*", "a*b"}, "watch": []string{}}))
	for room, want := range map[protocol.RoomID]bool{
		"lobby": true, "lobby2": false, "Lobby": false, "team-7/": true, "team-7/x": true, "team-7": false, "team-70/x": false,
		"a*b": true, "axb": false, "": false, "*": false,
	} {
		if got := id.Grant.AllowsRoom(room); got != want {
			t.Errorf("room %q: %v", room, got)
		}
	}
	if id.Grant.AllowsWatch("bob") {
		t.Error("an empty list allows bob")
	}
	if id := identityOf(t, but(object{"watch": []string{"*"}})); !id.Grant.AllowsWatch("bob") || !id.Grant.AllowsRoom("x") {
		t.Error("a star does not allow all, or a claim of one kind limits the other")
	}
	if id := identityOf(t, good()); !id.Grant.AllowsWatch("bob") || !id.Grant.AllowsRoom("x") {
		t.Error("a token without these claims allows less than the gateway does")
	}
	if g := (&Grant{}); !g.AllowsWatch("bob") || !g.AllowsRoom("x") {
		t.Error("the zero Grant allows less than the gateway does")
	}
}

// Whoever signs a token can take away, and never give more than the operator does.
func TestLimitsOnlyLower(t *testing.T) {
	id := identityOf(t, but(object{"limits": object{"messageRate": 5, "rooms": 0}}))
	type result struct {
		n       int
		limited bool
	}
	of := func(n int, limited bool) result { return result{n, limited} }
	for name, c := range map[string]struct{ got, want result }{
		"lower than the setting":  {of(id.Grant.MessageRate(100)), result{5, true}},
		"higher than the setting": {of(id.Grant.MessageRate(3)), result{3, true}},
		"no setting":              {of(id.Grant.MessageRate(0)), result{5, true}},
		"nothing at all":          {of(id.Grant.MaxRooms(500)), result{0, true}},
		"nothing, no setting":     {of(id.Grant.MaxRooms(0)), result{0, true}},
		"no claim":                {of(id.Grant.MaxWatches(1000)), result{1000, true}},
		"neither":                 {of(id.Grant.MaxWatches(0)), result{0, false}},
	} {
		if c.got != c.want {
			t.Errorf("%s: %+v, want %+v", name, c.got, c.want)
		}
	}
}
