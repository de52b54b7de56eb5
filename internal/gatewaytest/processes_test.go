//go:build !secondpass

package gatewaytest

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A paused process holds its sockets and does nothing; resumed, it goes on where it was. Its end has a code, or a signal.
func TestProcessCanBePausedResumedAndEnded(t *testing.T) {
	counter := Start(t, Command{Name: "counter", Path: "/bin/sh", Args: []string{"-c", `trap 'echo bye; exit 7' TERM; while :; do echo tick; sleep 0.02; done`}})
	ticks := func() int { return strings.Count(counter.Log(), "tick") }
	wantWithin(t, 5*time.Second, func() bool { return ticks() > 2 })

	counter.Pause()
	wantWithin(t, 5*time.Second, func() bool {
		stat, err := os.ReadFile("/proc/" + itoa(counter.Pid) + "/stat")
		return err == nil && strings.Contains(string(stat), ") T ")
	})
	before := ticks()
	counter.Resume()
	wantWithin(t, 5*time.Second, func() bool { return ticks() > before })

	if cpu, err := counter.CPU(); err != nil || cpu < 0 {
		t.Errorf("CPU: %v, %v", cpu, err)
	}
	if rss, err := counter.RSS(); err != nil || rss < 1<<10 {
		t.Errorf("RSS: %d, %v", rss, err)
	}

	counter.Term()
	if code, err := counter.ExitCode(5 * time.Second); err != nil || code != 7 {
		t.Errorf("exit code %d, %v, want 7", code, err)
	}
	if !strings.HasSuffix(counter.Log(), "bye\n") {
		t.Errorf("log ends with %q", counter.LogTail(1))
	}
}

// Killing takes along the children of the process.
func TestKillEndsTheWholeGroup(t *testing.T) {
	parent := Start(t, Command{Name: "parent", Path: "/bin/sh", Args: []string{"-c", `sleep 1000 & echo $!; wait`}})
	wantWithin(t, 5*time.Second, func() bool { return strings.HasSuffix(parent.Log(), "\n") })
	child := strings.TrimSpace(parent.Log())
	parent.Kill()
	if code, err := parent.ExitCode(0); err != nil || code != -1 {
		t.Errorf("exit code %d, %v, want -1", code, err)
	}
	wantWithin(t, 5*time.Second, func() bool {
		stat, err := os.ReadFile("/proc/" + child + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// The kernel kills a child whose test binary died; it must not do so because a thread of the test binary ended.
func TestChildrenDoNotOutliveTheirParent(t *testing.T) {
	if dir := os.Getenv("GATEWAYTEST_PARENT"); dir != "" {
		pid := itoa(Start(t, Command{Name: "orphan", Path: "/bin/sleep", Args: []string{"1000"}, Dir: dir}).Pid)
		if err := os.WriteFile(dir+"/pid", []byte(pid), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	dir := t.TempDir()
	parent := Start(t, Command{
		Name: "a test binary", Path: os.Args[0], Args: []string{"-test.run", "^" + t.Name() + "$"},
		Env: []string{"GATEWAYTEST_PARENT=" + dir},
	})
	if code, err := parent.ExitCode(20 * time.Second); err != nil || code != -1 {
		t.Fatalf("exit code %d, %v, want -1", code, err)
	}
	pid, err := os.ReadFile(dir + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	wantWithin(t, 5*time.Second, func() bool {
		stat, err := os.ReadFile("/proc/" + string(pid) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func TestFreePortsDiffer(t *testing.T) {
	seen := make(map[int]bool)
	for range 50 {
		port := FreePort(t)
		if seen[port] {
			t.Fatalf("port %d was given twice", port)
		}
		seen[port] = true
	}
}
