package handler

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// A proxy that nobody configured shows itself by its headers: then loopback proves nothing.
func TestForwardedHeadersEndTheTrustInLoopback(t *testing.T) {
	for _, name := range []string{
		"", "Forwarded", "Via", "X-Forwarded-For", "x-forwarded-host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded", "X-Real-IP",
		"X-Original-Forwarded-For", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP", "Fly-Client-IP",
	} {
		for _, insecure := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", insecure), func(t *testing.T) {
				g := embedded(t, func(s *settings) { s.handler.AnonymousForwarded = insecure })
				header := http.Header{}
				if name != "" {
					header.Set(name, "")
				}
				dialed, err := gatewaytest.Dial("ws"+strings.TrimPrefix(g.server.URL, "http"), header)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(dialed.Cut)
				c := &client{Client: dialed, t: t}
				c.say(`{"type":"register","userId":"alice"}`)
				if name == "" || insecure {
					c.next("registered")
					return
				}
				c.wantError(protocol.CodeUnauthorized, "")
				c.wantEnd(protocol.CloseUnauthorized)
			})
		}
	}
}

// A page of a stranger may have its name lead to this machine, and is then of the same host as we are; and a proxy that adds nothing
// mostly keeps the name it was asked by.
func TestWhoAsksForAnotherHostIsNotOfThisMachine(t *testing.T) {
	g := embedded(t)
	host := "evil.example:" + g.server.URL[strings.LastIndex(g.server.URL, ":")+1:]
	dialed, err := gatewaytest.Dial("ws"+strings.TrimPrefix(g.server.URL, "http"), http.Header{"Host": {host}, "Origin": {"http://" + host}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dialed.Cut)
	c := &client{Client: dialed, t: t}
	c.say(`{"type":"register","userId":"alice"}`)
	c.wantError(protocol.CodeUnauthorized, "")
	c.wantEnd(protocol.CloseUnauthorized)
}
