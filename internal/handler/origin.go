package handler

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Origins decides which web pages may open a WebSocket here. Browsers send the Origin header on every handshake and do not
// let a page forge it, so this is what keeps a foreign page from acting as its visitor (RFC 6455 section 10.2). Programs
// other than browsers send none, or what they like: Origin never proves who they are.
//
// The zero value allows pages of the same host only.
type Origins struct {
	// Immutable after ParseOrigins.
	exact map[string]struct{} // canonical origins: "https://chat.example.com", "https://h:8443", "null"
}

// ParseOrigins reads the list of further origins: scheme://host or scheme://host:port, or null for pages without one
// (files, sandboxed frames).
func ParseOrigins(list []string) (Origins, error) {
	origins := Origins{exact: make(map[string]struct{}, len(list))}
	for _, entry := range list {
		entry = strings.TrimSpace(entry)
		if entry == "null" {
			origins.exact["null"] = struct{}{}
			continue
		}
		o, err := parseOrigin(entry)
		if err != nil {
			return Origins{}, fmt.Errorf("%q is not an origin such as https://chat.example.com: %w", entry, err)
		}
		origins.exact[o.String()] = struct{}{}
	}
	return origins, nil
}

// Check returns nil when the handshake may go on, and the 403 to answer when it may not: no Origin is fine, the host the
// request was sent to is fine (whatever the scheme, since TLS may end at a proxy), an entry of the list is fine.
func (o Origins) Check(r *http.Request) *Rejection {
	values := r.Header["Origin"]
	switch {
	case len(values) == 0:
		return nil
	case len(values) == 1 && o.allows(values[0], r.Host):
		return nil
	}
	return &Rejection{Status: http.StatusForbidden, Reason: ReasonOrigin}
}

func (o Origins) allows(value, host string) bool {
	if value == "null" {
		_, listed := o.exact["null"]
		return listed
	}
	from, err := parseOrigin(value)
	if err != nil {
		return false
	}
	if _, listed := o.exact[from.String()]; listed {
		return true
	}
	return from.sameHost(host)
}

// origin is RFC 6454's triple, in lower case; port is "" when it is the scheme's default.
type origin struct{ scheme, host, port string }

func parseOrigin(value string) (origin, error) {
	u, err := url.Parse(value)
	if err != nil {
		return origin{}, errors.Unwrap(err)
	}
	if u.Scheme == "" || u.Hostname() == "" {
		return origin{}, errors.New("scheme or host is missing")
	}
	// What url.Parse took to be more than scheme, host and port is not part of an origin.
	if u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(value, "#") {
		return origin{}, errors.New("only scheme, host and port belong to an origin")
	}
	if strings.Contains(u.Host, "*") {
		return origin{}, errors.New("patterns are not supported, list each origin")
	}
	o := origin{scheme: strings.ToLower(u.Scheme), host: strings.ToLower(u.Hostname()), port: u.Port()}
	if o.port == defaultPort(o.scheme) {
		o.port = ""
	}
	return o, nil
}

func (o origin) String() string {
	host := o.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if o.port != "" {
		host += ":" + o.port
	}
	return o.scheme + "://" + host
}

// sameHost compares with a request's Host header. A port left out on either side is the default of the page's scheme.
func (o origin) sameHost(host string) bool {
	if o.scheme != "http" && o.scheme != "https" {
		return false
	}
	to, err := parseOrigin(o.scheme + "://" + host)
	return err == nil && to.host == o.host && to.port == o.port
}

func defaultPort(scheme string) string {
	switch scheme {
	case "http", "ws":
		return "80"
	case "https", "wss":
		return "443"
	}
	return ""
}
