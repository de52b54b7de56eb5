package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

// A keyServer is an issuer's endpoint on this machine, whose answer the test changes.
type keyServer struct {
	*httptest.Server
	answer atomic.Pointer[http.HandlerFunc]
	asked  atomic.Int64
}

func startKeyServer(t *testing.T, keys ...string) *keyServer {
	s := new(keyServer)
	s.serve(set(keys...))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		(*s.answer.Load())(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) do(f http.HandlerFunc) { s.answer.Store(&f) }
func (s *keyServer) serve(text string) {
	s.do(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
}

func set(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }

// subscribe runs a verifier that has its keys from s alone. A minimum interval of an hour shows what happens within it.
func (s *keyServer) subscribe(t *testing.T, tune ...func(*Config)) *Verifier {
	t.Helper()
	cfg := settings(t)
	cfg.Keys, cfg.Secrets, cfg.KeySets = nil, nil, []string{s.URL + "/jwks.json"}
	for _, f := range tune {
		f(&cfg)
	}
	v := newVerifier(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = v.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return v
}

func often(c *Config) { c.KeySetMinInterval = time.Millisecond }

func (v *Verifier) fetches() uint64 { s := v.Stats(); return s.Fetched + s.FetchFailed }

func eventually(t *testing.T, what func() error) {
	t.Helper()
	if err := gatewaytest.Poll(patience, what); err != nil {
		t.Fatal(err)
	}
}

// fetched waits for the first fetch to have ended.
func (v *Verifier) fetched(t *testing.T) *Verifier {
	t.Helper()
	eventually(t, func() error {
		if v.fetches() == 0 {
			return errors.New("nothing was fetched")
		}
		return nil
	})
	return v
}

func (v *Verifier) show(t *testing.T, kid, alg string, key any) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := v.Verify(ctx, []byte(mint(object{"alg": alg, "kid": kid}, good(), key)))
	return err
}

func wantUnavailable(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrUnavailable) || RetryAfter(err) < time.Second {
		t.Errorf("error %v, again after %v, want unavailable", err, RetryAfter(err))
	}
}

func TestKeysOfASetVerify(t *testing.T) {
	k := keyring()
	s := startKeyServer(t, webKey("r", k.rsa.Public()), webKey("e", k.ec.Public(), `"use":"sig"`, `"alg":"ES256"`, `"key_ops":["verify"]`))
	v := s.subscribe(t).fetched(t)
	for kid, key := range map[string]any{"r": k.rsa, "e": k.ec, "": k.ec} {
		alg := map[bool]string{true: "RS256", false: "ES256"}[kid == "r"]
		if err := v.show(t, kid, alg, key); err != nil {
			t.Errorf("kid %q: %v", kid, err)
		}
	}
	wantRefused(t, v.show(t, "r", "RS256", k.ec), ReasonSignature)
	if n := s.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// A set holds keys for other purposes and of kinds to come. They are passed over, and nothing is verified with them.
func TestUselessKeysOfASetArePassedOver(t *testing.T) {
	k := keyring()
	fine := webKey("fine", k.ec.Public())
	for name, useless := range map[string]string{
		"for encryption":    webKey("x", k.rsa.Public(), `"use":"enc"`),
		"another alg":       webKey("x", k.rsa.Public(), `"alg":"RS512"`),
		"to sign only":      webKey("x", k.rsa.Public(), `"key_ops":["sign"]`),
		"no operation":      webKey("x", k.rsa.Public(), `"key_ops":[]`),
		"a shared secret":   fmt.Sprintf(`{"kty":"oct","kid":"x","k":"%s"}`, b64(k.secret)),
		"a kind to come":    `{"kty":"LATTICE","kid":"x"}`,
		"no kind":           `{"kid":"x"}`,
		"a text":            `"x"`,
		"private":           webKey("x", k.rsa.Public(), fmt.Sprintf(`"d":"%s","p":"%s","q":"%s"`, b64(k.rsa.D.Bytes()), b64(k.rsa.Primes[0].Bytes()), b64(k.rsa.Primes[1].Bytes()))),
		"off the curve":     `{"kty":"EC","crv":"P-256","kid":"x","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`,
		"a kid without end": webKey(strings.Repeat("x", 300), k.rsa.Public()),
	} {
		t.Run(name, func(t *testing.T) {
			s := startKeyServer(t, useless, fine)
			v := s.subscribe(t).fetched(t)
			if n := v.Stats().Keys; n != 1 {
				t.Errorf("%d keys", n)
			}
			if err := v.show(t, "fine", "ES256", k.ec); err != nil {
				t.Error(err)
			}
			if err := v.show(t, "x", "RS256", k.rsa); err == nil {
				t.Error("the useless key verifies")
			}
			wantRefused(t, v.show(t, "x", "HS256", k.secret), ReasonKey)
		})
	}
}

// The issuer rotates: a token names a key that nobody has seen yet, the set is fetched, and the token is good. The old key is gone then.
func TestARotatedKeyIsFetchedWhenATokenNamesIt(t *testing.T) {
	k := keyring()
	s := startKeyServer(t, webKey("old", k.rsa.Public()))
	v := s.subscribe(t, often).fetched(t)
	s.serve(set(webKey("new", k.ec.Public())))
	if err := v.show(t, "old", "RS256", k.rsa); err != nil || s.asked.Load() != 1 {
		t.Errorf("a known key: %v, asked %d times", err, s.asked.Load())
	}
	eventually(t, func() error { return v.show(t, "new", "ES256", k.ec) })
	eventually(t, func() error { // once more, to be told that it is gone
		if refusal, ok := errors.AsType[*Refusal](v.show(t, "old", "RS256", k.rsa)); !ok || refusal.Reason != ReasonKey {
			return errors.New("the old key is still known")
		}
		return nil
	})
}

// Ids that a stranger makes up cost one fetch in the minimum interval. Whoever has a key that is really new is asked to wait then, not
// turned away for good.
func TestMadeUpKeyIdsCostOneFetch(t *testing.T) {
	k := keyring()
	s := startKeyServer(t, webKey("k", k.ec.Public()))
	v := s.subscribe(t).fetched(t)
	for i := range 50 {
		wantUnavailable(t, v.show(t, fmt.Sprint("made-up-", i), "ES256", k.ec))
	}
	if n := s.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if err := v.show(t, "k", "ES256", k.ec); err != nil {
		t.Errorf("a known key meanwhile: %v", err)
	}
}

// Many ask at once, and one fetch answers them all.
func TestOneFetchIsInFlight(t *testing.T) {
	k := keyring()
	s := startKeyServer(t, webKey("old", k.ec.Public()))
	v := s.subscribe(t, often).fetched(t)
	var inside, most, since atomic.Int64
	gate := make(chan struct{})
	s.do(func(w http.ResponseWriter, _ *http.Request) {
		most.Store(max(most.Load(), inside.Add(1)))
		defer inside.Add(-1)
		since.Add(1)
		<-gate
		_, _ = w.Write([]byte(set(webKey("new", k.ec.Public()))))
	})
	var asking sync.WaitGroup
	errs := make([]error, 40)
	for i := range errs {
		asking.Go(func() {
			eventually(t, func() error { // refused while the first fetch was a moment ago
				errs[i] = v.show(t, "new", "ES256", k.ec)
				if errors.Is(errs[i], ErrUnavailable) {
					return errs[i]
				}
				return nil
			})
		})
	}
	eventually(t, func() error {
		if since.Load() == 0 {
			return errors.New("nobody asks")
		}
		return nil
	})
	close(gate)
	asking.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if since.Load() != 1 || most.Load() != 1 {
		t.Errorf("%d fetches, %d at once", since.Load(), most.Load())
	}
}

// Whatever the endpoint does, the keys it gave last stay, and nobody waits longer than a fetch may take.
func TestTheLastGoodKeysStay(t *testing.T) {
	k := keyring()
	elsewhere := startKeyServer(t, webKey("evil", k.rsa.Public()))
	tooMany := make([]string, maxKeys+1)
	for i := range tooMany {
		tooMany[i] = webKey(fmt.Sprint(i), k.ec.Public())
	}
	quick := func(c *Config) { often(c); c.KeySetTimeout = 100 * time.Millisecond }
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		tune   func(*Config)
	}{
		"garbage":        {write("<html>"), often},
		"empty":          {write(""), often},
		"no keys":        {write(`{"keys":[]}`), often},
		"keys of no use": {write(set(`{"kty":"oct","k":"AA"}`)), often},
		"keys twice":     {write(`{"keys":[],"keys":[` + webKey("evil", k.rsa.Public()) + `]}`), often},
		"too many keys":  {write(set(tooMany...)), often},
		"endless":        {endless, often},
		"endless header": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 64<<10)) }, often},
		"an error, with it": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = w.Write([]byte(set(webKey("evil", k.rsa.Public()))))
		}, often},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, often},
		"a kept redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusPermanentRedirect)
		}, often},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "999")
			_, _ = w.Write([]byte("{"))
		}, often},
		"reset":  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, often},
		"silent": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, quick},
		"a byte now and then": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
		}, quick},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startKeyServer(t, webKey("k", k.ec.Public()))
			v := s.subscribe(t, c.tune)
			eventually(t, func() error { // on a busy machine the quick ones may need several fetches for it
				if v.Stats().Fetched == 0 {
					return errors.New("nothing was fetched")
				}
				return nil
			})
			s.do(c.answer)
			failed := v.Stats().FetchFailed
			eventually(t, func() error {
				wantUnavailable(t, v.show(t, "evil", "RS256", k.rsa))
				if v.Stats().FetchFailed == failed {
					return errors.New("nothing was fetched again")
				}
				return nil
			})
			if err := v.show(t, "k", "ES256", k.ec); err != nil {
				t.Errorf("the last good key: %v", err)
			}
			s.serve(set(webKey("k2", k.rsa.Public())))
			eventually(t, func() error { return v.show(t, "k2", "RS256", k.rsa) })
		})
	}
	if n := elsewhere.asked.Load(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

func write(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
}

func endless(w http.ResponseWriter, _ *http.Request) {
	for _, err := w.Write([]byte(`{"keys":[`)); err == nil; _, err = w.Write(make([]byte, 4096)) {
	}
}

// A gateway starts while the issuer is away: it serves, nobody is let in, and with the issuer's return everybody is.
func TestAnIssuerThatIsAwayAtTheStartIsAskedAgain(t *testing.T) {
	k := keyring()
	s := startKeyServer(t)
	v := s.subscribe(t, often).fetched(t)
	wantUnavailable(t, v.show(t, "k", "ES256", k.ec))
	s.serve(set(webKey("k", k.ec.Public())))
	// Without a token that asks: by the shorter interval after a failure.
	eventually(t, func() error {
		if v.Stats().Fetched == 0 {
			return errors.New("not asked again")
		}
		return nil
	})
	if err := v.show(t, "k", "ES256", k.ec); err != nil {
		t.Error(err)
	}
}

// Nobody waits longer than he said he would, nor when the gateway stops.
func TestWaitingForAKeyEnds(t *testing.T) {
	k := keyring()
	s := startKeyServer(t)
	s.do(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	cfg := settings(t)
	cfg.Keys, cfg.Secrets, cfg.KeySets = nil, nil, []string{s.URL}
	v := newVerifier(t, cfg)
	life, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = v.Run(life) })
	token := []byte(mint(object{"alg": "ES256", "kid": "k"}, good(), k.ec))
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := v.Verify(short, token)
	wantUnavailable(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := v.Verify(context.Background(), token)
		ended <- err
	}()
	eventually(t, func() error {
		if s.asked.Load() == 0 {
			return errors.New("nobody asks")
		}
		return nil
	})
	stop()
	running.Wait()
	select {
	case err := <-ended:
		wantUnavailable(t, err)
	case <-time.After(patience):
		t.Error("it still waits")
	}
}

// A fetch that was under way may have been answered before the issuer had the new key: who joins it learns nothing for good.
func TestAFetchUnderWayProvesNoKeyWrong(t *testing.T) {
	k := keyring()
	s := startKeyServer(t)
	gate := make(chan struct{})
	s.do(func(w http.ResponseWriter, _ *http.Request) {
		<-gate
		_, _ = w.Write([]byte(set(webKey("old", k.rsa.Public()))))
	})
	v := s.subscribe(t)
	eventually(t, func() error {
		if s.asked.Load() == 0 {
			return errors.New("nobody asks")
		}
		return nil
	})
	ended, ctx := make(chan error, 1), &waited{Context: context.Background(), waits: make(chan struct{})}
	go func() {
		_, err := v.Verify(ctx, []byte(mint(object{"alg": "ES256", "kid": "new"}, good(), k.ec)))
		ended <- err
	}()
	<-ctx.waits
	close(gate)
	wantUnavailable(t, <-ended)
}

// A waited context tells when somebody waits for its end.
type waited struct {
	context.Context
	once  sync.Once
	waits chan struct{}
}

func (w *waited) Done() <-chan struct{} {
	w.once.Do(func() { close(w.waits) })
	return w.Context.Done()
}

// Files and key sets side by side: a key from a file has no id, so it fits whatever id a token names. That it did not sign says nothing
// about the key sets.
func TestAKeyFromAFileHidesNoKeySet(t *testing.T) {
	k := keyring()
	theirs := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	both := func(c *Config) { c.Keys = []string{file(t, publicPEM(k.ec.Public()))} }
	s := startKeyServer(t, webKey("old", k.rsa.Public()))
	v := s.subscribe(t, often, both).fetched(t)
	s.serve(set(webKey("new", theirs.Public())))
	eventually(t, func() error { return v.show(t, "new", "ES256", theirs) })
	wantRefused(t, v.show(t, "new", "ES256", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))), ReasonSignature)
	if err := v.show(t, "file", "ES256", k.ec); err != nil {
		t.Errorf("the file's own: %v", err)
	}

	// While the set was never had, nobody knows whether it has the key.
	away := startKeyServer(t)
	away.do(http.NotFound)
	v = away.subscribe(t, both).fetched(t)
	wantUnavailable(t, v.show(t, "new", "ES256", theirs))
	wantUnavailable(t, v.show(t, "", "ES256", theirs))
	if err := v.show(t, "", "ES256", k.ec); err != nil {
		t.Errorf("the file's own: %v", err)
	}

	// Nor whether it is the other set's.
	here := startKeyServer(t, webKey("k", k.ec.Public()))
	v = away.subscribe(t, func(c *Config) { c.KeySets = append(c.KeySets, here.URL) })
	eventually(t, func() error { return v.show(t, "k", "ES256", k.ec) })
	eventually(t, func() error { return v.show(t, "", "ES256", k.ec) })
	wantUnavailable(t, v.show(t, "", "ES256", theirs))
	wantRefused(t, v.show(t, "k", "ES256", theirs), ReasonSignature)
}

// Tenants of one provider are issuers of their own that sign with the same keys. Each token is its own issuer's, and of no third one.
func TestIssuersMayShareAKey(t *testing.T) {
	k := keyring()
	s := startKeyServer(t, webKey("k", k.ec.Public()))
	const tenants = 2 * maxTried
	v := s.subscribe(t, func(c *Config) {
		c.Issuers, c.KeySets = []string{"third"}, nil
		for i := range tenants {
			c.Issuers = append(c.Issuers, fmt.Sprint("t", i))
			c.KeySets = append(c.KeySets, fmt.Sprint("t", i, "=", s.URL))
		}
		c.Keys = []string{"third=" + file(t, publicPEM(k.rsa.Public()))}
	})
	eventually(t, func() error {
		if n := v.Stats().Fetched; n != tenants {
			return fmt.Errorf("%d key sets were fetched", n)
		}
		return nil
	})
	for _, kid := range []string{"k", ""} {
		for i := range tenants {
			token := mint(object{"alg": "ES256", "kid": kid}, but(object{"iss": fmt.Sprint("t", i)}), k.ec)
			if _, err := v.Verify(context.Background(), []byte(token)); err != nil {
				t.Errorf("tenant %d, kid %q: %v", i, kid, err)
			}
		}
		_, err := v.Verify(context.Background(), []byte(mint(object{"alg": "ES256", "kid": kid}, but(object{"iss": "third"}), k.ec)))
		wantRefused(t, err, ReasonIssuer)
	}
}
