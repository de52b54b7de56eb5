package handler

import (
	"net/http"
	"testing"
)

func TestOriginIsTheSameHostOrListed(t *testing.T) {
	origins, err := ParseOrigins([]string{"https://www.example.org", "http://Dev.Example.org:3000", "capacitor://localhost", "https://default.example.org:443"})
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		host   string
		origin []string
		want   bool
	}{
		"none: not a browser":                   {"chat.example.com", nil, true},
		"same host":                             {"chat.example.com", []string{"https://chat.example.com"}, true},
		"same host, TLS ended at the proxy":     {"chat.example.com", []string{"http://chat.example.com"}, true},
		"same host, other case":                 {"Chat.Example.com", []string{"HTTPS://CHAT.example.COM"}, true},
		"same host, port written out":           {"chat.example.com:443", []string{"https://chat.example.com"}, true},
		"same host, default port in the origin": {"chat.example.com", []string{"http://chat.example.com:80"}, true},
		"same host and port":                    {"127.0.0.1:8080", []string{"http://127.0.0.1:8080"}, true},
		"same IPv6 host and port":               {"[::1]:8080", []string{"http://[::1]:8080"}, true},
		"other port":                            {"127.0.0.1:8080", []string{"http://127.0.0.1:9000"}, false},
		"no port on one side":                   {"127.0.0.1:8080", []string{"http://127.0.0.1"}, false},
		"other host":                            {"chat.example.com", []string{"https://evil.example"}, false},
		"other host with ours in front":         {"chat.example.com", []string{"https://chat.example.com.evil.example"}, false},
		"other host with ours as user":          {"chat.example.com", []string{"https://chat.example.com@evil.example"}, false},
		"ours as user of ours":                  {"chat.example.com", []string{"https://x@chat.example.com"}, false},
		"subdomain":                             {"example.com", []string{"https://chat.example.com"}, false},
		"listed":                                {"chat.example.com", []string{"https://www.example.org"}, true},
		"listed, default port":                  {"chat.example.com", []string{"https://default.example.org"}, true},
		"listed with a port":                    {"chat.example.com", []string{"http://dev.example.org:3000"}, true},
		"listed, other scheme":                  {"chat.example.com", []string{"http://www.example.org"}, false},
		"listed, other port":                    {"chat.example.com", []string{"https://www.example.org:8443"}, false},
		"listed app":                            {"chat.example.com", []string{"capacitor://localhost"}, true},
		"app scheme on the same host":           {"localhost", []string{"ionic://localhost"}, false},
		"null":                                  {"chat.example.com", []string{"null"}, false},
		"empty":                                 {"chat.example.com", []string{""}, false},
		"no origin at all":                      {"chat.example.com", []string{"chat.example.com"}, false},
		"with a path":                           {"chat.example.com", []string{"https://chat.example.com/"}, false},
		"two headers":                           {"chat.example.com", []string{"https://chat.example.com", "https://chat.example.com"}, false},
		"two in one":                            {"chat.example.com", []string{"https://chat.example.com https://evil.example"}, false},
		"control characters":                    {"chat.example.com", []string{"https://chat.example.com\x00"}, false},
		"strange host header":                   {"chat.example.com/@x", []string{"https://chat.example.com"}, false},
		"empty host header":                     {"", []string{"https://chat.example.com"}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := &http.Request{Host: c.host, Header: http.Header{}}
			if c.origin != nil {
				r.Header["Origin"] = c.origin
			}
			rejection := origins.Check(r)
			if got := rejection == nil; got != c.want {
				t.Fatalf("origin %q at %q allowed: %v, want %v", c.origin, c.host, got, c.want)
			}
			if rejection != nil && (rejection.Status != http.StatusForbidden || rejection.Reason != ReasonOrigin || rejection.RetryAfter != 0) {
				t.Errorf("refused with %+v, want 403", rejection)
			}
		})
	}
}

func TestNullOriginIsAllowedOnlyWhenListed(t *testing.T) {
	origins, err := ParseOrigins([]string{"null"})
	if err != nil {
		t.Fatal(err)
	}
	r := &http.Request{Host: "chat.example.com", Header: http.Header{"Origin": {"null"}}}
	if origins.Check(r) != nil {
		t.Error("null is listed and was refused")
	}
}

func TestOriginsThatNamePatternsOrPathsAreRefused(t *testing.T) {
	for _, entry := range []string{"", "*", "https://*.example.com", "example.com", "https://", "https://a/b", "https://a?b", "https://u@a", "https://a#", "http://a:b"} {
		if _, err := ParseOrigins([]string{entry}); err == nil {
			t.Errorf("%q was accepted as an origin", entry)
		}
	}
}
