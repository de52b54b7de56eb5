package gateway

import (
	"slices"
	"testing"

	"chatgate/internal/api"
	"chatgate/internal/hook"
)

// What a reload takes over is what is marked, and nothing else: of every setting that differs one of the two is said.
func TestAReloadTakesOverWhatIsMarked(t *testing.T) {
	old := DefaultConfig()
	old.Auth.Issuers, old.Auth.Audiences, old.Auth.Secrets = []string{"id"}, []string{"chat"}, []string{"a"}
	old.TLS = TLSConfig{Cert: "a", Key: "b"}
	want := old
	want.Limits.ConnectRate, want.Limits.MessageRate, want.Limits.OpenRooms = 7, 8, true
	want.Limits.MaxConnections = 9
	want.Auth.Secrets = []string{"a", "b"}
	want.TLS.Cert = "c"
	want.API.Keys = []api.Key{{Name: "k"}}
	from := want
	from.Name, from.Limits.FrameBytes, from.Auth.Issuers = "other", 2048, []string{"id", "more"}
	from.Events.Sinks = []hook.SinkConfig{{Name: "s"}}
	next, changed, restart := old.takeOver(from)
	if got := []string{"auth.secrets", "tls.cert", "limits.connect-rate", "limits.max-connections", "limits.message-rate", "limits.open-rooms", "api.keys"}; !slices.Equal(changed, got) {
		t.Errorf("taken over: %v", changed)
	}
	if got := []string{"name", "auth.issuers", "limits.frame-bytes", "events.sinks"}; !slices.Equal(restart, got) {
		t.Errorf("needs a restart: %v", restart)
	}
	if _, changed, restart := want.takeOver(next); len(changed)+len(restart) > 0 {
		t.Errorf("what was taken over differs in %v and %v", changed, restart)
	}

	// A list that lost all its keys would open the API.
	without := next
	without.API.Keys = nil
	if kept, changed, restart := next.takeOver(without); len(changed) > 0 || !slices.Equal(restart, []string{"api.keys"}) || len(kept.API.Keys) != 1 {
		t.Errorf("without keys %v are taken over, and %v need a restart", changed, restart)
	}

	// A list without anything in it is the same as none.
	none, empty := next, next
	none.API.Keys, none.Events.Sinks, none.Auth.Keys, none.TrustedProxies = nil, nil, nil, nil
	empty.API.Keys, empty.Events.Sinks, empty.Auth.Keys, empty.TrustedProxies = []api.Key{}, []hook.SinkConfig{}, []string{}, []string{}
	for name, pair := range map[string][2]Config{"emptied": {none, empty}, "taken out": {empty, none}} {
		if _, changed, restart := pair[0].takeOver(pair[1]); len(changed)+len(restart) > 0 {
			t.Errorf("%s: %v changed, and %v need a restart", name, changed, restart)
		}
	}

	// What is off isn't begun by a reload, nor ended.
	for name, pair := range map[string][2]Config{"begun": {DefaultConfig(), old}, "ended": {old, DefaultConfig()}} {
		if _, changed, _ := pair[0].takeOver(pair[1]); len(changed) > 0 {
			t.Errorf("TLS and tokens %s by %v", name, changed)
		}
	}
}

// A setting is marked where a part of the gateway takes it.
func TestEveryMarkedSettingIsKnown(t *testing.T) {
	var marked []string
	for _, s := range settingsOf(new(Config)) {
		if s.Reloads() {
			marked = append(marked, s.Name)
		}
	}
	taken := []string{
		"auth.keys", "auth.secrets", "tls.cert", "tls.key", "limits.connect-rate", "limits.connect-rate-per-ip", "limits.max-connections",
		"limits.message-rate", "limits.frame-rate", "limits.byte-rate", "limits.new-addresses", "limits.connections-per-user",
		"limits.rooms-per-connection", "limits.open-rooms", "limits.watches-per-connection",
	}
	if !slices.Equal(marked, taken) {
		t.Errorf("marked %v, taken %v", marked, taken)
	}
}
