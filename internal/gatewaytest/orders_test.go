package gatewaytest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// order calls the server API of a gateway, as a backend's script would, and reads the answer into it, unless it is nil.
func (g *Gateway) order(method, path, body string, answer any) (status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*Deadline)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+g.Internal+"/api/v1"+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err == nil && answer != nil {
		if err = json.NewDecoder(bytes.NewReader(raw)).Decode(answer); err != nil {
			err = fmt.Errorf("%s %s: status %d, %s: %w", method, path, response.StatusCode, raw, err)
		}
	}
	return response.StatusCode, err
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
