package auth

import (
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

//go:embed lua/revoke.lua
var revokeSource string

//go:embed lua/revoked.lua
var revokedSource string

// RevocationsConfig is what Revocations needs to know. The same on every gateway but for Log and OnChange.
type RevocationsConfig struct {
	// Layout is how the keyspace is grouped; all revocations are in its first group.
	Layout keyspace.Layout
	// Every is how often Redis is asked for new ones. Nothing is published: what is read
	// can't be missed.
	Every time.Duration
	// Timeout bounds each call to Redis.
	Timeout time.Duration
	// Kept is how long a revocation is: the longest a token may live after it, Leeway
	// included. One that was entered by someone who keeps them for less is kept longer.
	Kept time.Duration
	// Most is how many there may be at a time. One more is refused; what was entered
	// before, and Redis lost, is not.
	Most int
	Log  *slog.Logger
	// OnChange is called when there are new ones; Check then knows them. It must not
	// block for long: no more are read meanwhile. May be nil.
	OnChange func()
}

// DefaultRevocationsConfig returns the figures of docs/security.md, without layout and log.
func DefaultRevocationsConfig() RevocationsConfig {
	return RevocationsConfig{Every: 400 * time.Millisecond, Timeout: time.Second, Kept: 24*time.Hour + 5*time.Minute, Most: 100_000}
}

// Revocations knows which tokens were revoked, from a copy of what Redis has. All methods may be called from any goroutine.
type Revocations struct {
	// Immutable after NewRevocations.
	cfg             RevocationsConfig
	client          redis.UniversalClient
	revoke, revoked *redis.Script
	kick            chan struct{} // capacity 1: something was revoked here

	// Owned by Run.
	line, epoch string
	number      int64
	listed      map[string]hit // what a reading from the first on has named so far; nil: none is under way
	pruned      time.Time

	// Any goroutine.
	loaded atomic.Bool
	failed atomic.Uint64

	// Guarded by mu.
	mu   sync.RWMutex
	hits map[string]hit
}

// NewRevocations returns Revocations that knows nothing yet: until Run has read them once, Check says ErrUnavailable.
func NewRevocations(client redis.UniversalClient, cfg RevocationsConfig) *Revocations {
	return &Revocations{
		cfg: cfg, client: client, kick: make(chan struct{}, 1), hits: make(map[string]hit), epoch: "-",
		revoke: redis.NewScript(cfg.Layout.Script(revokeSource)), revoked: redis.NewScript(cfg.Layout.Script(revokedSource)),
	}
}

// Check returns nil, a *Refusal when the token was revoked, or ErrUnavailable while that is not known.
func (r *Revocations) Check(id *Identity) error {
	if !r.loaded.Load() {
		return &unavailable{why: "the revocations are not read yet"}
	}
	if r.Hits(id) {
		return &Refusal{Reason: ReasonRevoked}
	}
	return nil
}

// Hits reports whether a token is known to be revoked.
func (r *Revocations) Hits(id *Identity) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.hits) == 0 {
		return false
	}
	if h, ok := r.hits[everybody]; ok && id.IssuedAt <= h.before {
		return true
	}
	if h, ok := r.hits[userPrefix+string(id.User)]; ok && id.IssuedAt <= h.before {
		return true
	}
	_, ok := r.hits[tokenPrefix+id.TokenID]
	return ok && id.TokenID != ""
}

// Revoke enters revocations for the whole cluster: all of them, or none. It returns when Redis has them; every gateway that reaches
// Redis knows them within Every and one call. The error is ErrFull, ErrUnavailable, or what is wrong with one.
func (r *Revocations) Revoke(ctx context.Context, list ...Revocation) error {
	var args []any
	for i := range list {
		name, err := list[i].name()
		if err != nil {
			return err
		}
		before, err := list[i].before(time.Now())
		if err != nil {
			return err
		}
		args = append(args, name, before, "")
	}
	if err := r.enter(ctx, r.cfg.Most, args); err != nil {
		return err
	}
	select {
	case r.kick <- struct{}{}:
	default:
	}
	return nil
}

func (r *Revocations) keys() []string {
	first := r.cfg.Layout.Groups()[0]
	return []string{keyspace.Revocations(first), keyspace.RevocationOrder(first)}
}

// enter calls the script with name, before and end of each, unless there would be more than so many.
func (r *Revocations) enter(ctx context.Context, most int, each []any) error {
	args := append([]any{r.cfg.Kept.Milliseconds(), most, protocol.NewEpoch()}, each...)
	v, err := r.run(ctx, r.revoke, args)
	if err != nil {
		return err
	}
	if len(v) == 1 && v[0] == int64(-1) {
		return ErrFull
	}
	return nil
}

func (r *Revocations) run(ctx context.Context, s *redis.Script, args []any) ([]any, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	v, err := s.Run(ctx, r.client, r.keys(), args...).Slice()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return v, nil
}

// Run reads what is revoked until ctx ends.
func (r *Revocations) Run(ctx context.Context) error {
	tick := time.NewTicker(r.cfg.Every)
	defer tick.Stop()
	for failing := false; ; {
		err := r.read(ctx)
		if err != nil && ctx.Err() == nil {
			r.failed.Add(1)
			if !failing {
				r.cfg.Log.Warn("revocations not read: those known go on", "err", err)
			}
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.kick:
		}
	}
}

// read takes over what changed, all pages of it.
func (r *Revocations) read(ctx context.Context) error {
	changed := false
	var again []any // what Redis would forget too soon
	defer func() {
		if changed && r.cfg.OnChange != nil {
			r.cfg.OnChange()
		}
	}()
	for {
		p, err := r.page(ctx)
		if err != nil {
			if len(again) > 0 {
				r.epoch = "" // they are known only here
			}
			return err
		}
		if p.first {
			r.listed = make(map[string]hit)
		}
		for name, h := range p.hits {
			if r.listed != nil {
				r.listed[name] = h
			}
			if till := r.needed(h); till > h.till && till > p.now {
				h.till = till
				again = append(again, name, h.before, h.till)
			}
			changed = r.learn(name, h) || changed
		}
		r.line, r.epoch, r.number = p.line, p.epoch, p.number
		if p.more {
			continue
		}
		r.prune(p.now)
		if r.listed != nil {
			again = r.missing(p.now) // and all that would be forgotten too soon
		}
		if err := r.restore(ctx, again); err != nil {
			r.epoch = "" // from the first again
			return err
		}
		r.listed = nil
		r.loaded.Store(true)
		return nil
	}
}

// needed is the end until which a revocation must be known here: a token that it hits was issued at before, or lives as if. Whoever entered
// it may have kept it for less, a command with a shorter auth.max-lifetime than the gateways' say.
func (r *Revocations) needed(h hit) int64 { return h.before*1000 + r.cfg.Kept.Milliseconds() }

// page is one answer of revoked.lua.
type page struct {
	line, epoch string
	number, now int64
	first, more bool
	hits        map[string]hit
}

func (r *Revocations) page(ctx context.Context) (page, error) {
	v, err := r.run(ctx, r.revoked, []any{r.epoch, r.number, r.line})
	if err != nil {
		return page{}, err
	}
	if len(v) < 6 || len(v)%3 != 0 {
		return page{}, fmt.Errorf("auth: revoked answered %d values", len(v))
	}
	p := page{line: fmt.Sprint(v[0]), epoch: fmt.Sprint(v[1]), first: v[4] == int64(1), more: v[5] == int64(1), hits: make(map[string]hit)}
	var wrong error
	number := func(v any) int64 {
		n, err := strconv.ParseInt(fmt.Sprint(v), 10, 64)
		if err != nil {
			wrong = fmt.Errorf("auth: revoked answered: %w", err)
		}
		return n
	}
	p.number, p.now = number(v[2]), number(v[3])
	for i := 6; i < len(v); i += 3 {
		p.hits[fmt.Sprint(v[i])] = hit{before: number(v[i+1]), till: number(v[i+2])}
	}
	return p, wrong
}

// learn makes the copy know at least this much, and reports whether it is more than it knew.
func (r *Revocations) learn(name string, h hit) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.hits[name]
	if ok && known.before >= h.before && known.till >= h.till {
		return false
	}
	r.hits[name] = hit{before: max(known.before, h.before), till: max(known.till, h.till)}
	return true
}

// missing is what this gateway knows and a Redis that lost something does not. All gateways enter it again, and the second finds it there.
func (r *Revocations) missing(now int64) (each []any) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for name, h := range r.hits {
		if there := r.listed[name]; h.till > now && (there.before < h.before || there.till < h.till) {
			each = append(each, name, h.before, h.till)
		}
	}
	return each
}

// restore enters revocations again. For these there is room however many there are by now: each was accepted once, and a token that was
// revoked must not be good again because others were revoked since.
func (r *Revocations) restore(ctx context.Context, each []any) error {
	for len(each) > 0 {
		n := min(len(each), 3*restoredAtOnce)
		if err := r.enter(ctx, math.MaxInt32, each[:n]); err != nil {
			return err
		}
		each = each[n:]
	}
	return nil
}

// restoredAtOnce keeps the script short.
const restoredAtOnce = 500

// prune forgets, once a minute, those that no token can live to see.
func (r *Revocations) prune(now int64) {
	if time.Since(r.pruned) < time.Minute {
		return
	}
	r.pruned = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, h := range r.hits {
		if h.till <= now {
			delete(r.hits, name)
		}
	}
}

// RevocationStats are figures for metrics.
type RevocationStats struct {
	Held   int
	Failed uint64 // readings
}

// Stats reads them.
func (r *Revocations) Stats() RevocationStats {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return RevocationStats{Held: len(r.hits), Failed: r.failed.Load()}
}
