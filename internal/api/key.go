package api

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/time/rate"
)

// Scope is what a key may do.
type Scope string

// The scopes.
const (
	ScopeSend        Scope = "send"
	ScopePresence    Scope = "presence"
	ScopeConnections Scope = "connections"
	ScopeRooms       Scope = "rooms"
	ScopeHistory     Scope = "history"
	ScopeStats       Scope = "stats"
	ScopeControl     Scope = "control"
	ScopeTrace       Scope = "trace"
	ScopeRevoke      Scope = "revoke"
)

// ScopeInfo is one row of the table of scopes.
type ScopeInfo struct {
	Scope   Scope
	Meaning string
}

// Scopes says what each of them allows: the OpenAPI document and docs/api.md are made from it.
var Scopes = []ScopeInfo{
	{ScopeSend, "Send messages to users, rooms and everyone, under any name."},
	{ScopePresence, "Ask who is online."},
	{ScopeConnections, "Look at connections: whose, on which device and gateway, with which meta."},
	{ScopeRooms, "Ask who is in a room."},
	{ScopeHistory, "Read the messages of any user and any room."},
	{ScopeStats, "Look at gateways and figures of the cluster."},
	{ScopeControl, "End connections, move them, say what is bound to them, and steer gateways."},
	{ScopeTrace, "Trace what becomes of a user's messages, or of one: ids and outcomes, never contents."},
	{ScopeRevoke, "Revoke tokens."},
}

func knownScope(s Scope) bool {
	return slices.ContainsFunc(Scopes, func(x ScopeInfo) bool { return x.Scope == s })
}

// ParseScopes reads the names of scopes; "all" is every one.
func ParseScopes(names []string) ([]Scope, error) {
	var list []Scope
	for _, name := range names {
		switch {
		case name == "all":
			for _, s := range Scopes {
				list = append(list, s.Scope)
			}
		case knownScope(Scope(name)):
			list = append(list, Scope(name))
		default:
			return nil, fmt.Errorf("no scope is called %s; there are all, %s", strconv.Quote(name), strings.Join(scopeNames(), ", "))
		}
	}
	return list, nil
}

func scopeNames() (names []string) {
	for _, s := range Scopes {
		names = append(names, string(s.Scope))
	}
	return names
}

// Key is what the configuration knows of a key: never the key itself. The yaml tags are its names in the file.
type Key struct {
	Name   string   `yaml:"name"`   // for the log and for whoever replaces it
	Hash   string   `yaml:"hash"`   // "sha256:" and 64 hexadecimal digits
	Scopes []string `yaml:"scopes"` // what it may do
	Rate   int      `yaml:"rate"`   // calls a second, with bursts of as many; 0: no limit
}

const (
	hashPrefix = "sha256:"
	keyPrefix  = "cgk_"
	// keyBytes of a random key: no one finds it by trying, so a plain hash of it is safe to keep.
	keyBytes = 32
)

var keyName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// NewKey makes a random key, and the hash that the configuration has.
func NewKey() (key, hash string) {
	b := make([]byte, keyBytes)
	_, _ = rand.Read(b) // never fails
	key = keyPrefix + base64.RawURLEncoding.EncodeToString(b)
	sum := sha256.Sum256([]byte(key))
	return key, hashPrefix + hex.EncodeToString(sum[:])
}

// Validate says what is wrong with an entry.
func (k *Key) Validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !keyName.MatchString(k.Name) {
		wrong("name: must be 1 to 64 letters, digits, dots, dashes or underscores")
	}
	if _, err := k.sum(); err != nil {
		wrong("hash: %w", err)
	}
	if len(k.Scopes) == 0 {
		wrong("scopes: must name at least one")
	}
	for _, s := range k.Scopes {
		if !knownScope(Scope(s)) {
			wrong("scopes: no scope is called %q", s)
		}
	}
	if k.Rate < 0 {
		wrong("rate: must be >= 0")
	}
	return errors.Join(errs...)
}

func (k *Key) sum() (sum [sha256.Size]byte, err error) {
	text, ok := strings.CutPrefix(k.Hash, hashPrefix)
	n, bad := hex.DecodeString(text)
	if !ok || bad != nil || len(n) != sha256.Size {
		return sum, errors.New("must be sha256: and 64 hexadecimal digits, as gateway key gen prints it")
	}
	return [sha256.Size]byte(n), nil
}

// ValidateKeys says what is wrong with a list of entries, each named by its place in it.
func ValidateKeys(list []Key) error {
	var errs []error
	names, hashes := make(map[string]bool), make(map[string]bool)
	for i := range list {
		k := &list[i]
		if err := k.Validate(); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				errs = append(errs, fmt.Errorf("%s: %s", k.Name, line))
			}
		}
		if names[k.Name] {
			errs = append(errs, fmt.Errorf("%s: name: is that of two keys", k.Name))
		}
		if hash := strings.ToLower(k.Hash); hashes[hash] {
			errs = append(errs, fmt.Errorf("%s: hash: is that of another key, too", k.Name))
		} else {
			hashes[hash] = true
		}
		names[k.Name] = true
	}
	return errors.Join(errs...)
}

// key is a Key that calls are checked by.
type key struct {
	name    string
	sum     [sha256.Size]byte
	scopes  []Scope
	limiter *rate.Limiter // nil: no limit
}

// nobody is who calls where no key is needed: he may do everything.
var nobody = &key{name: "none"}

func (k *key) may(s Scope) bool { return k == nobody || slices.Contains(k.scopes, s) }

// SetKeys replaces all keys; calls that are under way go on, and what a key has used of its rate stays used while the rate is the same. The
// error says what is wrong with an entry, and then all stays as it was. One goroutine at a time calls it.
func (a *API) SetKeys(list []Key) error {
	if err := ValidateKeys(list); err != nil {
		return err
	}
	limiters := make(map[[sha256.Size]byte]*rate.Limiter)
	if before := a.keys.Load(); before != nil {
		for _, k := range *before {
			limiters[k.sum] = k.limiter
		}
	}
	keys := make([]*key, 0, len(list))
	for i := range list {
		k := &key{name: list[i].Name}
		k.sum, _ = list[i].sum()
		for _, s := range list[i].Scopes {
			k.scopes = append(k.scopes, Scope(s))
		}
		if n := list[i].Rate; n > 0 {
			if k.limiter = limiters[k.sum]; k.limiter == nil || k.limiter.Burst() != n {
				k.limiter = rate.NewLimiter(rate.Limit(n), n)
			}
		}
		keys = append(keys, k)
	}
	a.keys.Store(&keys)
	return nil
}

// Texts of refusals that tests and docs name.
const (
	detailNoKey    = "the header Authorization: Bearer must hold an API key"
	detailWrongKey = "the key is not one of api.keys"
	detailOff      = "the internal listener is reachable beyond this machine, and there are no keys: set api.keys"
	detailBrowser  = "without api.keys nothing is answered to the pages of a browser"
)

// authenticate says who calls.
func (a *API) authenticate(r *http.Request) (*key, *Problem) {
	keys := *a.keys.Load()
	if len(keys) == 0 {
		switch {
		case !a.cfg.Open:
			return nil, refuse(CodeDisabled, detailOff)
		case fromPage(r):
			// Whatever page is open on this machine could have its browser ask.
			return nil, refuse(CodeForbidden, detailBrowser)
		}
		return nobody, nil
	}
	shown, ok := bearer(r.Header["Authorization"])
	if !ok {
		return nil, refuse(CodeUnauthorized, detailNoKey)
	}
	// Hashed first, and compared with all of them: how long it takes says nothing about any.
	sum := sha256.Sum256([]byte(shown))
	var found *key
	for _, k := range keys {
		if subtle.ConstantTimeCompare(sum[:], k.sum[:]) == 1 {
			found = k
		}
	}
	if found == nil {
		a.wrongKeys.Add(1)
		return nil, refuse(CodeUnauthorized, detailWrongKey)
	}
	return found, nil
}

// bearer takes the key out of the one Authorization header there must be.
func bearer(headers []string) (string, bool) {
	if len(headers) != 1 {
		return "", false
	}
	scheme, shown, ok := strings.Cut(headers[0], " ")
	return strings.TrimSpace(shown), ok && strings.EqualFold(scheme, "Bearer") && strings.TrimSpace(shown) != ""
}

// fromPage reports whether a browser's page is behind a request: it sends an Origin with everything that could change something, and a
// newer one says by Sec-Fetch-Site that it isn't its user who typed the address.
func fromPage(r *http.Request) bool {
	if len(r.Header["Origin"]) > 0 {
		return true
	}
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "none"
}
