package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// keySet is a JSON Web Key Set somewhere else, and the last good copy of it.
type keySet struct {
	// Immutable after newKeySet.
	cfg    *Config
	issuer string
	url    string
	client *http.Client
	kick   chan struct{} // capacity 1: somebody waits for a fetch

	// Any goroutine.
	keys   atomic.Pointer[[]*key] // nil: never had
	counts fetchCounts

	// Guarded by mu.
	mu     sync.Mutex
	flight chan struct{} // closed when the fetch that is wanted or under way has ended; nil: none is
	last   time.Time     // when the last fetch ended
}

type fetchCounts struct{ fetched, failed atomic.Uint64 }

func newKeySet(cfg *Config, issuer, url string) *keySet {
	return &keySet{
		cfg: cfg, issuer: issuer, url: url, kick: make(chan struct{}, 1),
		client: &http.Client{
			Timeout: cfg.KeySetTimeout,
			// A redirect would let whoever may place one choose the keys, and lead into networks that only we reach.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
				// A fetch in minutes: what is kept open in between would only be found dead.
				DisableKeepAlives: true, DisableCompression: true, // so that the bound on bytes is one
				MaxResponseHeaderBytes: 16 << 10,
			},
		},
	}
}

// run fetches at the start, every KeySetRefresh, and when a token names a key that is missing. After a failure it tries again sooner.
func (s *keySet) run(ctx context.Context) {
	defer s.land() // nobody waits for a fetch that won't come
	for wait := time.Duration(0); ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.kick:
			timer.Stop()
		case <-timer.C:
		}
		s.takeOff()
		wait = s.cfg.KeySetRefresh
		if err := s.fetch(ctx); err != nil && ctx.Err() == nil {
			wait = s.cfg.KeySetMinInterval
			s.counts.failed.Add(1)
			s.cfg.Log.Warn("key set not fetched: the last good one stays", "url", s.url, "keys", s.size(), "err", err)
		}
		s.land()
	}
}

// takeOff notes that a fetch is under way; land that it has ended, and lets go who waits for it.
func (s *keySet) takeOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flight == nil {
		s.flight = make(chan struct{})
	}
}

func (s *keySet) land() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = time.Now()
	if s.flight != nil {
		close(s.flight)
		s.flight = nil
	}
	select { // asked for before this fetch, which was it
	case <-s.kick:
	default:
	}
}

// refetch waits for a fetch that begins now, or is under way already, because the set lacks such a key. It returns 0 when one that began
// now has ended well, else for how long it is of no use to ask again: what was under way may have been answered before there was such a
// key.
func (s *keySet) refetch(ctx context.Context, alg jose.SignatureAlgorithm, kid string) time.Duration {
	s.mu.Lock()
	began := s.flight == nil
	if began {
		if s.names(alg, kid) { // a fetch ended since the caller looked
			s.mu.Unlock()
			return 0
		}
		if wait := s.cfg.KeySetMinInterval - time.Since(s.last); wait > 0 && !s.last.IsZero() {
			s.mu.Unlock()
			return wait
		}
		s.flight = make(chan struct{})
		select { // never full: who fills it sets flight, and land empties both
		case s.kick <- struct{}{}:
		default:
		}
	}
	flight, before := s.flight, s.counts.fetched.Load()
	s.mu.Unlock()
	select {
	case <-flight:
		if began && s.counts.fetched.Load() > before {
			return 0
		}
		return s.cfg.KeySetMinInterval
	case <-ctx.Done():
		return minRetryAfter
	}
}

// fetch replaces the copy, if what comes is a key set.
func (s *keySet) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.KeySetTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	answer, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", answer.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxKeyFile+1))
	if err != nil {
		return err
	}
	if len(data) > maxKeyFile {
		return fmt.Errorf("over %d bytes", maxKeyFile)
	}
	keys, skipped, err := parseKeySet(data)
	if err != nil {
		return err
	}
	for _, k := range keys {
		k.issuer = s.issuer
	}
	s.keys.Store(&keys)
	s.counts.fetched.Add(1)
	s.cfg.Log.Debug("key set fetched", "url", s.url, "keys", len(keys), "skipped", errors.Join(skipped...))
	return nil
}

// all are the keys of the last good copy, if there ever was one.
func (s *keySet) all() []*key {
	if keys := s.keys.Load(); keys != nil {
		return *keys
	}
	return nil
}

// names reports whether the set has the very key that a token with this header names; where it names none, any that fits.
func (s *keySet) names(alg jose.SignatureAlgorithm, kid string) bool {
	return slices.ContainsFunc(s.all(), func(k *key) bool { return k.fits(alg, kid) && (kid == "" || k.id == kid) })
}

func (s *keySet) size() int { return len(s.all()) }
