package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chatgate/internal/gateway"
)

// The test binary is the command when this is set, so that signals and exit codes are tested on a real process.
const asCommand = "CHATGATE_TEST_AS_COMMAND"

const deadline = 20 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestExitCodeAndOutput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(file, []byte("limits:\n  mesage-rate: 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(t.TempDir(), "good.yaml")
	if err := os.WriteFile(good, []byte("limits.message-rate: 5\nredis.url: redis://:secret@r:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		args, environ  []string
		code           int
		stdout, stderr string
	}{
		"help":                     {[]string{"--help"}, nil, 0, "--limits.connect-rate", ""},
		"help beside a mistake":    {[]string{"--help"}, []string{"GATEWAY_PAGE=x"}, 0, "$GATEWAY_PAGE", ""},
		"version":                  {[]string{"version"}, []string{"GATEWAY_PAGE=x", "GATEWAY_CONFIG=/nowhere"}, 0, "gateway ", ""},
		"unknown flag":             {[]string{"--limits.conect-rate=5"}, nil, 2, "", "gateway: unknown flag --limits.conect-rate"},
		"unknown command":          {[]string{"start"}, nil, 2, "", "gateway: unexpected argument start"},
		"wrong kind":               {[]string{"serve", "--limits.message-rate=fast"}, nil, 2, "", "--limits.message-rate"},
		"wrong choice":             {[]string{"--redis.mode=mirrored"}, nil, 2, "", "--redis.mode must be one of"},
		"out of range":             {[]string{"--limits.message-rate=-1"}, nil, 2, "", "gateway: limits.message-rate: must be >= 0\n"},
		"two mistakes, two lines":  {[]string{"--name=a b", "--listen=x"}, nil, 2, "", "gateway: name: must be 1 to 64 letters, digits, dots, dashes or underscores\ngateway: listen: "},
		"file with a mistake":      {[]string{"--config", file}, nil, 2, "", "gateway: " + file + ":2: limits.mesage-rate: unknown setting, did you mean limits.message-rate?\n"},
		"the same by variable":     {nil, []string{"GATEWAY_CONFIG=" + file}, 2, "", file + ":2: "},
		"flag names another file":  {[]string{"config", "check", "-c", good}, []string{"GATEWAY_CONFIG=" + file}, 0, "message-rate: 5 # " + good + ":1\n", ""},
		"no such file":             {[]string{"--config=/nowhere/at.all"}, nil, 2, "", "/nowhere/at.all"},
		"variable with a mistake":  {nil, []string{"GATEWAY_LIMITS_MESSAGE_RATE=fast"}, 2, "", "gateway: GATEWAY_LIMITS_MESSAGE_RATE: "},
		"check":                    {[]string{"config", "check", "--page=off"}, nil, 0, "page: off # --page\n", ""},
		"check: flag in front":     {[]string{"--page=off", "config", "check"}, nil, 0, "page: off # --page\n", ""},
		"check: false by flag":     {[]string{"config", "check", "--no-insecure"}, []string{"GATEWAY_INSECURE=true"}, 0, "insecure: false", ""},
		"check: secret":            {[]string{"config", "check", "--config", good}, nil, 0, "url: redis://:*****@r:1 # " + good + ":2\n", ""},
		"check: warning":           {[]string{"config", "check", "--insecure"}, nil, 0, "insecure: true", "gateway: warning: insecure is set"},
		"check: misspelt variable": {[]string{"config", "check"}, []string{"GATEWAY_LIMIT_RATE=1"}, 0, "", "GATEWAY_LIMIT_RATE names no setting"},
		"check: mistake":           {[]string{"config", "check", "--cluster.lease=1s"}, nil, 2, "", "gateway: cluster.lease: "},
		"no nodes":                 {[]string{"dev", "--nodes=0"}, nil, 2, "", "gateway: --nodes: must be 1 to 16"},
		"dev for everybody":        {[]string{"dev", "--listen=0.0.0.0:0"}, nil, 2, "", "say --insecure"},
		"dev behind a proxy":       {[]string{"dev", "--proxy-protocol", "--trusted-proxies=127.0.0.1"}, nil, 2, "", "proxy-protocol: not in dev"},
		"no time to drain":         {[]string{"--drain.delay=5s", "--drain.window=20s"}, nil, 2, "", "gateway: drain.deadline: must be more than"},
		"Redis is not there":       {[]string{"--redis.url=redis://127.0.0.1:1", "--listen=127.0.0.1:0", "--internal-listen="}, nil, 3, "", `"msg":"gateway ended"`},
		"address of somebody else": {[]string{"--listen=203.0.113.1:80", "--insecure"}, nil, 1, "", "203.0.113.1:80"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(c.args, c.environ, &stdout, &stderr)
			if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("code %d, want %d; want %q and %q in\n%s\n%s", code, c.code, c.stdout, c.stderr, &stdout, &stderr)
			}
			if strings.Contains(stdout.String()+stderr.String(), "secret@") {
				t.Error("a password is shown")
			}
		})
	}
}

func TestExitCodeOfErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{fmt.Errorf("redis: %w", gateway.ErrDependency), 3},
		{fmt.Errorf("2 connections left: %w", gateway.ErrDrainDeadline), 4},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v ends with %d, want %d", c.err, got, c.want)
		}
	}
}

func TestLogFormat(t *testing.T) {
	for format, want := range map[string]string{"text": "msg=hello", "json": `"msg":"hello"`, "auto": `"msg":"hello"`} {
		var out bytes.Buffer
		newLogger(gateway.LogConfig{Format: format, Level: slog.LevelWarn}, &out).Warn("hello")
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: %s", format, &out)
		}
		out.Reset()
		if newLogger(gateway.LogConfig{Format: format, Level: slog.LevelWarn}, &out).Info("hello"); out.Len() > 0 {
			t.Errorf("%s: below the level and logged: %s", format, &out)
		}
	}
}

// process is a running command and its log.
type process struct {
	cmd   *exec.Cmd
	lines chan map[string]any // closed at the end of the log
	ended chan struct{}

	mu  sync.Mutex
	log bytes.Buffer
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0], args...), lines: make(chan map[string]any, 1024), ended: make(chan struct{})}
	p.cmd.Env = []string{asCommand + "=1"}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		defer close(p.lines)
		for scanner := bufio.NewScanner(io.TeeReader(stderr, (*processLog)(p))); scanner.Scan(); {
			var line map[string]any
			if json.Unmarshal(scanner.Bytes(), &line) == nil {
				p.lines <- line
			}
		}
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		_ = p.cmd.Wait()
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Logf("log:\n%s", &p.log)
		}
	})
	return p
}

type processLog process

func (p *processLog) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

// wantLogged waits for a line and returns one of its fields.
func (p *process) wantLogged(t *testing.T, msg, field string) string {
	t.Helper()
	limit := time.After(deadline)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("the log ended without %q", msg)
			}
			if line["msg"] == msg {
				return fmt.Sprint(line[field])
			}
		case <-limit:
			t.Fatalf("nothing logged %q", msg)
		}
	}
}

func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func (p *process) wantExit(t *testing.T, code int) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(deadline):
		t.Fatal("it did not end")
	}
	_ = p.cmd.Wait()
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
}

func TestGatewayServesAndSIGTERMEndsItWell(t *testing.T) {
	for _, s := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		p := start(t, "--listen=127.0.0.1:0", "--internal-listen=127.0.0.1:0")
		addr := p.wantLogged(t, "listening", "public")
		answer, err := http.Get("http://" + addr + "/stats")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("/stats answers %s", answer.Status)
		}
		p.signal(t, s)
		p.wantExit(t, 0)
	}
}

// A connection keeps the drain waiting for its delay. Whoever sends a second signal does not want to wait.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	p := start(t, "--listen=127.0.0.1:0", "--internal-listen=", "--drain.delay=1m", "--drain.deadline=2m")
	addr := p.wantLogged(t, "listening", "public")
	upgrade(t, addr)
	wantConnections(t, addr, 1) // which its handshake doesn't say yet
	p.signal(t, syscall.SIGTERM)
	p.wantLogged(t, "signal: ending", "signal")
	p.signal(t, syscall.SIGTERM)
	p.wantExit(t, 1)
}

// wantConnections waits until a gateway counts so many.
func wantConnections(t *testing.T, addr string, n int) {
	t.Helper()
	var stats struct {
		Active int `json:"active_connections"`
	}
	for limit := time.After(deadline); ; {
		answer, err := http.Get("http://" + addr + "/stats")
		if err == nil {
			err = json.NewDecoder(answer.Body).Decode(&stats)
			answer.Body.Close()
		}
		if err == nil && stats.Active == n {
			return
		}
		select {
		case <-limit:
			t.Fatalf("%d connections, %v, want %d", stats.Active, err, n)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// upgrade opens a WebSocket by hand and leaves it open.
func upgrade(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", addr)
	if err := conn.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "101") {
		t.Fatalf("answered %q, %v", line, err)
	}
}

// One command gives a cluster: the balancer leads to each gateway in turn.
func TestDevRunsSeveralGatewaysBehindOneAddress(t *testing.T) {
	p := start(t, "dev", "--nodes=3", "--listen=127.0.0.1:0", "--internal-listen=")
	url := p.wantLogged(t, "cluster is up", "url")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ids := map[string]bool{}
	for limit := time.After(deadline); len(ids) < 3; {
		if answer, err := client.Get(url + "stats"); err == nil {
			var stats struct {
				ID string `json:"gateway_id"`
			}
			if err := json.NewDecoder(answer.Body).Decode(&stats); err == nil && stats.ID != "" {
				ids[stats.ID] = true
			}
			answer.Body.Close()
		}
		select {
		case <-limit:
			t.Fatalf("reached %v only", ids)
		case <-time.After(10 * time.Millisecond):
		}
	}
	p.signal(t, syscall.SIGHUP) // which isn't the end
	p.wantLogged(t, "SIGHUP: dev reads its configuration only once", "msg")
	p.signal(t, syscall.SIGTERM)
	p.wantExit(t, 0)
}
