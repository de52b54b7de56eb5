package gatewaytest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// An owner decides how long something lives: a test (every testing.TB is one), or the test binary.
type owner interface {
	Cleanup(func())
	TempDir() string
	Failed() bool
	Logf(format string, args ...any)
}

// Main is the TestMain of every package that uses Shared or StartGateway: it runs the tests, stops what they shared, and
// fails when a goroutine is left over.
//
//	func TestMain(m *testing.M) { gatewaytest.Main(m) }
func Main(m *testing.M) {
	testBinary.open()
	code := m.Run()
	testBinary.close()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintf(os.Stderr, "left over after the tests: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// testBinary owns what lives as long as the test binary: shared servers and the built gateway.
var testBinary binaryOwner

type binaryOwner struct {
	mu       sync.Mutex // guards the rest
	inMain   bool
	dir      string
	cleanups []func()
}

func (b *binaryOwner) open() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inMain = true
}

// require fails t when its package has no TestMain that would stop what t is about to share.
func (b *binaryOwner) require(t testing.TB) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.inMain {
		t.Fatal("this package needs: func TestMain(m *testing.M) { gatewaytest.Main(m) }")
	}
}

func (b *binaryOwner) close() {
	for {
		b.mu.Lock()
		if len(b.cleanups) == 0 {
			dir := b.dir
			b.mu.Unlock()
			if dir != "" {
				os.RemoveAll(dir)
			}
			return
		}
		last := b.cleanups[len(b.cleanups)-1]
		b.cleanups = b.cleanups[:len(b.cleanups)-1]
		b.mu.Unlock()
		last()
	}
}

func (b *binaryOwner) Cleanup(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cleanups = append(b.cleanups, f)
}

func (b *binaryOwner) TempDir() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "gatewaytest-")
		if err != nil {
			panic(err) // no test can go on without a directory
		}
		b.dir = dir
	}
	dir, err := os.MkdirTemp(b.dir, "")
	if err != nil {
		panic(err)
	}
	return dir
}

func (b *binaryOwner) Failed() bool        { return false }
func (b *binaryOwner) Logf(string, ...any) {}

// Servers that may be missing on a machine, as CHATGATE_SKIP_SERVERS names them, and the program behind each.
var programs = map[string]string{
	"redis":    "redis-server",
	"sentinel": "redis-server",
	"cluster":  "redis-server",
	"nginx":    "nginx",
	"haproxy":  "haproxy",
	"chromium": "chromium",
	"mariadb":  "mariadbd",
}

// Need returns the path of the program behind a server. It skips the test when CHATGATE_SKIP_SERVERS names that server,
// and fails it when the program is missing: a missing server must not make a run look better than it is.
func Need(t testing.TB, server string) string {
	t.Helper()
	program, known := programs[server]
	if !known {
		t.Fatalf("no server is called %q", server)
	}
	if slices.Contains(strings.Split(os.Getenv("CHATGATE_SKIP_SERVERS"), ","), server) {
		t.Skipf("CHATGATE_SKIP_SERVERS names %s", server)
	}
	path, err := lookup(program)
	if err != nil {
		t.Fatalf("%s is missing: run scripts/setup, or name %s in CHATGATE_SKIP_SERVERS", program, server)
	}
	return path
}

// lookup finds a program also where Debian puts servers, which is not in everyone's PATH.
func lookup(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", err
}
