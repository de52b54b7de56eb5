package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/gateway"
	"chatgate/internal/protocol"
)

// genCommand makes a token. What is secret comes from files: a command line is seen by everyone on the machine.
type genCommand struct {
	Key    string        `required:"" placeholder:"FILE" help:"Private key in PEM (RSA, P-256, Ed25519), or a secret of at least 32 bytes for HS256."`
	Kid    string        `placeholder:"ID" help:"Key id in the header. Empty: none."`
	User   string        `required:"" placeholder:"USER" help:"The user the token is for (sub)."`
	Iss    string        `placeholder:"ISSUER" help:"Issuer (iss). Empty: the first of auth.issuers."`
	Aud    string        `placeholder:"NAME" help:"Audience (aud). Empty: the first of auth.audiences."`
	TTL    time.Duration `name:"ttl" default:"1h" help:"How long the token is good."`
	ID     string        `placeholder:"ID" help:"Token id (jti). Empty: a random one."`
	Claims string        `placeholder:"JSON" help:"Further claims, such as {\"rooms\":[\"team-7/*\"],\"limits\":{\"messageRate\":5}}."`
}

func (g *genCommand) run(cfg gateway.AuthConfig, stdout, stderr io.Writer) int {
	claims := make(map[string]any)
	if g.Claims != "" {
		if err := json.Unmarshal([]byte(g.Claims), &claims); err != nil || claims == nil {
			return complain(stderr, exitUsage, errors.New("--claims: must be a JSON object"))
		}
	}
	iss, aud := firstOf(g.Iss, cfg.Issuers), firstOf(g.Aud, cfg.Audiences)
	switch {
	case iss == "":
		return complain(stderr, exitUsage, errors.New("--iss: is needed where auth.issuers is not set"))
	case aud == "":
		return complain(stderr, exitUsage, errors.New("--aud: is needed where auth.audiences is not set"))
	case g.TTL < time.Second:
		return complain(stderr, exitUsage, errors.New("--ttl: must be at least 1s"))
	}
	now := time.Now().Unix()
	claims["iss"], claims["aud"], claims["sub"] = iss, aud, g.User
	claims["iat"], claims["exp"] = now, now+int64(g.TTL/time.Second)
	if claims["jti"] = g.ID; g.ID == "" {
		claims["jti"] = rand.Text()
	}
	signer, err := auth.LoadSigner(g.Key, g.Kid)
	if err != nil {
		return complain(stderr, exitUsage, fmt.Errorf("--key: %w", err))
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return complain(stderr, exitFailure, err)
	}
	token, err := signer.Sign(payload)
	if err != nil {
		return complain(stderr, exitFailure, err)
	}
	if len(token) > auth.MaxTokenBytes {
		return complain(stderr, exitUsage, fmt.Errorf("--claims: the token would be %d bytes, and gateways take %d", len(token), auth.MaxTokenBytes))
	}
	fmt.Fprintln(stdout, token)
	if g.TTL > cfg.MaxLifetime {
		fmt.Fprintln(stderr, "gateway: warning: the token lives longer than auth.max-lifetime allows")
	}
	return exitOK
}

func firstOf(given string, list []string) string {
	if given == "" && len(list) > 0 {
		return list[0]
	}
	return given
}

// verifyCommand looks at a token, which is as good as a password while it lives: so it is never an argument.
type verifyCommand struct {
	File string `arg:"" optional:"" help:"File with the token. Without it, or -, it is read from standard input."`
}

// verifyTimeout bounds the whole command, the fetch of key sets included.
const verifyTimeout = 10 * time.Second

func (c *verifyCommand) run(cfg gateway.AuthConfig, stdin io.Reader, stdout, stderr io.Writer) int {
	if !cfg.Enabled() {
		return complain(stderr, exitUsage, errors.New("auth.keys, auth.secrets or auth.key-sets: nothing to verify a token with"))
	}
	token, err := c.read(stdin)
	if err != nil {
		return complain(stderr, exitUsage, err)
	}
	cfg.KeySetMinInterval = min(cfg.KeySetMinInterval, time.Second)
	verifier, err := auth.New(cfg.Verification(slog.New(slog.NewTextHandler(stderr, nil))))
	if err != nil {
		return complain(stderr, exitUsage, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
	var running sync.WaitGroup
	running.Go(func() { _ = verifier.Run(ctx) })
	id, err := verifier.Verify(ctx, []byte(token))
	if errors.Is(err, auth.ErrUnavailable) {
		// The first fetch was under way, which proves no key wrong: the next one does.
		select {
		case <-ctx.Done():
		case <-time.After(auth.RetryAfter(err)):
			id, err = verifier.Verify(ctx, []byte(token))
		}
	}
	cancel()
	running.Wait()
	switch {
	case errors.Is(err, auth.ErrUnavailable):
		return complain(stderr, exitDependency, err)
	case err != nil:
		return complain(stderr, exitFailure, err)
	}
	shown := struct {
		User      string          `json:"user"`
		TokenID   string          `json:"tokenId,omitempty"`
		IssuedAt  time.Time       `json:"issuedAt"`
		ExpiresAt time.Time       `json:"expiresAt"`
		Meta      json.RawMessage `json:"meta,omitempty"`
		Allows    *auth.Grant     `json:"allows"`
	}{string(id.User), id.TokenID, time.Unix(id.IssuedAt, 0).UTC(), id.ExpiresAt().UTC(), json.RawMessage(id.Meta), &id.Grant}
	encoder := json.NewEncoder(stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(shown); err != nil {
		return complain(stderr, exitFailure, err)
	}
	return exitOK
}

// read takes the token from its file, with the line break at its end if there is one. A longer file than a token may be is read as far
// as to see that.
func (c *verifyCommand) read(stdin io.Reader) (string, error) {
	if c.File != "" && c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return "", err
		}
		defer f.Close()
		stdin = f
	}
	data, err := io.ReadAll(io.LimitReader(stdin, auth.MaxTokenBytes+3))
	return strings.TrimRight(string(data), "\r\n"), err
}

// revokeCommand makes tokens bad before their time.
type revokeCommand struct {
	User   string    `xor:"what" required:"" placeholder:"USER" help:"The tokens of this user issued so far."`
	ID     string    `xor:"what" required:"" placeholder:"ID" help:"The token with this id (jti)."`
	All    bool      `xor:"what" required:"" help:"Everybody's tokens issued so far."`
	Before time.Time `placeholder:"TIME" help:"Only those issued up to this moment, such as 2026-11-25T17:00:00Z. Without it: now."`
}

func (c *revokeCommand) run(cfg gateway.Config, stdout, stderr io.Writer) int {
	if cfg.Redis.Embedded() {
		return complain(stderr, exitUsage, errors.New("redis.url: is empty, and an embedded Redis can't be reached from here"))
	}
	what := auth.Revocation{User: protocol.UserID(c.User), TokenID: c.ID, All: c.All, Before: c.Before}
	if err := what.Validate(); err != nil {
		return complain(stderr, exitUsage, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
	defer cancel()
	err := gateway.Revoke(ctx, cfg, newLogger(cfg.Log, stderr), what)
	if err != nil {
		return complain(stderr, exitCode(err), err)
	}
	fmt.Fprintln(stdout, "revoked")
	return exitOK
}
