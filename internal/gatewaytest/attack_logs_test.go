//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// ownWords is how every line of a gateway begins in the format for terminals. Nothing that happens here is an error of its own.
var ownWords = regexp.MustCompile(`^time=\d{4}-\d\d-\d\dT\S+ level=(DEBUG|INFO|WARN) msg=`)

// wantOwnWords says what is wrong with a line of the log.
func wantOwnWords(format, line string) error {
	if format == "text" {
		switch {
		case !ownWords.MatchString(line):
			return errors.New("not the gateway's words")
		case strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }):
			return errors.New("not for a terminal")
		}
		return nil
	}
	// JSON is for programs: what has no width may stand in it.
	var words struct{ Time, Level, Msg string }
	switch err := json.Unmarshal([]byte(line), &words); {
	case err != nil:
		return err
	case words.Time == "" || words.Msg == "" || words.Level == "ERROR":
		return errors.New("not the gateway's words")
	case strings.ContainsFunc(line, unicode.IsControl) || !utf8.ValidString(line):
		return errors.New("control characters")
	}
	return nil
}

// What strangers send reaches the log in its most talkative setting as parts of lines, never as lines: nobody writes there what looks like
// the gateway's own words, or moves a terminal's cursor. Tokens, and what people say to each other, are not there at all.
func TestStrangersWriteNoLinesIntoTheLog(t *testing.T) {
	secret := []byte("a secret of more than thirty-two bytes")
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	const mark = "level=ERROR msg=forged"
	strange := []string{
		mark, `"} {"level":"ERROR","msg":"forged"}`, "a\u2028" + mark, "a\u202e" + mark, "\u200b" + mark, `\n` + mark, `\u000a` + mark, `%0a` + mark, "a=b \"c\\", "\U000e0041" + mark,
	}
	forbidden := []string{"\n" + mark, "\r\n" + mark, "\x1b[2J" + mark, "\x00" + mark, "\u0085" + mark, "\u009b2J" + mark, "\xff" + mark}
	now := time.Now().Unix()
	tokenOf := func(user string, header claims) string {
		return mint(t, header, claims{"iss": "id", "aud": "chat", "sub": user, "iat": now, "exp": now + 3600}, secret)
	}
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{
				"--log.level=debug", "--log.format=" + format, "--limits.connect-rate-per-ip=0", "--insecure", "--trusted-proxies=127.0.0.1",
				"--auth.issuers=id", "--auth.audiences=chat", "--auth.secrets=" + file,
			}})
			// Headers and paths, before anyone is known.
			for _, s := range append(strange, forbidden...) {
				for _, request := range [...]string{
					"GET /" + s + " HTTP/1.1\r\nHost: " + g.Addr + "\r\n\r\n",
					s + " / HTTP/1.1\r\nHost: " + g.Addr + "\r\n\r\n",
					strings.Replace(Handshake(g.Addr), "\r\n\r\n", "\r\nX-Forwarded-For: "+s+"\r\nUser-Agent: "+s+"\r\nOrigin: http://"+s+"\r\n\r\n", 1),
					"\x16\x03\x01" + s,
				} {
					for _, addr := range []string{g.Addr, g.Internal} {
						r, err := DialRaw(addr, 0)
						if err != nil {
							t.Fatal(err)
						}
						_, _ = r.Write([]byte(request))
						r.Close()
					}
				}
			}
			// Names, of those who are let in; and names, tokens and words of those who are not.
			for i, s := range strange {
				c := Connect(t, g.WS(), s, "deviceId", s, "meta", map[string]any{"a": s})
				id, err := c.Send(s, "words between people", s)
				if err != nil {
					t.Fatal(err)
				}
				if ack, err := c.Ack(id, Deadline); err != nil || ack.Type != "ack" {
					t.Fatalf("%q: %v, %v", s, ack, err)
				}
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				named := Open(t, g.WS())
				if _, err := named.Register(s, "token", tokenOf(s, claims{"alg": "HS256"})); err != nil {
					t.Fatalf("%q: %v", s, err)
				}
				named.Cut()
				bad := Open(t, g.WS())
				if _, err := bad.Register("x", "token", tokenOf(s, claims{"alg": strange[i], "kid": forbidden[i%len(forbidden)]})); err == nil {
					t.Fatal("a bad token let someone in")
				}
			}
			for _, s := range forbidden {
				if !utf8.ValidString(s) {
					continue // a name is written as JSON here, which repairs it
				}
				c := Open(t, g.WS())
				for _, wrong := range []struct {
					frame map[string]any
					code  string
				}{
					{object("register", []any{"userId", s, "deviceId", s}), "bad_request"},
					{object(s, []any{"id", s}), "unknown_type"},
				} {
					if err := c.Write(wrong.frame); err != nil {
						t.Fatal(err)
					}
					if f, err := c.Next("error", Deadline); err != nil || f.CodeText() != wrong.code {
						t.Errorf("%q: %v, %v, want %s", wrong.frame, f, err, wrong.code)
					}
				}
			}
			var log string
			if err := Poll(2*Deadline, func() error {
				if log = g.Log(); strings.Count(log, "connection ended") < 3*len(strange) || strings.Count(log, "token refused") < len(strange) {
					return fmt.Errorf("the log has not told of everybody:\n%s", g.LogTail(3))
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(log) {
				if err := wantOwnWords(format, strings.TrimSuffix(line, "\n")); err != nil {
					t.Errorf("%v: %q", err, line)
				}
			}
			for _, never := range []string{"words between people", string(secret), tokenOf("x", claims{"alg": "HS256"})[:20], "eyJ"} {
				if strings.Contains(log, never) {
					t.Errorf("%q is in the log", never)
				}
			}
		})
	}
}
