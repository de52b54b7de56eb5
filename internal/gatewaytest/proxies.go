package gatewaytest

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Proxy is a load balancer before the gateways, run from the config that deploy/ ships.
type Proxy struct {
	Addr string
	*Process
}

// URL is the balancer's address for HTTP, WS the one for WebSockets.
func (p *Proxy) URL() string { return "http://" + p.Addr }
func (p *Proxy) WS() string  { return "ws://" + p.Addr + "/ws" }

// StartNginx runs nginx from deploy/nginx/chatgate.conf, with the test's ports put in, before gateways at the given addresses.
func StartNginx(t testing.TB, backends ...string) *Proxy {
	t.Helper()
	program := Need(t, "nginx")
	p := &Proxy{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(t)))}
	dir := shallowDir(t)
	config := p.config(t, dir, "deploy/nginx/chatgate.conf",
		regexp.MustCompile(`(?m)^(\s*listen) 127\.0\.0\.1:8000\b`), regexp.MustCompile(`(?m)^(\s*server) (127\.0\.0\.1:80\d\d)(.*)$`), backends)
	args := []string{"-c", config, "-p", dir, "-g", "daemon off;"}
	if out, err := exec.Command(program, append([]string{"-t"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("nginx -t: %v\n%s", err, out)
	}
	// SIGTERM: the master takes its workers along.
	p.Process = Start(t, Command{Name: "nginx", Path: program, Args: args, Dir: dir, DeathSignal: syscall.SIGTERM})
	p.waitReady(t)
	return p
}

// StartHAProxy runs haproxy from deploy/haproxy/haproxy.cfg in the same way.
func StartHAProxy(t testing.TB, backends ...string) *Proxy {
	t.Helper()
	return startHAProxy(t, nil, backends...)
}

// startHAProxy changes the config by edit, if there is one, which must change something.
func startHAProxy(t testing.TB, edit func(config string) string, backends ...string) *Proxy {
	t.Helper()
	program := Need(t, "haproxy")
	p := &Proxy{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(t)))}
	dir := t.TempDir()
	config := p.config(t, dir, "deploy/haproxy/haproxy.cfg",
		regexp.MustCompile(`(?m)^(\s*bind) 127\.0\.0\.1:8001\b`), regexp.MustCompile(`(?m)^(\s*server \w+) (127\.0\.0\.1:80\d\d)(.*)$`), backends)
	if edit != nil {
		raw, err := os.ReadFile(config)
		if err != nil {
			t.Fatal(err)
		}
		edited := edit(string(raw))
		if edited == string(raw) {
			t.Fatal("the edit changed nothing")
		}
		if err := os.WriteFile(config, []byte(edited), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(program, "-c", "-f", config).CombinedOutput(); err != nil {
		t.Fatalf("haproxy -c: %v\n%s", err, out)
	}
	p.Process = Start(t, Command{Name: "haproxy", Path: program, Args: []string{"-db", "-f", config}, Dir: dir})
	p.waitReady(t)
	return p
}

// shallowDir returns a directory that nginx's workers may enter: they run as nobody when the test runs as root.
func shallowDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// config writes a copy of a shipped config with other ports, and fails when there was nothing to replace: then the shipped
// one has changed, and the copy would test something else.
func (p *Proxy) config(t testing.TB, dir, shipped string, listen, server *regexp.Regexp, backends []string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(moduleRoot(t), shipped))
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	if len(listen.FindAllString(text, -1)) != 1 {
		t.Fatalf("%s: not exactly one listener like %s", shipped, listen)
	}
	text = listen.ReplaceAllString(text, "${1} "+p.Addr)
	lines := server.FindAllString(text, -1)
	if len(lines) != 2 || len(backends) > len(lines) {
		t.Fatalf("%s: %d servers like %s for %d backends, want 2", shipped, len(lines), server, len(backends))
	}
	for i, line := range lines {
		replaced := ""
		if i < len(backends) {
			replaced = server.ReplaceAllString(line, "${1} "+backends[i]+"${3}")
		}
		text = strings.Replace(text, line, replaced, 1)
	}
	path := filepath.Join(dir, filepath.Base(shipped))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// waitReady returns when a gateway answers through the balancer.
func (p *Proxy) waitReady(t testing.TB) {
	t.Helper()
	err := Poll(startDeadline, func() error {
		if !p.Running() {
			return stop{errors.New("it ended")}
		}
		status, _, err := get(p.URL() + "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz says %d", status)
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s at %s: %v", p.Name, p.Addr, err)
	}
}

// moduleRoot is the directory of go.mod, above the one in which the test runs.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
	}
}
