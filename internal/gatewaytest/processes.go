package gatewaytest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Process is a child of the test binary.
type Process struct {
	// Immutable after start.
	Name    string
	Dir     string // its working directory, removed with its owner
	Pid     int
	logPath string
	done    chan struct{} // closed when it has ended

	// Written before done is closed.
	code int
}

// Command says what to start.
type Command struct {
	Name string // for logs
	Path string
	Args []string
	Env  []string // added to the test's own
	Dir  string   // empty: a new directory
	// DeathSignal is what the child gets should the test binary die without cleaning up. Zero: SIGKILL. A server with
	// children of its own wants SIGTERM, so that it takes them along.
	DeathSignal syscall.Signal
}

// Start starts a child process. At the end of the test it is killed, and its log is shown if the test failed.
func Start(t testing.TB, c Command) *Process {
	t.Helper()
	p, err := start(t, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func start(o owner, c Command) (*Process, error) {
	if c.Dir == "" {
		c.Dir = o.TempDir()
	}
	if c.DeathSignal == 0 {
		c.DeathSignal = syscall.SIGKILL
	}
	p := &Process{Name: c.Name, Dir: c.Dir, done: make(chan struct{})}
	// The child writes to a file, not to a pipe of ours: it never waits for us, and its last words are kept.
	log, err := os.CreateTemp(c.Dir, "log-")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.logPath = log.Name()

	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: c.DeathSignal, Setpgid: true}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the starting thread ends, not the process: this thread stays until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // what matters of its error is in ProcessState
		p.code = cmd.ProcessState.ExitCode()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	p.Pid = cmd.Process.Pid
	o.Cleanup(func() {
		p.Kill()
		if o.Failed() {
			o.Logf("log of %s (pid %d):\n%s", p.Name, p.Pid, p.LogTail(80))
		}
	})
	return p, nil
}

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends the process and its children at once (SIGKILL) and returns when it is gone.
func (p *Process) Kill() {
	if p.Running() {
		// The process leads its own group. ESRCH: it ended by itself meanwhile.
		if err := syscall.Kill(-p.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			panic(err)
		}
	}
	<-p.done
}

// Pause stops the process (SIGSTOP) and waits until it stands: its sockets stay open, nothing answers. Resume lets it run on.
func (p *Process) Pause() {
	p.signal(syscall.SIGSTOP)
	_ = Poll(Deadline, func() error { // on a busy machine a thread may go on for a while
		if !p.Running() {
			return nil
		}
		tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(p.Pid), "task", "*", "stat"))
		if err != nil {
			return stop{err}
		}
		for _, task := range tasks {
			stat, err := os.ReadFile(task)
			if _, rest, ok := strings.Cut(string(stat), ") "); err == nil && ok && rest[0] != 'T' {
				return fmt.Errorf("%s runs", task)
			}
		}
		return nil
	})
}

// Resume lets a paused process run on.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

// Term asks the process to end (SIGTERM) and doesn't wait; see ExitCode.
func (p *Process) Term() { p.signal(syscall.SIGTERM) }

// HangUp sends SIGHUP.
func (p *Process) HangUp() { p.signal(syscall.SIGHUP) }

func (p *Process) signal(s syscall.Signal) {
	if p.Running() {
		_ = syscall.Kill(p.Pid, s) // it may just have ended: the same as not running
	}
}

// ExitCode waits for the end: the exit code, or -1 when a signal ended it.
func (p *Process) ExitCode(within time.Duration) (int, error) {
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
		if p.Running() {
			return 0, fmt.Errorf("%s still runs after %v", p.Name, within)
		}
	}
	return p.code, nil
}

// Log returns everything the process has printed.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// LogTail returns the last lines of the log.
func (p *Process) LogTail(lines int) string {
	all := strings.Split(strings.TrimRight(p.Log(), "\n"), "\n")
	if len(all) > lines {
		all = append([]string{fmt.Sprintf("… %d lines before", len(all)-lines)}, all[len(all)-lines:]...)
	}
	return strings.Join(all, "\n")
}

// CPU returns the user and system time the process has used, to 10 ms.
func (p *Process) CPU() (time.Duration, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.Pid), "stat"))
	if err != nil {
		return 0, err
	}
	// The second field, the name in brackets, may hold spaces: the others follow its closing bracket. See proc(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	const tick = time.Second / 100 // USER_HZ, the same on every Linux
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// RSS returns the resident memory of the process in bytes.
func (p *Process) RSS() (int64, error) {
	statm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.Pid), "statm"))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// Ports are taken below the range from which the kernel picks the near ends of outgoing connections: a server that is
// restarted on its port finds it free, however many clients there are.
const (
	lowestPort  = 12000
	highestPort = 32000
)

// FreePort returns a port of 127.0.0.1 that no other test, in this test binary or another, is given until the test's end.
func FreePort(t testing.TB) int {
	t.Helper()
	port, err := freePort(t)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func freePort(o owner) (int, error) {
	for range 1000 {
		port := lowestPort + rand.IntN(highestPort-lowestPort)
		// An abstract socket is a lock that everyone on the machine sees and that ends with its holder.
		lock, err := net.Listen("unix", fmt.Sprintf("@chatgate-test-port-%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			lock.Close()
			continue
		}
		l.Close()
		o.Cleanup(func() { lock.Close() })
		return port, nil
	}
	return 0, errors.New("no free port found")
}

// stop is an error that more polling won't change.
type stop struct{ error }

// Poll calls done until it returns nil, and returns its last error when that takes longer than within.
func Poll(within time.Duration, done func() error) error {
	deadline := time.Now().Add(within)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := done()
		if err == nil {
			return nil
		}
		if hopeless, ok := err.(stop); ok {
			return hopeless.error
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("not within %v: %w", within, err)
		}
		time.Sleep(min(pause, time.Until(deadline)))
	}
}
