package gatewaytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Answered is what the server API said.
type Answered struct {
	Status int
	Header http.Header
	Body   []byte
}

func (a Answered) String() string { return fmt.Sprintf("%d %s", a.Status, a.Body) }

// field finds a value by its path: results.0.status. nil: there is none.
func (a Answered) field(path string) any {
	var v any
	d := json.NewDecoder(bytes.NewReader(a.Body))
	d.UseNumber() // 1e400 is one, too
	if d.Decode(&v) != nil {
		return nil
	}
	for name := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			var i int
			if _, err := fmt.Sscan(name, &i); err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// text is a field as it would be printed.
func (a Answered) text(path string) string { return fmt.Sprint(a.field(path)) }

// apiClient waits as long as a call may take on a busy machine, and keeps no connection, which a killed gateway's would be.
var apiClient = &http.Client{Timeout: 4 * Deadline, Transport: &http.Transport{DisableKeepAlives: true}}

// callOnce makes a call of the server API. The body may be empty; headers are pairs.
func (g *Gateway) callOnce(method, path, body string, headers ...string) (Answered, error) {
	request, err := http.NewRequest(method, "http://"+g.Internal+"/api/v1"+path, strings.NewReader(body))
	if err != nil {
		return Answered{}, err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := apiClient.Do(request)
	if err != nil {
		return Answered{}, err
	}
	defer response.Body.Close()
	a := Answered{Status: response.StatusCode, Header: response.Header}
	a.Body, err = io.ReadAll(response.Body)
	return a, err
}

// order makes a call, as a backend's script would, and reads the answer into it, unless it is nil.
func (g *Gateway) order(method, path, body string, answer any) (status int, err error) {
	a, err := g.callOnce(method, path, body)
	if err == nil && answer != nil {
		if err = json.Unmarshal(a.Body, answer); err != nil {
			err = fmt.Errorf("%s %s: %v: %w", method, path, a, err)
		}
	}
	return a.Status, err
}

// ordered is order, with the status it must have.
func (g *Gateway) ordered(t testing.TB, want int, method, path, body string, answer any) {
	t.Helper()
	var raw json.RawMessage
	status, err := g.order(method, path, body, &raw)
	if err != nil || status != want {
		t.Fatalf("%s %s %s: status %d, want %d, %v: %s", method, path, body, status, want, err, raw)
	}
	if answer != nil {
		if err := json.Unmarshal(raw, answer); err != nil {
			t.Fatal(err)
		}
	}
}

// id is the gateway's id.
func (g *Gateway) id(t testing.TB) string {
	t.Helper()
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s["gateway_id"].(string)
}

// disconnected is what a disconnect answers.
type disconnected struct {
	User         string
	Marked, Gone int
	Connections  []struct {
		ID, Gateway string
		Gone        bool
	}
	Missing []string
	Reasons map[string]string
}

// waitLoad waits until a gateway says that it does this about its connections.
func (g *Gateway) waitLoad(t testing.TB, id, state string, connections int) {
	t.Helper()
	if err := Poll(6*Deadline, func() error {
		var got struct {
			State       string
			Connections int
		}
		status, err := g.order("POST", "/gateways/"+id+"/drain", "", &got)
		if err == nil && (status != 200 || got.State != state || got.Connections != connections) {
			err = fmt.Errorf("status %d, %+v, want %s with %d", status, got, state, connections)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// rebalanced is what a rebalance answers.
type rebalanced struct {
	Mean, Shed int
	Gateways   []struct {
		ID, State         string
		Connections, Shed int
	}
	Missing []string
}
