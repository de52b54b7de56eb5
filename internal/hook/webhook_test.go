//go:build !secondpass

package hook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

func deliverOne(t *testing.T, s SinkConfig) error {
	t.Helper()
	w, err := newWebhook(&s)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	ctx, cancel := context.WithTimeout(context.Background(), s.Timeout)
	defer cancel()
	taken, _, err := w.deliver(ctx, []*Event{{ID: "all-1-0", N: 1, Type: "connect", User: "<alice&co>", Ms: 1}})
	if (taken == 1) != (err == nil) {
		t.Errorf("%d taken, %v", taken, err)
	}
	return err
}

// The signature is that of Standard Webhooks, computed here from its specification.
func TestAWebhookIsSigned(t *testing.T) {
	to := gatewaytest.StartReceiver(t)
	before := time.Now().Unix()
	if err := deliverOne(t, webhookTo(to, Filter{})); err != nil {
		t.Fatal(err)
	}
	request, body := to.Last()
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	mac := hmac.New(sha256.New, key)
	id, stamp := request.Header.Get("webhook-id"), request.Header.Get("webhook-timestamp")
	mac.Write([]byte(id + "." + stamp + "." + string(body)))
	if got, want := request.Header.Get("webhook-signature"), "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)); got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
	var at int64
	if _, err := fmt.Sscan(stamp, &at); err != nil || at < before || at > time.Now().Unix() {
		t.Errorf("timestamp %q", stamp)
	}
	if !strings.Contains(string(body), `"user":"<alice&co>"`) || request.Header.Get("Content-Type") != "application/json" {
		t.Errorf("body %s, of type %s", body, request.Header.Get("Content-Type"))
	}
	first := id
	if err := deliverOne(t, webhookTo(to, Filter{})); err != nil {
		t.Fatal(err)
	}
	if request, _ := to.Last(); request.Header.Get("webhook-id") != first {
		t.Error("the same events came with another id")
	}
}

// Whatever leads to an address that isn't public is not connected to, unless it is allowed: refused in the configuration where it can be
// seen there, and by the dialer where it can't.
func TestNoAddressThatIsNotPublicIsReached(t *testing.T) {
	var reached atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	server.Config.ConnState = func(net.Conn, http.ConnState) { reached.Add(1) }
	server.Start()
	defer server.Close()
	port := server.Listener.Addr().(*net.TCPAddr).Port
	for name, host := range map[string]string{
		"loopback":                   "127.0.0.1",
		"another loopback":           "127.9.9.9",
		"a name of loopback":         "localhost",
		"this host":                  "0.0.0.0",
		"private, 10":                "10.0.0.1",
		"private, 172.16":            "172.31.255.254",
		"private, 192.168":           "192.168.1.1",
		"shared":                     "100.64.0.1",
		"link-local, metadata":       "169.254.169.254",
		"metadata that looks public": "168.63.129.16",
		"benchmarking":               "198.18.0.1",
		"multicast":                  "224.0.0.1",
		"broadcast":                  "255.255.255.255",
		"decimal":                    "2130706433",
		"hexadecimal":                "0x7f000001",
		"hexadecimal parts":          "0x7f.0.0.1",
		"octal":                      "0177.0.0.1",
		"octal whole":                "017700000001",
		"short":                      "127.1",
		"with a dot":                 "127.0.0.1.",
		"decimal with a dot":         "2130706433.",
		"digits of another script":   "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
		"digits in circles":          "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
		"IPv6 loopback":              "[::1]",
		"IPv6 unspecified":           "[::]",
		"IPv6 mapped":                "[::ffff:127.0.0.1]",
		"IPv6 mapped, hexadecimal":   "[::ffff:7f00:1]",
		"IPv6 compatible":            "[::7f00:1]",
		"IPv6 link-local":            "[fe80::1]",
		"IPv6 link-local, zone":      "[fe80::1%25lo]",
		"IPv6 site-local":            "[fec0::1]",
		"IPv6 unique local":          "[fd00::1]",
		"IPv6 multicast":             "[ff02::1]",
		"NAT64 of loopback":          "[64:ff9b::7f00:1]",
		"6to4 of loopback":           "[2002:7f00:1::1]",
		"Teredo":                     "[2001:0:1::1]",
		"documentation":              "[2001:db8::1]",
	} {
		t.Run(name, func(t *testing.T) {
			s := sinkNamed("web", Filter{})
			s.Webhook = &WebhookConfig{URL: fmt.Sprintf("http://%s:%d/", host, port), Secret: secret}
			if err := s.Validate(); err == nil && host != "localhost" {
				t.Error("the configuration passes")
			}
			// As if a name had hidden it from the configuration.
			if err := deliverOne(t, s); err == nil || !errors.Is(err, errAddress) && !isLookup(err) {
				t.Errorf("delivered: %v", err)
			}
		})
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("reached %d times", n)
	}
	s := sinkNamed("web", Filter{})
	s.Webhook = &WebhookConfig{URL: server.URL, Secret: secret, Allow: []string{"127.0.0.1"}}
	if err := deliverOne(t, s); err != nil || reached.Load() == 0 {
		t.Errorf("what is allowed is refused: %v", err)
	}
}

// isLookup reports an address that no resolver makes anything of.
func isLookup(err error) bool {
	_, ok := errors.AsType[*net.DNSError](err)
	return ok
}

// A name server may answer with one address first and with another one then. What counts is the address that is connected to.
func TestTheAddressIsJudgedWhenItIsConnectedTo(t *testing.T) {
	to := gatewaytest.StartReceiver(t)
	allowed := netip.MustParsePrefix("192.0.2.0/24")
	control := guard([]netip.Prefix{allowed})
	for address, fine := range map[string]bool{
		"192.0.2.7:80": true, "[::ffff:192.0.2.7]:80": true, "8.8.8.8:80": true, "[2606:4700::1]:80": true,
		"127.0.0.1:80": false, "[::ffff:10.0.0.1]:80": false, "[fe80::1%lo]:80": false, "nonsense": false,
	} {
		if err := control("tcp", address, nil); (err == nil) != fine {
			t.Errorf("%s: %v", address, err)
		}
	}
	// The name is public, its address is not.
	s := webhookTo(to, Filter{})
	u, _ := url.Parse(to.URL)
	s.Webhook.URL, s.Webhook.Allow = "http://localhost:"+u.Port()+"/events", nil
	if err := deliverOne(t, s); !errors.Is(err, errAddress) {
		t.Errorf("delivered: %v", err)
	}
	if to.Requests() != 0 {
		t.Error("reached")
	}
}

// The name server answers with a public address first, and with this machine's as soon as anybody trusts it: at the next look-up, or beside the
// public one. What is connected to is refused each time, and tried again each time.
func TestANameThatMovesIsNotFollowed(t *testing.T) {
	to := gatewaytest.StartReceiver(t)
	u, _ := url.Parse(to.URL)
	for name, answers := range map[string][][]string{
		"moved":    {{"192.0.2.1"}, {"127.0.0.1"}, {"127.0.0.1"}},
		"beside":   {{"192.0.2.1", "127.0.0.1"}, {"127.0.0.1", "192.0.2.1"}},
		"mapped":   {{"::ffff:127.0.0.1"}},
		"of IPv6":  {{"::1"}},
		"metadata": {{"169.254.169.254"}},
	} {
		t.Run(name, func(t *testing.T) {
			asked := nameServer(t, answers)
			s := webhookTo(to, Filter{})
			s.Webhook.URL, s.Webhook.Allow = "http://hooks.example.com:"+u.Port()+"/events", []string{"10.0.0.0/8"}
			if err := s.Validate(); err != nil {
				t.Fatal(err)
			}
			for range len(answers) {
				if err := deliverOne(t, s); err == nil {
					t.Error("delivered")
				}
			}
			if asked() == 0 {
				t.Error("the name was never looked up")
			}
		})
	}
	if n := to.Requests(); n != 0 {
		t.Errorf("reached %d times", n)
	}
	// And where it is allowed, the same name leads there.
	nameServer(t, [][]string{{"127.0.0.1"}})
	s := webhookTo(to, Filter{})
	s.Webhook.URL = "http://hooks.example.com:" + u.Port() + "/events"
	if err := deliverOne(t, s); err != nil || to.Requests() != 1 {
		t.Errorf("%d requests, %v", to.Requests(), err)
	}
}

// A redirect is not followed, wherever it leads: the receiver that was configured did not take the events.
func TestRedirectsAreNotFollowed(t *testing.T) {
	to := gatewaytest.StartReceiver(t)
	for _, status := range []int{301, 302, 303, 307, 308} {
		from := httptest.NewServer(http.RedirectHandler(to.URL, status))
		s := webhookTo(to, Filter{})
		s.Webhook.URL = from.URL
		if err := deliverOne(t, s); err == nil || !strings.Contains(err.Error(), fmt.Sprint(status)) {
			t.Errorf("%d: %v", status, err)
		}
		from.Close()
	}
	if to.Requests() != 0 {
		t.Error("a redirect was followed")
	}
}

// A server that takes so many bytes at a time (100 KB is usual), or needs so long for each event, would refuse a batch for ever that a
// backlog makes larger. It gets it in parts, and all of it when it is well again.
func TestAReceiverThatTakesLessAtATimeGetsLess(t *testing.T) {
	for name, tc := range map[string]struct {
		takes func(r *http.Request, events int) bool
		fails bool // an answer that doesn't come is a failure; one that says too large is none
	}{
		"so many bytes": {func(r *http.Request, _ int) bool { return r.ContentLength <= 1500 }, false},
		"so long for each": {func(r *http.Request, events int) bool {
			select {
			case <-time.After(time.Duration(events) * 30 * time.Millisecond):
				return true
			case <-r.Context().Done():
				return false
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
				w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
				var well atomic.Bool
				var sizes []int
				var mu sync.Mutex // guards sizes
				server := httptest.NewServer(http.HandlerFunc(func(answer http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					events := bytes.Count(body, []byte(`"n":`))
					if !well.Load() && !tc.takes(r, events) {
						answer.WriteHeader(http.StatusRequestEntityTooLarge)
						return
					}
					mu.Lock()
					sizes = append(sizes, events)
					mu.Unlock()
					r.Body = io.NopCloser(bytes.NewReader(body))
					to.ServeHTTP(answer, r)
				}))
				t.Cleanup(server.Close)
				s := webhookTo(to, Filter{})
				s.Webhook.URL = server.URL
				if tc.fails {
					s.Timeout = 200 * time.Millisecond
				}
				w.happenEach(1, 0, 40)
				a := w.gateway("a", s)
				w.wantEach(to, 1, 40)
				if s := w.wantSettled(a); (s.Failures > 0) != tc.fails {
					t.Errorf("counted %+v", s)
				}
				if largest := slices.Max(sizes); largest >= s.Batch {
					t.Errorf("it took %d at a time", largest)
				}
				well.Store(true)
				to.Answer(http.StatusInternalServerError) // so that there is a backlog
				w.happenEach(1, 40, 400)
				to.Answer(0)
				w.wantEach(to, 1, 400)
				mu.Lock()
				defer mu.Unlock()
				if slices.Max(sizes) != s.Batch {
					t.Errorf("well again, it got %d at a time at most", slices.Max(sizes))
				}
			})
		})
	}
}

// Each time a receiver leaves a batch without an answer, the next one is smaller.
func TestEachSilenceMakesTheNextBatchSmaller(t *testing.T) {
	t.Parallel()
	s := sinkNamed("web", Filter{})
	s.Timeout = 10 * time.Millisecond
	s.Webhook = &WebhookConfig{URL: silentServer(t), Secret: secret, Allow: []string{"127.0.0.1"}}
	to, err := newWebhook(&s)
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Log = newSilent()
	for i := range 50 {
		c := newCarrier(nil, &cfg, &s, to)
		if _, err := c.attempt(t.Context(), []*Event{{ID: "a"}, {ID: "b"}}); err == nil || c.gate.portion() != 1 {
			t.Fatalf("attempt %d: %v, and the next batch has %d events", i+1, err, c.gate.portion())
		}
	}
}

// One event that is too large for a receiver is like any other that it doesn't take.
func TestAnEventTooLargeForAReceiverIsAFailure(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
		to.Answer(http.StatusRequestEntityTooLarge)
		a := w.gateway("a", webhookTo(to, Filter{}))
		w.happenEach(1, 0, 1)
		w.eventually(func() error {
			if s := a.hooks.Stats()[0]; s.Failing < 2 {
				return fmt.Errorf("counted %+v", s)
			}
			return nil
		})
		to.Answer(0)
		w.wantEach(to, 1, 1)
	})
}

// Only 2xx says that events were taken, and no answer may take for ever or be endless.
func TestAnswersOfAWebhook(t *testing.T) {
	stopped := make(chan struct{})
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		fine   bool
	}{
		"200":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }, true},
		"204":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, true},
		"400":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(400) }, false},
		"500":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, false},
		"hung up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
		"silence": {func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-stopped:
			}
		}, false},
		"an endless body": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, true},
		"endless headers": {func(w http.ResponseWriter, _ *http.Request) {
			for i := range 2000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 100))
			}
		}, false},
		"a body a byte a second": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				select {
				case <-time.After(time.Second):
				case <-stopped:
					return
				}
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // else the server doesn't notice that the client is gone
				tc.answer(w, r)
			}))
			defer server.Close()
			defer server.CloseClientConnections()
			s := sinkNamed("web", Filter{})
			s.Webhook = &WebhookConfig{URL: server.URL, Secret: secret, Allow: []string{"127.0.0.1"}}
			began := time.Now()
			if err := deliverOne(t, s); (err == nil) != tc.fine {
				t.Errorf("%v", err)
			}
			if took := time.Since(began); took > s.Timeout+5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	close(stopped)
}
