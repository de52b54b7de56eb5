package gatewaytest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Gateway is one gateway process with its two listeners.
type Gateway struct {
	// Immutable after start.
	Name     string
	Addr     string // of the public listener; kept by Restart
	Internal string // address of the internal listener
	t        testing.TB
	binary   string
	args     []string
	env      []string

	// Owned by the test.
	*Process
}

// Options of a gateway. Zero: a gateway on free ports with the defaults everyone has.
type Options struct {
	Name  string   // empty: g
	Flags []string // added to the command line: "--limits.message-rate=0"
	Env   []string // added to the environment
}

// built is the gateway's program, built once for the test binary.
var built struct {
	once sync.Once
	path string
	err  error
}

// Build builds the gateway, with the race detector when the test has it, and returns the path of the program. The
// environment variable GATEWAY_BINARY names a program to use instead.
func Build(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("GATEWAY_BINARY"); path != "" {
		return path
	}
	testBinary.require(t)
	built.once.Do(func() {
		built.path = filepath.Join(testBinary.TempDir(), "gateway")
		args := []string{"build", "-o", built.path}
		if raceEnabled {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, "chatgate/cmd/gateway")...).CombinedOutput(); err != nil {
			built.err = fmt.Errorf("building the gateway: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// StartGateway starts a gateway on a Redis and returns when it is ready. At the end of the test it is killed, and a panic
// or a data race in its log fails the test.
func StartGateway(t testing.TB, r *Redis, options Options) *Gateway {
	t.Helper()
	g := NewGateway(t, r, options)
	if err := g.Restart(); err != nil {
		t.Fatal(err)
	}
	return g
}

// NewGateway prepares a gateway without starting it: Restart does.
func NewGateway(t testing.TB, r *Redis, options Options) *Gateway {
	t.Helper()
	if options.Name == "" {
		options.Name = "g"
	}
	g := &Gateway{
		Name: options.Name, t: t, binary: Build(t), env: options.Env,
		// Fixed, so that it comes back at the same place behind a load balancer.
		Addr:     net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(t))),
		Internal: net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(t))),
	}
	g.args = []string{"serve", "--name", g.Name, "--listen", g.Addr, "--internal-listen", g.Internal}
	if r != nil {
		g.args = append(g.args, "--redis.url", r.URL)
	}
	g.args = append(g.args, options.Flags...)
	return g
}

// Restart starts the process, again if it ran before (it is killed if it still runs), and waits until it is ready. Its
// addresses stay; for the cluster it is a new gateway.
func (g *Gateway) Restart() error {
	if err := g.Launch(); err != nil {
		return err
	}
	return g.WaitReady(startDeadline)
}

// Launch starts the process and doesn't wait.
func (g *Gateway) Launch() error {
	if g.Process != nil {
		g.Kill()
	}
	p, err := start(g.t, Command{Name: "gateway " + g.Name, Path: g.binary, Args: g.args, Env: g.env})
	if err != nil {
		return err
	}
	g.Process = p
	g.t.Cleanup(func() {
		p.Kill()
		if sign := crash.FindString(p.Log()); sign != "" {
			g.t.Errorf("gateway %s: %s; its log:\n%s", g.Name, sign, p.Log())
		}
	})
	return nil
}

// crash is what no gateway may ever print.
var crash = regexp.MustCompile(`WARNING: DATA RACE|(?m)^panic: .*|(?m)^fatal error: .*|http: panic serving.*`)

// WaitReady returns when the gateway takes clients.
func (g *Gateway) WaitReady(within time.Duration) error {
	err := Poll(within, func() error {
		if !g.Running() {
			code, _ := g.ExitCode(0)
			return stop{fmt.Errorf("it ended with code %d:\n%s", code, g.LogTail(20))}
		}
		status, body, err := g.Get("/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz says %d: %.200s", status, body)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("gateway %s is not ready: %w", g.Name, err)
	}
	return nil
}

// URL is the public address for HTTP, WS the one for WebSockets.
func (g *Gateway) URL() string { return "http://" + g.Addr }
func (g *Gateway) WS() string  { return "ws://" + g.Addr + "/ws" }

// httpClient keeps no connection: a killed gateway's would be in the way of its successor's.
var httpClient = &http.Client{Timeout: callDeadline, Transport: &http.Transport{DisableKeepAlives: true}}

// Get fetches a page of the public listener.
func (g *Gateway) Get(path string) (status int, body []byte, err error) {
	return get(g.URL() + path)
}

// GetInternal fetches a page of the internal listener.
func (g *Gateway) GetInternal(path string) (status int, body []byte, err error) {
	return get("http://" + g.Internal + path)
}

func get(url string) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	response, err := httpClient.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

// Stats returns what /stats says.
func (g *Gateway) Stats() (map[string]any, error) { return g.stats("/stats") }

// ClusterStats returns what /stats says of the whole cluster.
func (g *Gateway) ClusterStats() (map[string]any, error) { return g.stats("/stats?scope=cluster") }

func (g *Gateway) stats(path string) (map[string]any, error) {
	status, body, err := g.Get(path)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s of gateway %s: status %d, %.200s", path, g.Name, status, body)
	}
	var stats map[string]any
	if err := json.Unmarshal(body, &stats); err != nil {
		return nil, fmt.Errorf("%s of gateway %s: %w", path, g.Name, err)
	}
	return stats, nil
}

// check asks a gateway that still runs whether its own indexes agree.
func (g *Gateway) check() error {
	if !g.Running() {
		return nil
	}
	status, body, err := g.GetInternal("/debug/check")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("/debug/check says %d: %s", status, body)
	}
	return err
}
