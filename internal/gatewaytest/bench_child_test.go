//go:build !race

package gatewaytest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/gatewaytest"
)

// The benchmarks need processes beside the gateways: what a gateway is compared with, and who drives both. They are this test
// binary again, told by the environment what to be. The benchmark calls them over a socket, in JSON: a name and its
// arguments, answered by an error or a result.
const (
	childRole = "CHATGATE_BENCH_ROLE" // a key of roles
	childCall = "CHATGATE_BENCH_CALL" // the address to be called from
)

// calls are what a child can be asked.
type calls map[string]func(args json.RawMessage) (any, error)

var roles = map[string]func() (calls, error){"echo": echoRole, "load": loadRole}

// TestBenchProcess is no test: it is where a child of a benchmark begins.
func TestBenchProcess(t *testing.T) {
	role := os.Getenv(childRole)
	if role == "" {
		t.Skip("only a child of BenchmarkCluster has a role")
	}
	if err := serveCalls(role); err != nil && !errors.Is(err, io.EOF) {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0) // the test's other ways out would wait for the load's goroutines
}

// A request names a call; a reply carries what came of it.
type (
	request struct {
		Call string
		Args any
	}
	received struct {
		Call string
		Args json.RawMessage
	}
	reply struct {
		Err    string
		Result json.RawMessage
	}
)

// serveCalls answers one call after the other until the benchmark hangs up.
func serveCalls(role string) error {
	table, err := roles[role]()
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", os.Getenv(childCall))
	if err != nil {
		return err
	}
	defer conn.Close()
	for in, out := json.NewDecoder(conn), json.NewEncoder(conn); ; {
		var q received
		if err := in.Decode(&q); err != nil {
			return err
		}
		var answer reply
		result, err := table[q.Call](q.Args)
		if err == nil {
			answer.Result, err = json.Marshal(result)
		}
		if err != nil {
			answer.Err = err.Error()
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
}

// call makes an entry of calls from a function with typed arguments.
func call[A, R any](f func(A) (R, error)) func(json.RawMessage) (any, error) {
	return func(raw json.RawMessage) (any, error) {
		var args A
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, err
		}
		return f(args)
	}
}

// nothing is for calls without arguments, or without a result.
type nothing struct{}

// child is the benchmark's side.
type child struct {
	*gatewaytest.Process
	conn net.Conn
	in   *json.Decoder
	out  *json.Encoder
}

// callLimit bounds the longest call: that which connects thousands of clients.
const callLimit = 2 * time.Minute

func startChild(b *testing.B, role string) *child {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	c := &child{Process: gatewaytest.Start(b, gatewaytest.Command{
		Name: role, Path: self, Args: []string{"-test.run=^TestBenchProcess$"},
		Env: []string{childRole + "=" + role, childCall + "=" + l.Addr().String()},
	})}
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	if c.conn, err = l.Accept(); err != nil {
		b.Fatalf("%s did not call back: %v\n%s", role, err, c.LogTail(20))
	}
	b.Cleanup(func() { c.conn.Close() })
	c.in, c.out = json.NewDecoder(c.conn), json.NewEncoder(c.conn)
	return c
}

// ask calls the child and reads the result into a pointer, which may be nil.
func (c *child) ask(name string, args, result any) error {
	_ = c.conn.SetDeadline(time.Now().Add(callLimit))
	var answer reply
	err := errors.Join(c.out.Encode(request{name, args}), c.in.Decode(&answer))
	if err == nil && answer.Err != "" {
		err = errors.New(answer.Err)
	}
	if err == nil && result != nil {
		err = json.Unmarshal(answer.Result, result)
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w\n%s", name, c.Name, err, c.LogTail(20))
	}
	return nil
}

// call is ask for a benchmark that can't go on without the answer.
func (c *child) call(b *testing.B, name string, args, result any) {
	b.Helper()
	if err := c.ask(name, args, result); err != nil {
		b.Fatal(err)
	}
}

// echoRole is the ceiling that gateways are measured against: what gorilla/websocket costs when nothing is added. Default
// buffers, and the goroutine of the HTTP handler reads and writes.
func echoRole() (calls, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	var upgrader websocket.Upgrader
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, message, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, message) != nil {
				return
			}
		}
	})
	// What net/http costs that only writes back what it reads, for calls of the API.
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		if text, err := io.ReadAll(r.Body); err == nil {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(text)
		}
	})
	go func() { fmt.Println(http.Serve(l, mux)) }() // ends with the process
	return calls{
		"address": call(func(nothing) (string, error) { return l.Addr().String(), nil }),
		"collect": call(func(nothing) (nothing, error) { runtime.GC(); runtime.GC(); return nothing{}, nil }),
	}, nil
}

// loadRole is who drives the gateways and the echo.
func loadRole() (calls, error) {
	// It has memory to spare, and the processor it does not use is for what is measured.
	debug.SetGCPercent(400)
	p, c, r, a := &messageLoad{}, &connectionLoad{}, &roomLoad{}, &callLoad{}
	return calls{
		"messages.connect": call(p.connect), "messages.start": call(p.start), "messages.count": call(p.count), "messages.stop": call(p.stop),
		"connections.connect": call(c.connect), "connections.start": call(c.start), "connections.count": call(c.count), "connections.stop": call(c.stop),
		"calls.connect": call(a.connect), "calls.start": call(a.start), "calls.count": call(a.count), "calls.stop": call(a.stop),
		"rooms.connect": call(r.connect), "rooms.start": call(r.start), "rooms.count": call(r.count), "rooms.stop": call(r.stop),
	}, nil
}
