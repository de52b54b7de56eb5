package gateway

import (
	"net/http"
	"sync/atomic"

	"chatgate/internal/handler"
	"chatgate/internal/problem"
)

// localHosts lets only requests through that were made to this machine under a name of its own, for listeners on loopback. A page on the
// web can point its own name at 127.0.0.1 after it was loaded (DNS rebinding): then the browser takes what answers here for the page's
// own server, Origin and Host agree, and the page may read everything and connect as anyone. Its name still stands in the Host header.
//
// No Host at all is fine: only programs other than browsers send none.
func localHosts(next http.Handler, refused *atomic.Uint64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "" && !handler.IsLocalHost(r.Host) {
			refused.Add(1)
			w.Header().Set("Connection", "close")
			problem.Problem{
				Status: http.StatusMisdirectedRequest, Code: "foreign_host",
				Detail: "this listener is on loopback, and serves localhost only; behind a proxy set origins",
			}.Write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}
