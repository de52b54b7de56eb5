//go:build !secondpass

package gatewaytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// selfSigned writes a certificate for 127.0.0.1 and its key, and returns the files.
func selfSigned(t testing.TB) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "chatgate test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", keyDER)
}

// wss:// and https:// instead of ws:// and http://; HTTP/1.1 only, since nothing else can be upgraded.
func TestGatewayOverTLS(t *testing.T) {
	cert, key := selfSigned(t)
	g := NewGateway(t, Shared(t, Standalone), Options{Flags: []string{"--tls.cert", cert, "--tls.key", key}})
	if err := g.Launch(); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	raw, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(raw)
	trusting := &tls.Config{RootCAs: roots}
	web := &http.Client{Timeout: callDeadline, Transport: &http.Transport{TLSClientConfig: trusting, DisableKeepAlives: true, ForceAttemptHTTP2: true}}
	if err := Poll(startDeadline, func() error {
		response, err := web.Get("https://" + g.Addr + "/readyz")
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return &Refused{Status: response.StatusCode}
		}
		if response.ProtoMajor != 1 {
			t.Errorf("speaks %s", response.Proto)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	connect := func(user string) *Client {
		dialer := websocket.Dialer{TLSClientConfig: trusting, HandshakeTimeout: 2 * Deadline}
		conn, _, err := dialer.Dial("wss://"+g.Addr+"/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(conn)
		t.Cleanup(c.Cut)
		if _, err := c.Register(user); err != nil {
			t.Fatal(err)
		}
		return c
	}
	n := &neighbours{alice: connect("alice"), bob: connect("bob")}
	n.wantChat(t)

	// Plain HTTP at this port is told so, old TLS is refused, and neither hurts.
	nc, err := net.Dial("tcp", g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(2 * Deadline))
	if _, err := nc.Write([]byte(Handshake(g.Addr))); err != nil {
		t.Fatal(err)
	}
	if answer, _ := io.ReadAll(nc); !strings.HasPrefix(string(answer), "HTTP/1.0 400 ") {
		t.Errorf("plain HTTP is answered %q", answer)
	}
	old := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	if c, err := tls.Dial("tcp", g.Addr, old); err == nil {
		c.Close()
		t.Error("TLS 1.1 is spoken")
	}
	n.wantChat(t)
}

func TestGatewayWithoutItsCertificateDoesNotStart(t *testing.T) {
	cert, key := selfSigned(t)
	for name, flags := range map[string][]string{
		"no key":           {"--tls.cert", cert},
		"no certificate":   {"--tls.key", key},
		"no such file":     {"--tls.cert", cert + "x", "--tls.key", key},
		"the wrong way":    {"--tls.cert", key, "--tls.key", cert},
		"a key of another": {"--tls.cert", cert, "--tls.key", second(selfSigned(t))},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewGateway(t, nil, Options{Flags: flags})
			if err := g.Launch(); err != nil {
				t.Fatal(err)
			}
			if code, err := g.ExitCode(startDeadline); err != nil || code == 0 {
				t.Errorf("exit code %d, %v", code, err)
			}
			if !strings.Contains(g.Log(), "tls.") {
				t.Errorf("it does not say what is wrong:\n%s", g.Log())
			}
		})
	}
}

func second(_, b string) string { return b }
