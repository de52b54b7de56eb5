//go:build !secondpass

package hook

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"chatgate/internal/gatewaytest"
)

func askOnce(t *testing.T, to string, allow ...string) (*Decision, error) {
	t.Helper()
	d, err := NewDecider(DeciderConfig{
		Asked: map[Question]Asked{AskJoin: {URL: to}}, Secret: secret, Allow: allow, Timeout: 5 * time.Second, MaxInFlight: 1,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d.Ask(&Inquiry{Question: AskJoin}, nil)
}

// The way to a backend is guarded as a webhook's is: by the address that is connected to, whatever the name was, and no redirect leads on.
func TestNoBackendIsAskedThatIsNotAllowed(t *testing.T) {
	var reached atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached.Add(1)
		_, _ = io.WriteString(w, `{"allow":true}`)
	}))
	defer server.Close()
	port := server.Listener.Addr().(*net.TCPAddr).Port
	hosts := []string{
		"127.0.0.1", "127.9.9.9", "localhost", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "2130706433",
		"0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1.", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::7f00:1]", "[fe80::1%25lo]",
		"[fd00::1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::1]", "[2001:0:1::1]",
	}
	for _, host := range hosts {
		to := fmt.Sprintf("http://%s:%d/", host, port)
		c := DeciderConfig{Asked: map[Question]Asked{AskJoin: {URL: to}}, Secret: secret}
		if c.Validate(AskJoin) == nil && host != "localhost" {
			t.Errorf("%s: the configuration passes", host)
		}
		if _, err := askOnce(t, to); !errors.Is(err, ErrUndecided) {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, status := range []int{301, 302, 303, 307, 308} {
		from := httptest.NewServer(http.RedirectHandler(server.URL, status))
		if _, err := askOnce(t, from.URL, "127.0.0.0/8"); !errors.Is(err, ErrUndecided) {
			t.Errorf("%d: %v", status, err)
		}
		from.Close()
	}
	for name, answers := range map[string][][]string{
		"moved": {{"192.0.2.1"}, {"127.0.0.1"}}, "mapped": {{"::ffff:127.0.0.1"}}, "of IPv6": {{"::1"}}, "metadata": {{"169.254.169.254"}},
	} {
		asked := nameServer(t, answers)
		for range 2 {
			if _, err := askOnce(t, fmt.Sprintf("http://hooks.example.com:%d/", port), "10.0.0.0/8"); !errors.Is(err, ErrUndecided) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if asked() == 0 {
			t.Errorf("%s: the name was never looked up", name)
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("reached %d times", n)
	}
	if d, err := askOnce(t, server.URL, "127.0.0.1"); err != nil || !*d.Allow || reached.Load() != 1 {
		t.Errorf("what is allowed is refused: %v", err)
	}
}

// A question is signed as a webhook is.
func TestAQuestionIsSigned(t *testing.T) {
	to := gatewaytest.StartReceiver(t)
	u, _ := url.Parse(to.URL)
	_, _ = askOnce(t, u.String(), "127.0.0.0/8") // the receiver's answer is no decision
	request, body := to.Last()
	if request == nil {
		t.Fatal("nothing was asked")
	}
	w := WebhookConfig{Secret: secret}
	key, _ := w.key()
	if got, want := request.Header.Get("webhook-signature"), sign(key, request.Header.Get("webhook-id"), request.Header.Get("webhook-timestamp"), body); got != want || got == "" {
		t.Errorf("signature %q, want %q", got, want)
	}
}

// Many ask at once, and the backend answers each in good time. Who waits for a place until there is none left for an answer is one too many, and
// says nothing of the backend: else a rush would be a reason to ask nobody.
func TestARushIsNoFailureOfTheBackend(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-time.After(1500 * time.Millisecond) // so long it takes to decide
		_, _ = io.WriteString(w, `{"allow":true}`)
	}))
	defer server.Close()
	const places = 2 * breakAfter
	d, err := NewDecider(DeciderConfig{
		Asked: map[Question]Asked{AskJoin: {URL: server.URL}}, Secret: secret, Allow: []string{"127.0.0.1"}, Timeout: 4 * time.Second, MaxInFlight: places,
		Log: newSilent(),
	})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 4 * places {
		all.Go(func() { _, _ = d.Ask(&Inquiry{Question: AskJoin}, nil) })
	}
	all.Wait()
	s := d.Stats()[0]
	if n := s.Outcomes; s.Open || n["failed"]+n["skipped"] > 0 || n["allowed"] < places || n["allowed"]+n["crowded"] != 4*places {
		t.Errorf("open: %v, and they ended as %v", s.Open, n)
	}
}

// Who has waited for a place and gets no answer says that the backend is down, where nobody was answered meanwhile.
func TestABackendThatIsDownIsSoForWhoWaited(t *testing.T) {
	t.Parallel()
	const timeout = 400 * time.Millisecond
	d, err := NewDecider(DeciderConfig{
		Asked: map[Question]Asked{AskJoin: {URL: silentServer(t)}}, Secret: secret, Allow: []string{"127.0.0.1"}, Timeout: timeout, MaxInFlight: 1,
		Log: newSilent(),
	})
	if err != nil {
		t.Fatal(err)
	}
	// On a busy machine one or the other may get no place at all, which says nothing.
	for range 3 * breakAfter {
		if d.Stats()[0].Open {
			return
		}
		place := d.asked[AskJoin].slots
		place <- struct{}{}
		free := time.AfterFunc(timeout/4, func() { <-place })
		_, _ = d.Ask(&Inquiry{Question: AskJoin}, nil)
		if free.Stop() {
			t.Fatal("nobody waited")
		}
	}
	t.Errorf("all are asked: %v", d.Stats()[0].Outcomes)
}

// Five failures in a row open a breaker; then one asks after a second, and after twice as long each time it fails. One answer closes it.
func TestABreakerOpensAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b breaker
		enter := func(want bool) {
			t.Helper()
			if got := b.enter(time.Now()); got != want {
				t.Fatalf("let in: %v", got)
			}
		}
		for range breakAfter {
			enter(true)
		}
		for range breakAfter {
			b.failed(time.Now())
		}
		for _, pause := range []time.Duration{1, 2, 4, 8, 10, 10} {
			enter(false)
			time.Sleep(pause*time.Second - 1)
			enter(false)
			time.Sleep(time.Nanosecond)
			enter(true)
			enter(false)
			b.given() // it found no place to ask, so another one may
			enter(true)
			b.failed(time.Now())
		}
		time.Sleep(mostBreak)
		enter(true)
		if n := b.answered(); n != breakAfter+6 {
			t.Errorf("%d failures", n)
		}
		enter(true)
		enter(true)
	})
}
