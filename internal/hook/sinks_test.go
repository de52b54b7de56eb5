//go:build !secondpass

package hook

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

func someEvents(from, to int) []*Event {
	var all []*Event
	for i := from; i < to; i++ {
		all = append(all, &Event{ID: "all-" + strconv.Itoa(i) + "-0", N: uint64(i), Type: "connect", User: "alice", Ms: int64(i)})
	}
	return all
}

// wantLines wants the numbers of events, one line of JSON for each.
func wantLines(t *testing.T, path string, from, to int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) != to-from {
		t.Fatalf("%s has %d lines, want %d", path, len(lines), to-from)
	}
	for i, line := range lines {
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.N != uint64(from+i) {
			t.Errorf("line %d: %s (%v)", i, line, err)
		}
	}
}

// Whoever rotates the file renames it, or takes it away. The next batch is in a new one, and nothing is lost or torn.
func TestARotatedFileIsOpenedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	f := newFile(path)
	defer f.close()
	put := func(from, to int) {
		t.Helper()
		if taken, _, err := f.deliver(context.Background(), someEvents(from, to)); err != nil || taken != to-from {
			t.Fatalf("%d taken, %v", taken, err)
		}
	}
	put(0, 10)
	put(10, 20)
	wantLines(t, path, 0, 20)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	put(20, 25)
	wantLines(t, path+".1", 0, 20)
	wantLines(t, path, 20, 25)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	put(25, 30)
	wantLines(t, path, 25, 30)
	f.torn = true // as a full disk leaves it
	put(30, 31)
	text, _ := os.ReadFile(path)
	if !strings.Contains(string(text), "\n\n") {
		t.Error("half a line was continued")
	}
	if err := os.Chmod(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	g := newFile(filepath.Join(path, "below", "a", "file"))
	if _, _, err := g.deliver(context.Background(), someEvents(0, 1)); err == nil {
		t.Error("written to nowhere")
	}
}

// Whoever wrote to the file before was killed in the middle of a line. What comes behind it is a line of its own, and where there is none
// nothing is put between.
func TestAFileThatEndsInHalfALineIsGoneOnWith(t *testing.T) {
	const half = `{"id":"all-7-0","n":`
	for before, want := range map[string]string{half: half + "\n", half + "\n": half + "\n", "": ""} {
		path := filepath.Join(t.TempDir(), "events.jsonl")
		if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		f := newFile(path)
		for i := range 2 {
			if _, _, err := f.deliver(context.Background(), someEvents(i, i+1)); err != nil {
				t.Fatal(err)
			}
			want = string(someEvents(i, i+1)[0].appendJSON([]byte(want))) + "\n"
		}
		_ = f.close()
		if text, _ := os.ReadFile(path); string(text) != want {
			t.Errorf("%q, want %q", text, want)
		}
	}
}

// A pipe and a device can't be synced, and take events all the same: once.
func TestAPipeIsAFileToo(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, path := range []string{"/dev/null", fmt.Sprintf("/dev/fd/%d", w.Fd())} {
		f := newFile(path)
		if taken, _, err := f.deliver(context.Background(), someEvents(3, 4)); err != nil || taken != 1 {
			t.Errorf("%s: %d taken, %v", path, taken, err)
		}
		_ = f.close()
	}
	_ = w.Close()
	if text, err := io.ReadAll(r); err != nil || string(text) != string(someEvents(3, 4)[0].appendJSON(nil))+"\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// Events are mirrored into a stream, of the gateways' Redis or of another one, and in their order.
func TestEventsAreMirroredIntoAStream(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w := newWorld(t, r)
		there := gatewaytest.StartEmbedded(t)
		here, other := sinkNamed("here", Filter{}), sinkNamed("other", Filter{})
		here.Redis = &RedisConfig{Stream: "mirror"}
		other.Redis = &RedisConfig{Stream: "mirror", URL: there.URL, Kept: 1000}
		w.gateway("a", here, other)
		w.happenEach(2, 0, 40)
		for name, in := range map[string]*gatewaytest.Redis{"here": r, "there": there} {
			w.eventually(func() error {
				entries, err := in.Client().XRange(context.Background(), "mirror", "-", "+").Result()
				if err != nil || len(entries) != 80 {
					return fmt.Errorf("%s: %d entries, %v", name, len(entries), err)
				}
				next := make(map[string]int)
				for _, x := range entries {
					var e Event
					if err := json.Unmarshal([]byte(x.Values["event"].(string)), &e); err != nil {
						t.Fatal(err)
					}
					if e.ID != x.Values["id"] || e.Type != x.Values["type"] || e.User != x.Values["user"] || string(e.Meta) != strconv.Itoa(next[e.User]) {
						t.Fatalf("%v after %d", x.Values, next[e.User])
					}
					next[e.User]++
				}
				return nil
			})
		}
	})
}

// What the configuration of a sink may get wrong is said, with the key's name.
func TestSinksThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*SinkConfig)
		word   string
	}{
		"no name":            {func(s *SinkConfig) { s.Name = "" }, "name"},
		"a name with spaces": {func(s *SinkConfig) { s.Name = "a b" }, "name"},
		"nothing":            {func(s *SinkConfig) { s.Webhook = nil }, "exactly one"},
		"two":                {func(s *SinkConfig) { s.File = &FileConfig{Path: "-"} }, "exactly one"},
		"no path":            {func(s *SinkConfig) { s.Webhook, s.File = nil, &FileConfig{} }, "file.path"},
		"a stream of ours":   {func(s *SinkConfig) { s.Webhook, s.Redis = nil, &RedisConfig{Stream: "cg:{cmd}:in"} }, "redis.stream"},
		"no stream":          {func(s *SinkConfig) { s.Webhook, s.Redis = nil, &RedisConfig{} }, "redis.stream"},
		"an unknown type":    {func(s *SinkConfig) { s.Types = []string{"disconect"} }, "disconect"},
		"an unknown kind":    {func(s *SinkConfig) { s.Kinds = []string{"dropped"} }, "dropped"},
		"an unknown cause":   {func(s *SinkConfig) { s.Causes = []string{"clientclose"} }, "clientclose"},
		"another scheme":     {func(s *SinkConfig) { s.Webhook.URL = "ftp://example.com/" }, "webhook.url"},
		"a password":         {func(s *SinkConfig) { s.Webhook.URL = "https://a:b@example.com/" }, "webhook.url"},
		"a short secret":     {func(s *SinkConfig) { s.Webhook.Secret = "hush" }, "webhook.secret"},
		"no base64":          {func(s *SinkConfig) { s.Webhook.Secret = "whsec_!!!!" }, "webhook.secret"},
		"allowed nonsense":   {func(s *SinkConfig) { s.Webhook.Allow = []string{"everything"} }, "webhook.allow"},
		"no dsn":             {func(s *SinkConfig) { s.Webhook, s.MySQL = nil, &MySQLConfig{DSN: "x", Statement: "DO 1"} }, "mysql.dsn"},
		"no statement":       {func(s *SinkConfig) { s.Webhook, s.MySQL = nil, &MySQLConfig{DSN: "a@tcp(b:1)/c"} }, "statement"},
		"spliced": {func(s *SinkConfig) {
			s.Webhook, s.MySQL = nil, &MySQLConfig{DSN: "a@tcp(b:1)/c?interpolateParams=true", Statement: "DO 1"}
		}, "interpolateParams"},
		"a big batch": {func(s *SinkConfig) { s.Batch = 10_000 }, "batch"},
		"no pause":    {func(s *SinkConfig) { s.RetryAfter = 0 }, "retry-after"},
	} {
		t.Run(name, func(t *testing.T) {
			s := sinkNamed("web", Filter{})
			s.Webhook = &WebhookConfig{URL: "https://example.com/hook", Secret: secret}
			if err := s.Validate(); err != nil {
				t.Fatal(err)
			}
			tc.change(&s)
			if err := s.Validate(); err == nil || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("%v, want something about %s", err, tc.word)
			}
		})
	}
}

// Nobody reads the pipe that a sink writes to. The gateway ends all the same, and so do the other sinks.
func TestAWriteThatStandsStillIsLeftBehind(t *testing.T) {
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Skipf("no pipes here: %v", err)
	}
	s := sinkNamed("lines", Filter{})
	s.File = &FileConfig{Path: pipe}
	a := w.gateway("a", s)
	w.happen("alice")
	w.eventually(func() error {
		if a.hooks.Stats()[0].Backlog != 1 {
			return fmt.Errorf("nothing is on its way: %+v", a.hooks.Stats()[0])
		}
		return nil
	})
	stopped := make(chan struct{})
	go func() {
		a.stop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Error("the gateway does not end")
	}
	// So that nothing is left of it behind the test.
	if reader, err := os.OpenFile(pipe, os.O_RDONLY, 0); err == nil {
		_ = reader.Close()
	}
	<-stopped
}

func quotedJSON(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestPlainHTTPBeyondThisMachineIsSaid(t *testing.T) {
	for u, want := range map[string]bool{
		"https://example.com/": false, "http://example.com/": true, "http://10.0.0.1/": true, "http://127.0.0.1:1/": false, "http://[::1]/": false,
		"http://localhost/": false,
	} {
		if s := (SinkConfig{Webhook: &WebhookConfig{URL: u}}); s.PlainText() != want {
			t.Errorf("%s: %v", u, !want)
		}
	}
}
