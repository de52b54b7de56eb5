//go:build !race

package gatewaytest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// contestToken is what the application gives a participant; signed with the secret the gateways know.
func contestToken(t *testing.T, secret, user, contest string) string {
	t.Helper()
	part := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	now := time.Now().Unix()
	claims := map[string]any{"iss": "exam", "aud": "chat", "sub": user, "iat": now - 1, "exp": now + 3600}
	if contest != "" {
		claims["meta"] = map[string]any{"contestId": contest}
	}
	signed := part(map[string]string{"alg": "HS256", "typ": "JWT"}) + "." + part(claims)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// The exam proctor of docs/proctor.md, from the files that deploy/ ships: who drops out is marked, however it happens, and nobody else.
func TestTheProctorMarksWhoDropsOut(t *testing.T) {
	t.Parallel()
	db, database := SharedMariaDB(t)
	shipped := filepath.Join(moduleRoot(t), "deploy", "proctor")
	read := func(name string) string {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range regexp.MustCompile(`(?s)CREATE TABLE (.*?);`).FindAllStringSubmatch(read(filepath.Join(shipped, "schema.sql")), -1) {
		must(db.Exec("CREATE TABLE " + database + "." + m[1]))
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	const dsn = "/run/secrets/contest-dsn"
	config := read(filepath.Join(shipped, "gateway.yaml"))
	if strings.Count(config, dsn) != 1 {
		t.Fatalf("the shipped configuration has no %s", dsn)
	}
	config = strings.Replace(config, dsn, write("dsn", db.DSN(database)+"\n"), 1)
	const secret = "a secret of more than thirty-two bytes"
	flags := append(slices.Clone(swift), "--config="+write("gateway.yaml", config), "--auth.issuers=exam", "--auth.audiences=chat",
		"--auth.secrets="+write("secret", secret), "--heartbeat.ping-after=1s", "--heartbeat.pong-wait=1s", "--drain.delay=0s", "--drain.window=100ms")

	r := StartRedis(t)
	a := StartGateway(t, r, Options{Name: "a", Flags: flags})
	killed := StartGateway(t, r, Options{Name: "killed", Flags: flags})
	drained := StartGateway(t, r, Options{Name: "drained", Flags: flags})
	cable := StartWire(t, a.Addr)
	sit := func(url, user, contest string, fields ...any) *Client {
		t.Helper()
		return Connect(t, url, user, append([]any{"token", contestToken(t, secret, user, contest)}, fields...)...)
	}
	participants := []string{
		"stays", "says goodbye", "closes the tab", "pulls the cable", "two tabs", "two contests", "killed", "killed, back", "drained", "replaced", "back in time",
		"back too late",
	}
	for _, user := range participants {
		must(db.Exec("INSERT INTO "+database+".contest_partner (user_id, contest_id) VALUES (?, '42'), (?, '43')", user, user))
	}
	marked := func() []string {
		rows, err := db.Rows("SELECT CONCAT(user_id, ' in ', contest_id) FROM " + database + ".contest_partner WHERE is_disabled ORDER BY 1")
		must(err)
		return rows
	}
	const leaves = websocket.CloseGoingAway
	closes := func(c *Client, code int) {
		t.Helper()
		must(c.WriteFrame(websocket.CloseMessage, websocket.FormatCloseMessage(code, "")))
		if _, err := c.WaitEnd(Deadline); err != nil {
			t.Fatal(err)
		}
	}

	clients := make(map[string]*Client)
	for _, user := range participants {
		url := a.WS()
		switch user {
		case "killed", "killed, back":
			url = killed.WS()
		case "drained":
			url = drained.WS()
		case "pulls the cable":
			url = "ws://" + cable.Addr + "/ws"
		}
		clients[user] = sit(url, user, "42", "deviceId", "laptop")
	}
	sit(drained.WS(), "no participant", "42").Cut()
	sit(a.WS(), "stays", "").Cut() // without a contest
	tab := sit(a.WS(), "two tabs", "42", "deviceId", "phone")
	other := sit(a.WS(), "two contests", "43", "deviceId", "phone")

	// Someone who was away for a while comes back: the mark is old by then.
	closes(clients["back too late"], leaves)
	wantWithin(t, 4*Deadline, func() bool { return slices.Equal(marked(), []string{"back too late in 42"}) })
	must(db.Exec("UPDATE " + database + ".contest_partner SET dropped_at = dropped_at - INTERVAL 31 SECOND WHERE is_disabled"))

	// The database is down while it all happens.
	db.Kill()
	sit(a.WS(), "back too late", "42", "deviceId", "laptop")
	must(clients["says goodbye"].Close())
	closes(clients["closes the tab"], leaves)
	closes(clients["two tabs"], leaves)
	closes(clients["two contests"], leaves)
	cable.Hold()
	closes(clients["back in time"], leaves)
	back := sit(a.WS(), "back in time", "42", "deviceId", "laptop")
	killed.Kill()
	sit(a.WS(), "killed, back", "42", "deviceId", "laptop")
	drained.Term()
	sit(a.WS(), "replaced", "42", "deviceId", "laptop")
	if code, err := drained.ExitCode(10 * Deadline); err != nil || code != 0 {
		t.Fatalf("the drained gateway: %d, %v", code, err)
	}
	lasts(scaled(3*time.Second, time.Minute))
	must(db.Restart())

	want := []string{"back too late in 42", "closes the tab in 42", "killed in 42", "pulls the cable in 42", "two contests in 42"}
	err := Poll(time.Minute, func() error {
		if got := marked(); !slices.Equal(got, want) {
			return fmt.Errorf("marked: %q, want %q", got, want)
		}
		return nil
	})
	must(err)
	// And now the last tabs go. That every event before was executed by then, the order says.
	closes(tab, leaves)
	closes(other, leaves)
	must(back.Close())
	want = append(want, "two contests in 43", "two tabs in 42")
	err = Poll(time.Minute, func() error {
		got := marked()
		rows, err := db.Rows("SELECT user_id FROM " + database + ".contest_connection ORDER BY 1")
		if err == nil && (!slices.Equal(got, want) || !slices.Equal(rows, []string{"back too late", "killed, back", "replaced", "stays"})) {
			err = fmt.Errorf("marked: %q, want %q; connected: %q", got, want, rows)
		}
		return err
	})
	must(err)
	causes, err := db.Rows("SELECT drop_cause, COUNT(*) FROM " + database + ".contest_partner WHERE is_disabled GROUP BY 1 ORDER BY 1")
	if err != nil || !slices.Equal(causes, []string{"client_close 5", "gateway_lost 1", "ping_timeout 1"}) {
		t.Errorf("causes: %q, %v", causes, err)
	}
}
