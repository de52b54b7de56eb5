package gateway

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// Whatever a browser may have put into Host for a page that is not ours.
func TestLoopbackServesItsOwnNamesOnly(t *testing.T) {
	var refused atomic.Uint64
	h := localHosts(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), &refused)
	for host, want := range map[string]bool{
		"localhost":             true,
		"localhost:8080":        true,
		"LOCALHOST.:8080":       true,
		"chat.localhost:8080":   true,
		"127.0.0.1":             true,
		"127.0.0.1:8080":        true,
		"127.1.2.3:8080":        true,
		"[::1]":                 true,
		"[::1]:8080":            true,
		"::1":                   true,
		"[::ffff:127.0.0.1]:80": true,
		"":                      true,

		"evil.example":                 false,
		"evil.example:8080":            false,
		"localhost.evil.example":       false,
		"notlocalhost":                 false,
		"127.0.0.1.evil.example":       false,
		"127.0.0.1.nip.io:8080":        false,
		"0.0.0.0:8080":                 false,
		"10.0.0.1":                     false,
		"128.0.0.1":                    false,
		"[fe80::1%25lo]:80":            false,
		"[::1%25lo]":                   false,
		"[::]:8080":                    false,
		"2130706433":                   false,
		"0x7f000001":                   false,
		"localhost@evil.example":       false,
		"evil.example#localhost":       false,
		"localhost:8080, evil.example": false,
		".localhost.example":           false,
		"chat.example.com":             false,
		"127.0.0.1:8080:8080":          false,
		"[::1]:8080.evil.example":      false,
		"[::1].evil.example":           false,
	} {
		before := refused.Load()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, &http.Request{Host: host})
		status, counted := http.StatusOK, before
		if !want {
			status, counted = http.StatusMisdirectedRequest, before+1
		}
		if w.Code != status || refused.Load() != counted {
			t.Errorf("Host %q: %d, %d refused; want %d, %d", host, w.Code, refused.Load(), status, counted)
		}
	}
}
