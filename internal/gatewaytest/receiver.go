package gatewaytest

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// Received is one event as a webhook got it.
type Received struct {
	ID, Type, User, Room, Conn, Device, Gateway, Cause, Kind, Version, Reason, By string
	To, Message, Status, Epoch                                                    string // of a message
	N, Offset                                                                     uint64
	Code, Members, Devices                                                        int
	Ms, Ts                                                                        int64
	Meta, Content                                                                 json.RawMessage
	At                                                                            time.Time `json:"-"`
}

// Receiver is a customer's server that gets webhooks. It behaves as it is told.
type Receiver struct {
	// Immutable.
	URL    string
	server *httptest.Server

	mu       sync.Mutex // guards the rest
	status   int        // what it answers; 0: 200, and the events count
	hung     chan struct{}
	requests int
	times    []time.Time
	all      []Received
	last     *http.Request
	body     []byte
	sizes    []int // of the bodies it took
}

// StartReceiver starts one on loopback, and ends it with the test.
func StartReceiver(t testing.TB) *Receiver {
	t.Helper()
	r := &Receiver{}
	r.server = httptest.NewServer(r)
	r.URL = r.server.URL + "/events"
	t.Cleanup(func() {
		r.Hang(false)
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

// Addr is its host and port.
func (r *Receiver) Addr() string { return r.server.Listener.Addr().(*net.TCPAddr).String() }

// Answer has it answer with a status from now on, and take nothing; 0: it takes everything again.
func (r *Receiver) Answer(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = status
}

// Hang has it answer nothing from now on, or again.
func (r *Receiver) Hang(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case on && r.hung == nil:
		r.hung = make(chan struct{})
	case !on && r.hung != nil:
		close(r.hung)
		r.hung = nil
	}
}

func (r *Receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	r.mu.Lock()
	r.requests++
	r.times = append(r.times, time.Now())
	hung, status := r.hung, r.status
	r.mu.Unlock()
	if hung != nil {
		select {
		case <-hung:
		case <-request.Context().Done():
			return
		}
	}
	var batch struct{ Events []Received }
	if err == nil {
		err = json.Unmarshal(body, &batch)
	}
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	case status != 0:
		w.WriteHeader(status)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range batch.Events {
		e.At = time.Now()
		r.all = append(r.all, e)
	}
	r.last, r.body = request, body
	r.sizes = append(r.sizes, len(body))
}

// Events returns what came so far, in the order it came.
func (r *Receiver) Events() []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// From returns those that came behind the first n.
func (r *Receiver) From(n int) []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all[n:])
}

// Count is how many came so far, repetitions among them.
func (r *Receiver) Count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// Requests returns how many requests came, whatever was answered.
func (r *Receiver) Requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

// Last returns the last request that was taken, and its body.
func (r *Receiver) Last() (*http.Request, []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, r.body
}

// Sizes returns how large the bodies were that were taken, bytes, in the order they came.
func (r *Receiver) Sizes() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sizes)
}

// Once returns the events without repetitions, the number of those, and an error when an id came for two different events,
// or the first deliveries of one user's events are not in their order. What he does in a room has the order of the room, and messages
// have that of their receiver.
func (r *Receiver) Once() (events []Received, again int, err error) {
	seen := make(map[string]Received)
	last := make(map[string]Received)
	for _, e := range r.Events() {
		if before, twice := seen[e.ID]; twice {
			again++
			if before.Type != e.Type || before.User != e.User || before.Conn != e.Conn || before.N != e.N {
				err = fmt.Errorf("the id %s came for %+v and %+v", e.ID, before, e)
			}
			continue
		}
		seen[e.ID] = e
		of := e.User
		switch {
		case e.Type == "message":
			of = "to " + e.To + e.Room
		case e.Room != "":
			of = "in " + e.Room
		}
		if before := last[of]; before.N > e.N {
			err = fmt.Errorf("%s: %s %d came after %s %d", of, e.Type, e.N, before.Type, before.N)
		}
		last[of] = e
		events = append(events, e)
	}
	return events, again, err
}
