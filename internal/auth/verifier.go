package auth

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Verifier says whose a token is. All methods may be called from any goroutine.
type Verifier struct {
	// Immutable after New.
	cfg  Config
	sets []*keySet

	// Any goroutine.
	keys     atomic.Pointer[[]*key] // those from files
	accepted atomic.Uint64
	refused  [numReasons]atomic.Uint64 // in the order of Reasons
	unsure   atomic.Uint64
}

// New reads the key files. Run must run for key sets to be fetched.
func New(cfg Config) (*Verifier, error) {
	v := &Verifier{cfg: cfg}
	apply, err := v.Reload(cfg.Keys, cfg.Secrets)
	if err != nil {
		return nil, err
	}
	apply()
	for _, entry := range cfg.KeySets {
		issuer, url, err := cfg.issuerOf(entry)
		if err != nil {
			return nil, err
		}
		v.sets = append(v.sets, newKeySet(&v.cfg, issuer, url))
	}
	return v, nil
}

// Reload reads files with keys and secrets, as Config has them, and returns what makes them count in place of those before. Without calling
// it, the keys stay as they were.
func (v *Verifier) Reload(keys, secrets []string) (apply func(), err error) {
	cfg := v.cfg
	cfg.Keys, cfg.Secrets = keys, secrets
	loaded, err := cfg.loadKeys()
	if err != nil {
		return nil, err
	}
	return func() { v.keys.Store(&loaded) }, nil
}

// Run keeps the key sets fresh until ctx ends.
func (v *Verifier) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, s := range v.sets {
		running.Go(func() { s.run(ctx) })
	}
	running.Wait()
	return nil
}

// Verify returns whose token this is. The error is a *Refusal, or ErrUnavailable when a key that it names might only have not been
// fetched yet; ctx bounds the wait for that.
//
// Until its signature holds, the algorithm and the key id are all that is read of a token, and they only choose among keys that are here.
// The issuer is then the one that the key belongs to, and the token has to say the same.
func (v *Verifier) Verify(ctx context.Context, token []byte) (*Identity, error) {
	id, err := v.verify(ctx, token)
	if err == nil {
		v.accepted.Add(1)
	} else {
		v.count(err)
	}
	return id, err
}

func (v *Verifier) verify(ctx context.Context, token []byte) (*Identity, error) {
	if len(token) > MaxTokenBytes {
		return nil, refuse(ReasonTooLarge, "over %d bytes", MaxTokenBytes)
	}
	text := string(token)
	h, err := parseHeader(text)
	if err != nil {
		return nil, err
	}
	alg := jose.SignatureAlgorithm(h.Algorithm)
	if !slices.Contains(algorithms, alg) {
		return nil, refuse(ReasonAlgorithm, "none of HS256, RS256, ES256, EdDSA")
	}
	keys := v.fitting(alg, h.KeyID)
	payload, issuers, err := payloadOf(text, alg, keys)
	if err != nil && v.mayLack(keys, alg, h.KeyID) {
		unsure := v.await(ctx, alg, h.KeyID)
		keys = v.fitting(alg, h.KeyID)
		payload, issuers, err = payloadOf(text, alg, keys)
		if err != nil && unsure != nil && v.mayLack(keys, alg, h.KeyID) {
			err = unsure
		}
	}
	if err != nil {
		return nil, err
	}
	return v.cfg.identify(payload, issuers)
}

// fitting lists the keys that may verify a token with this header, of whichever issuer: first those that have the id it names.
func (v *Verifier) fitting(alg jose.SignatureAlgorithm, kid string) []*key {
	var named, others []*key
	from := func(keys []*key) {
		for _, k := range keys {
			switch {
			case !k.fits(alg, kid):
			case k.id == kid:
				named = append(named, k)
			default:
				others = append(others, k)
			}
		}
	}
	from(*v.keys.Load())
	for _, s := range v.sets {
		from(s.all())
	}
	return append(named, others...)
}

// mayLack reports whether a key set might have a key for such a token, beside those that did not sign it: one of the id that it names, or
// any at all, where it names none and a set was never had. Of keys without an id, such as those from files, every id may be the name.
func (v *Verifier) mayLack(keys []*key, alg jose.SignatureAlgorithm, kid string) bool {
	switch {
	case alg == jose.HS256: // no key set has a shared secret
		return false
	case len(keys) == 0:
		return len(v.sets) > 0
	case kid == "":
		return slices.ContainsFunc(v.sets, func(s *keySet) bool { return s.keys.Load() == nil })
	}
	return len(v.sets) > 0 && keys[0].id != kid
}

// await has the key sets fetched again that don't have such a key. Their issuers may have begun to use it a moment ago. Where one can't be
// asked now, and none of the others has it, the token is neither good nor bad: or else a stranger, who uses up the fetches with ids he made up, could have
// everyone refused whose key is new.
func (v *Verifier) await(ctx context.Context, alg jose.SignatureAlgorithm, kid string) error {
	waits := make([]time.Duration, len(v.sets))
	var asking sync.WaitGroup
	for i, s := range v.sets {
		asking.Go(func() { waits[i] = s.refetch(ctx, alg, kid) })
	}
	asking.Wait()
	if wait := slices.Max(waits); wait > 0 {
		return &unavailable{after: wait, why: "a key set can't be asked for a key that is missing"}
	}
	return nil
}
