//go:build !secondpass

package gatewaytest

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// configured is a gateway whose settings are in a file.
type configured struct {
	*Gateway
	t    *testing.T
	file string
	seen int // lines of its log that were looked at
}

func startConfigured(t *testing.T, settings string, flags ...string) *configured {
	t.Helper()
	g := &configured{t: t, file: filepath.Join(t.TempDir(), "gateway.yaml")}
	g.write(settings)
	g.Gateway = StartGateway(t, Shared(t, Standalone), Options{Flags: append([]string{"--config", g.file}, flags...)})
	return g
}

func (g *configured) write(settings string) {
	g.t.Helper()
	if err := os.WriteFile(g.file, []byte(settings), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// reload sends SIGHUP and returns the line of the log that tells what became of it.
func (g *configured) reload() (line struct {
	Msg, Err         string
	Changed, Restart []string
},
) {
	g.t.Helper()
	g.HangUp()
	err := Poll(Deadline, func() error {
		lines := strings.Split(g.Log(), "\n")
		for i := g.seen; i < len(lines)-1; i++ {
			if json.Unmarshal([]byte(lines[i]), &line) == nil && strings.HasPrefix(line.Msg, "reload") {
				g.seen = i + 1
				return nil
			}
		}
		return fmt.Errorf("nothing is logged of a reload")
	})
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.LogTail(20))
	}
	return line
}

// wantReloaded reloads, and wants these settings taken over and those to need a restart.
func (g *configured) wantReloaded(changed, restart string) {
	g.t.Helper()
	if line := g.reload(); line.Err != "" || strings.Join(line.Changed, " ") != changed || strings.Join(line.Restart, " ") != restart {
		g.t.Errorf("reloaded: %+v, want changed %q, restart %q", line, changed, restart)
	}
}

// rush sends n messages as fast as it can, and returns how long it took until all were acknowledged.
func rush(t *testing.T, c *Client, n int) time.Duration {
	t.Helper()
	began := time.Now()
	ids := make([]string, n)
	for i := range ids {
		var err error
		if ids[i], err = c.Send("bob", i, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range ids {
		if f, err := c.Ack(id, 4*Deadline); err != nil || f.Type != "ack" {
			t.Fatalf("%s: %s, %v\n%s", id, f, err, c.Story(5))
		}
	}
	return time.Since(began)
}

// A limit is lowered and raised for a connection that is open; what is wrong in the file changes nothing, neither what is wrong itself nor
// what stands beside it; and what can't change while the gateway runs is named.
func TestSIGHUPReloadsLimits(t *testing.T) {
	t.Parallel()
	const plenty = "limits.message-rate: 1000\nlimits.connect-rate-per-ip: 1000\n"
	g := startConfigured(t, plenty)
	alice := Connect(t, g.WS(), "alice")
	slow := func(want bool) {
		t.Helper()
		if took := rush(t, alice, 60); want && took < 1900*time.Millisecond {
			t.Errorf("60 messages in %v at 20 a second", took)
		} else if !want && took > 1900*time.Millisecond {
			t.Logf("60 messages took %v without a limit to speak of", took)
		}
	}
	slow(false)
	g.wantReloaded("", "")
	g.write("limits.message-rate: 20\nlimits.connect-rate-per-ip: 1000\n")
	g.wantReloaded("limits.message-rate", "")
	slow(true)

	for name, broken := range map[string]string{
		"no YAML":           "limits: [",
		"an unknown name":   plenty + "limits.mesage-rate: 1\n",
		"a wrong value":     plenty + "limits.frame-rate: -1\n",
		"a contradiction":   plenty + "heartbeat.presence-ttl: 1s\n",
		"a wrong TLS file":  plenty + "tls.cert: /nowhere\n",
		"an unknown issuer": plenty + "auth.keys: [x=/nowhere]\n",
	} {
		g.write(broken)
		if line := g.reload(); line.Err == "" || line.Msg != "reload failed: everything stays as it was" {
			t.Errorf("%s: %+v", name, line)
		}
	}
	if err := os.Remove(g.file); err != nil {
		t.Fatal(err)
	}
	if line := g.reload(); !strings.Contains(line.Err, g.file) {
		t.Errorf("no file: %+v", line)
	}
	slow(true)

	g.write(plenty + "limits.in-flight: 32\nheartbeat.interval: 20s\nlimits.rooms-per-connection: 1\nlimits.connections-per-user: 1\n")
	g.wantReloaded("limits.message-rate limits.connections-per-user limits.rooms-per-connection", "limits.in-flight heartbeat.interval")
	within, began := Busier(t), time.Now()
	slow(false)
	if took := time.Since(began); took > within(3*time.Second) {
		t.Errorf("with the limit raised again, 60 messages took %v", took)
	}
	for i, want := range []string{"joined", "error"} {
		if err := alice.Write(map[string]any{"type": "join", "id": fmt.Sprint(i), "room": fmt.Sprint("r", i)}); err != nil {
			t.Fatal(err)
		}
		if f, err := alice.Next(want, Deadline); err != nil || f.Type != want {
			t.Errorf("join %d: %s, %v", i, f, err)
		}
	}
	Connect(t, g.WS(), "alice")
	if ended, err := alice.WaitEnd(Deadline); err != nil || ended.Code != 4502 {
		t.Errorf("with one connection for each user, the older one ended with %v, %v", ended, err)
	}
	// What needs a restart is named as long as it is so.
	g.wantReloaded("", "limits.in-flight heartbeat.interval")

	g.write("limits.message-rate: 1000\nlimits.connect-rate-per-ip: 1\n")
	g.wantReloaded("limits.connect-rate-per-ip limits.connections-per-user limits.rooms-per-connection", "")
	refused := false
	for range 5 {
		raw, err := DialRaw(g.Addr, 0)
		if err != nil {
			t.Fatal(err)
		}
		refused = refused || strings.HasPrefix(raw.answer(t, Handshake(g.Addr), Deadline), "HTTP/1.1 503")
		raw.Close()
	}
	if !refused {
		t.Error("five handshakes at once, and one a second may come")
	}
}

// Signals come faster than they are obeyed, and while the file is written: what it has in the end is what counts. A file that was cut off
// anywhere hurts nobody who is there, and the whole one is taken over as if nothing had been.
func TestManySIGHUPsEndWithTheLastFile(t *testing.T) {
	t.Parallel()
	settings := func(rate int) string {
		return fmt.Sprintf("limits.message-rate: %d\nlimits:\n  connect-rate-per-ip: 0\n  rooms-per-connection: 7\n", rate)
	}
	g := startConfigured(t, settings(1000))
	alice := Connect(t, g.WS(), "alice")
	for i := range 40 {
		g.write(settings(100 + i))
		g.HangUp()
		g.HangUp()
	}
	g.write(settings(20))
	g.HangUp()
	wantWithin(t, 4*Deadline, func() bool { return rush(t, alice, 60) > 1900*time.Millisecond })
	g.seen = strings.Count(g.Log(), "\n")
	g.wantReloaded("", "")

	whole, taken := settings(1000), 0
	for n := range whole {
		g.write(whole[:n])
		if line := g.reload(); line.Err == "" {
			taken++
		}
		if _, err := alice.Heartbeat(Deadline); err != nil {
			t.Fatalf("with %q: %v", whole[:n], err)
		}
	}
	if taken == 0 || taken == len(whole) {
		t.Errorf("%d of %d files that were cut off were taken over", taken, len(whole))
	}
	g.write(whole)
	if line := g.reload(); line.Err != "" {
		t.Errorf("%+v", line)
	}
	g.wantReloaded("", "")
	for i, want := range []string{"joined", "joined", "joined", "joined", "joined", "joined", "joined", "error"} {
		if err := alice.Write(map[string]any{"type": "join", "id": fmt.Sprint(i), "room": fmt.Sprint("r", i)}); err != nil {
			t.Fatal(err)
		}
		if f, err := alice.Next(want, Deadline); err != nil {
			t.Errorf("join %d: %s, %v", i, f, err)
		}
	}
}

// Keys and the certificate are read again: by the files that are set, and by others. One that can't be read changes nothing of the rest.
func TestSIGHUPReloadsKeysAndTheCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secretOf := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("the secret of "+name+", of more than thirty-two bytes\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first, second := secretOf("first"), secretOf("second")
	cert, key := selfSigned(t)
	copyFile := func(from, to string) {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const auth = "auth.issuers: [id]\nauth.audiences: [chat]\n"
	settings := func(secrets ...string) string {
		return fmt.Sprintf("%sauth.secrets: [%s]\ntls.cert: %s\ntls.key: %s\n", auth, strings.Join(secrets, ", "), cert, key)
	}
	g := &configured{t: t, file: filepath.Join(dir, "gateway.yaml")}
	g.write(settings(first))
	g.Gateway = NewGateway(t, Shared(t, Standalone), Options{Flags: []string{"--config", g.file}})
	if err := g.Launch(); err != nil {
		t.Fatal(err)
	}
	open := &tls.Config{InsecureSkipVerify: true}
	served := func() string {
		var serial string
		if err := Poll(startDeadline, func() error {
			nc, err := tls.Dial("tcp", g.Addr, open)
			if err == nil {
				serial = string(nc.ConnectionState().PeerCertificates[0].Signature)
				nc.Close()
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return serial
	}
	register := func(secret string) (Frame, error) {
		out, err := exec.Command(Build(t), "token", "gen", "--key", secret, "--user", "alice", "--iss", "id", "--aud", "chat").Output()
		if err != nil {
			t.Fatal(err)
		}
		dialer := websocket.Dialer{HandshakeTimeout: Deadline, TLSClientConfig: open}
		conn, _, err := dialer.Dial("wss://"+g.Addr+"/ws", nil)
		if err != nil {
			return Frame{}, fmt.Errorf("unavailable: %w", err)
		}
		c := newClient(conn)
		t.Cleanup(c.Cut)
		return c.Register("alice", "token", string(bytes.TrimSpace(out)))
	}
	want := func(secret string, good bool) {
		t.Helper()
		err := Poll(startDeadline, func() error {
			f, err := register(secret)
			if err != nil && strings.Contains(err.Error(), "unavailable") {
				return err
			}
			if (err == nil) != good {
				t.Errorf("with %s: %s, %v, want good %v", filepath.Base(secret), f, err, good)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	before := served()
	want(first, true)
	want(second, false)

	newCert, newKey := selfSigned(t)
	oldCert := filepath.Join(dir, "old.pem")
	copyFile(cert, oldCert)
	copyFile(newCert, cert)
	g.write(settings(first, second))
	if line := g.reload(); !strings.Contains(line.Err, "tls.cert") {
		t.Errorf("a certificate without its key, and a new secret: %+v", line)
	}
	want(second, false) // it was fit, and is not taken over all the same
	copyFile(oldCert, cert)
	g.wantReloaded("auth.secrets", "")
	want(first, true)
	want(second, true)
	copyFile(newCert, cert)
	g.write(settings(first)) // which would take the second away
	if line := g.reload(); !strings.Contains(line.Err, "tls.cert") {
		t.Errorf("a certificate without its key: %+v", line)
	}
	if served() != before {
		t.Error("it was taken over all the same")
	}
	want(second, true)
	g.write(settings(first, second))
	copyFile(newKey, key)
	if err := os.WriteFile(first, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if line := g.reload(); !strings.Contains(line.Err, "auth.secrets") {
		t.Errorf("a secret that is too short: %+v", line)
	}
	if served() != before {
		t.Error("the certificate was taken over although the keys were not")
	}
	copyFile(second, first)
	g.wantReloaded("", "")
	if served() == before {
		t.Error("the old certificate is still served")
	}
	want(second, true)
	g.write(auth + "auth.secrets: [" + second + "]\n")
	g.wantReloaded("auth.secrets", "tls.cert tls.key")
}
