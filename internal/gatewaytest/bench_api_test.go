//go:build !race

package gatewaytest_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// callWork is a number of backends that send one message after the other through the API, each over one HTTP connection.
type callWork struct {
	name, work string
	args       callArgs
}

var callWorks = []callWork{
	{"api/send/to=1/callers=16", "16 callers, one receiver", callArgs{Callers: 16, To: 1}},
	{"api/send/to=1/callers=1", "1 caller, one receiver", callArgs{Callers: 1, To: 1}},
	{"api/send/to=100/callers=16", "16 callers, 100 receivers in a call", callArgs{Callers: 16, To: 100}},
}

// benchCalls sends from gateway a, and compares with net/http that only writes back what it reads.
func benchCalls(t *bed, w callWork) {
	load, echoLoad := t.loads[0], t.loads[1]
	echoed, sent := w.args, w.args
	echoed.Addr, echoed.Echo, sent.Addr = t.echoAddr, true, t.gateways[0].Internal
	echoLoad.call(t.b, "calls.connect", echoed, nil)
	load.call(t.b, "calls.connect", sent, nil)
	var s samples
	for i := range *benchRounds {
		e := t.round(echoLoad, "calls", nothing{}, "")
		d := t.round(load, "calls", nothing{}, lastOnly(i, w.name))
		s.addRound(d, e, "a", "redis")
		s.add("gateway-us", d.us("a"))
		s.add("receiver-us", d.us("a", "redis")/float64(w.args.To))
		s.add("p50-us", micros(d.total.P50))
		s.add("p99-us", micros(d.total.P99))
	}
	t.report.take(t.b, w.name, &s)
}

func callLines() (lines []line) {
	for _, w := range callWorks {
		lines = append(lines, line{w.name, w.work, ""})
	}
	return lines
}

// callLoad drives calls of the API.
type callLoad struct {
	// Owned by the goroutine that answers calls.
	all []*caller

	// Any goroutine.
	running atomic.Bool
}

type callArgs struct {
	Addr    string
	Callers int
	To      int  // receivers of each message
	Echo    bool // what comes back is what was sent
}

// caller is one backend with one connection. Its goroutine runs while the load does.
type caller struct {
	// Immutable after connect.
	load *callLoad
	args callArgs
	name int
	nc   net.Conn
	in   *bufio.Reader
	to   string // as JSON

	// Any goroutine.
	sent, answered atomic.Uint64

	// Owned by the caller's goroutine; its end is sent on ended.
	latency       histogram
	body, request []byte
	ended         chan error
}

func (l *callLoad) connect(args callArgs) (nothing, error) {
	for i := range args.Callers {
		nc, err := net.Dial("tcp", args.Addr)
		if err != nil {
			return nothing{}, err
		}
		names := make([]string, args.To)
		for n := range names {
			names[n] = fmt.Sprintf("receiver%d-%d", i, n)
		}
		to, err := json.Marshal(names)
		if err != nil {
			return nothing{}, err
		}
		l.all = append(l.all, &caller{load: l, args: args, name: i, nc: nc, in: bufio.NewReaderSize(nc, 64<<10), to: string(to), ended: make(chan error, 1)})
	}
	return nothing{}, nil
}

func (l *callLoad) start(nothing) (nothing, error) {
	l.running.Store(true)
	for _, c := range l.all {
		c.latency = histogram{}
		go func() { c.ended <- c.run() }()
	}
	return nothing{}, nil
}

func (l *callLoad) count(nothing) (c counted, err error) {
	for _, x := range l.all {
		n := x.answered.Load()
		c.Sent, c.Answered, c.Delivered = c.Sent+x.sent.Load(), c.Answered+n, c.Delivered+n
	}
	return c, nil
}

func (l *callLoad) stop(nothing) (counted, error) {
	l.running.Store(false)
	var errs []error
	var all histogram
	for _, c := range l.all {
		errs = append(errs, <-c.ended)
		all.merge(&c.latency)
	}
	c, _ := l.count(nothing{})
	c.P50, c.P99 = all.quantile(0.5), all.quantile(0.99)
	return c, errors.Join(errs...)
}

func (c *caller) run() error {
	for c.load.running.Load() {
		n := c.sent.Add(1)
		c.body = append(append(c.body[:0], `{"to":`...), c.to...)
		c.body = append(append(c.body, `,"content":"`...), body...)
		c.body = append(strconv.AppendUint(append(strconv.AppendInt(append(c.body, `","id":"`...), int64(c.name), 10), '-'), n, 10), `"}`...)
		c.request = append(c.request[:0], "POST /api/v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "...)
		c.request = append(append(strconv.AppendInt(c.request, int64(len(c.body)), 10), "\r\n\r\n"...), c.body...)
		began := time.Now()
		if _, err := c.nc.Write(c.request); err != nil {
			return err
		}
		answer, err := http.ReadResponse(c.in, nil)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		c.latency.add(time.Since(began))
		if answer.StatusCode != 200 || !c.args.Echo && bytes.Count(text, []byte(`"status":"stored"`)) != c.args.To {
			return fmt.Errorf("answered %d %.300s", answer.StatusCode, text)
		}
		c.answered.Add(1)
	}
	return nil
}

// askAPI asks for the presence of all users, a thousand in a call, one call after the other. It returns how many are online.
func askAPI(b *testing.B, addr string, names []string) (online int) {
	for len(names) > 0 {
		n := min(1000, len(names))
		question := `{"users":["` + strings.Join(names[:n], `","`) + `"]}`
		names = names[n:]
		answer, err := http.Post("http://"+addr+"/api/v1/presence", "application/json", strings.NewReader(question))
		if err != nil {
			b.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != 200 || bytes.Count(text, []byte(`"state":`)) != n {
			b.Fatalf("%d, %v: %.300s", answer.StatusCode, err, text)
		}
		online += bytes.Count(text, []byte(`"state":"online"`))
	}
	return online
}
