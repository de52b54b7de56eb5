//go:build !secondpass

package gatewaytest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// wantExit starts a gateway that must not come up, and wants its exit code and words that help whoever reads its log.
func wantExit(t *testing.T, r *Redis, flags []string, code int, words ...string) {
	t.Helper()
	g := NewGateway(t, r, Options{Flags: flags})
	if err := g.Launch(); err != nil {
		t.Fatal(err)
	}
	got, err := g.ExitCode(30 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	log := g.Log()
	if got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	for _, word := range words {
		if !strings.Contains(log, word) {
			t.Errorf("its log doesn't say %q", word)
		}
	}
	if t.Failed() {
		t.Logf("log:\n%s", log)
	}
}

// A gateway that can't find its Redis says so at once: what starts it decides whether to try again.
func TestStartWithoutRedisExitsWith3(t *testing.T) {
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(t)))
	wantExit(t, &Redis{URL: "redis://" + addr + "/0"}, nil, 3, addr)
}

func TestStartOnOldRedisExitsWith3(t *testing.T) {
	addr := startOldRedis(t)
	wantExit(t, &Redis{URL: "redis://" + addr + "/0"}, nil, 3, "7.0", "6.2.0")
}

// Eviction is silent loss of messages: refused at start.
func TestStartOnEvictingRedisExitsWith3(t *testing.T) {
	r := StartRedis(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	wantExit(t, r, nil, 3, "maxmemory-policy", "allkeys-lru", "noeviction")
}

func TestStartWithWrongUsageExitsWith2(t *testing.T) {
	for name, tc := range map[string]struct{ flag, word string }{
		"an unknown flag":     {"--no-such-flag", "no-such-flag"},
		"a bad value":         {"--limits.message-rate=often", "message-rate"},
		"an unknown mode":     {"--redis.mode=mirrored", "redis.mode"},
		"a bad proxy network": {"--trusted-proxies=300.0.0.0/8", "trusted-proxies"},
	} {
		t.Run(name, func(t *testing.T) { wantExit(t, nil, []string{tc.flag}, 2, tc.word) })
	}
}

// On port 0 the kernel chooses, and the gateway says what became of it.
func TestGatewayLogsWhereItListens(t *testing.T) {
	r := Shared(t, Embedded)
	p := Start(t, Command{Name: "gateway", Path: Build(t), Args: []string{
		"serve", "--name", "g", "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0", "--redis.url", r.URL,
	}})
	var line struct{ Msg, Public, Internal string }
	wantWithin(t, startDeadline, func() bool {
		for text := range strings.Lines(p.Log()) {
			if json.Unmarshal([]byte(text), &line) == nil && line.Msg == "listening" {
				return true
			}
		}
		return false
	})
	for path, addr := range map[string]string{"/healthz": line.Public, "/metrics": line.Internal} {
		if status, body, err := get("http://" + addr + path); err != nil || status != http.StatusOK {
			t.Errorf("http://%s%s: %d, %v: %.200s", addr, path, status, err, body)
		}
	}
}

// startOldRedis answers like a server of version 6.2, as far as a client asks before it knows.
func startOldRedis(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go answerLikeOldRedis(conn)
		}
	}()
	return l.Addr().String()
}

func answerLikeOldRedis(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		words, err := readCommand(in)
		if err != nil {
			return
		}
		switch strings.ToUpper(words[0]) {
		case "PING":
			fmt.Fprint(conn, "+PONG\r\n")
		case "CLIENT", "SELECT":
			fmt.Fprint(conn, "+OK\r\n")
		case "INFO":
			info := "# Server\r\nredis_version:6.2.0\r\nredis_mode:standalone\r\n# Replication\r\nrole:master\r\n" +
				"master_replid:0123456789012345678901234567890123456789\r\n# Cluster\r\ncluster_enabled:0\r\n"
			fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(info), info)
		case "CONFIG":
			fmt.Fprint(conn, "*2\r\n$16\r\nmaxmemory-policy\r\n$10\r\nnoeviction\r\n")
		default:
			fmt.Fprintf(conn, "-ERR unknown command `%s`\r\n", words[0])
		}
	}
}

// readCommand reads one RESP array of bulk strings.
func readCommand(in *bufio.Reader) ([]string, error) {
	header, err := in.ReadString('\n')
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.Trim(header, "*\r\n"))
	if err != nil || n < 1 {
		return nil, fmt.Errorf("not a command: %q", header)
	}
	words := make([]string, n)
	for i := range words {
		length, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		size, err := strconv.Atoi(strings.Trim(length, "$\r\n"))
		if err != nil {
			return nil, err
		}
		word := make([]byte, size+2)
		if _, err := io.ReadFull(in, word); err != nil {
			return nil, err
		}
		words[i] = string(word[:size])
	}
	return words, nil
}
