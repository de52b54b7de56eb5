package console

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, method, target string, header http.Header) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := fs.ReadFile(static, "static/"+name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryFileComesWithItsTypeAndTheSecurityHeaders(t *testing.T) {
	for target, wantType := range map[string]string{
		"/":           "text/html; charset=utf-8",
		"/app.js":     "text/javascript; charset=utf-8",
		"/session.js": "text/javascript; charset=utf-8",
		"/talk.js":    "text/javascript; charset=utf-8",
		"/style.css":  "text/css; charset=utf-8",
		"/icon.svg":   "image/svg+xml",
	} {
		for _, method := range []string{"GET", "HEAD"} {
			res := get(t, method, target, nil)
			if res.StatusCode != 200 {
				t.Errorf("%s %s: status %d, want 200", method, target, res.StatusCode)
			}
			want := map[string]string{
				"Content-Type":            wantType,
				"Content-Security-Policy": policy("example.com"),
				"X-Content-Type-Options":  "nosniff",
				"X-Frame-Options":         "DENY",
				"Referrer-Policy":         "no-referrer",

				"Cross-Origin-Resource-Policy": "same-origin",
				"Cross-Origin-Opener-Policy":   "same-origin",

				"Cache-Control": "no-cache",
			}
			for k, v := range want {
				if got := res.Header.Get(k); got != v {
					t.Errorf("%s %s: %s is %q, want %q", method, target, k, got, v)
				}
			}
		}
	}
}

// The page may connect to the host it came from, and a Host header can't add another, nor a directive.
func TestPolicyNamesTheHostAndNothingElse(t *testing.T) {
	for host, want := range map[string]string{
		"127.0.0.1:8080":           " ws://127.0.0.1:8080 wss://127.0.0.1:8080",
		"[::1]:8080":               " ws://[::1]:8080 wss://[::1]:8080",
		"chat.example.com":         " ws://chat.example.com wss://chat.example.com",
		"":                         "",
		"*":                        "",
		"*.example.com":            "",
		"a b":                      "",
		"a; script-src *":          "",
		"a,b":                      "",
		"a'unsafe-inline'":         "",
		"a/b":                      "",
		"a:80:90":                  "",
		"a\r\nSet-Cookie: x":       "",
		"[::1] https://evil.test":  "",
		"evil.test 'unsafe-eval'":  "",
		"example.com:999999999999": "",
	} {
		got := policy(host)
		if !strings.Contains(got, "; connect-src 'self'"+want+"; base-uri 'none'; ") || strings.Count(got, ";") != 9 {
			t.Errorf("Host %q: %s", host, got)
		}
	}
}

func TestAnUnchangedFileIsNotSentAgain(t *testing.T) {
	etag := get(t, "GET", "/app.js", nil).Header.Get("ETag")
	if etag == "" {
		t.Fatal("no ETag")
	}
	if other := get(t, "GET", "/style.css", nil).Header.Get("ETag"); other == etag {
		t.Errorf("two files have the ETag %s", etag)
	}
	res := get(t, "GET", "/app.js", http.Header{"If-None-Match": {etag}})
	if res.StatusCode != http.StatusNotModified {
		t.Errorf("with the same ETag: status %d, want 304", res.StatusCode)
	}
}

func TestOnlyThePageIsServed(t *testing.T) {
	for _, target := range []string{"/index.html", "/static/", "/static/app.js", "/nothing", "/../console.go", "/app.js/", "//"} {
		if res := get(t, "GET", target, nil); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: status %d, want 404", target, res.StatusCode)
		}
	}
	res := get(t, "POST", "/", nil)
	if res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST /: status %d, Allow %q; want 405 and GET, HEAD", res.StatusCode, res.Header.Get("Allow"))
	}
}

// The policy forbids what is inline or foreign, so a page that holds any would
// look right here and be broken in the browser.
func TestThePageHoldsNothingInlineOrForeign(t *testing.T) {
	html := read(t, "index.html")
	for name, pattern := range map[string]string{
		"a script without src": `<script(>|[^>]*[^"]>)[^<]`,
		"a style element":      `<style`,
		"a style attribute":    `\sstyle=`,
		"an event attribute":   `\son[a-z]+=`,
		"a foreign resource":   `(src|href)="([a-z]+:|//)`,
	} {
		if found := regexp.MustCompile(pattern).FindString(html); found != "" {
			t.Errorf("index.html holds %s: %s", name, found)
		}
	}
	for _, ref := range regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(html, -1) {
		read(t, ref[1])
	}
	// A form that is sent before the script is there puts what has a name into the address, where logs and the history keep it.
	if field := regexp.MustCompile(`<input id="enter-token"[^>]*>`).FindString(html); field == "" || strings.Contains(field, " name=") {
		t.Errorf("the field for a token: %q", field)
	}
	css := read(t, "style.css")
	if strings.Contains(css, "url(") || strings.Contains(css, "@import") {
		t.Error("style.css loads something")
	}
}

// Names and contents come from strangers: they may enter the document as text
// only.
func TestScriptsNeverParseMarkup(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|javascript:`)
	entries, err := fs.ReadDir(static, "static")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if path.Ext(e.Name()) != ".js" {
			continue
		}
		if found := forbidden.FindString(read(t, e.Name())); found != "" {
			t.Errorf("%s uses %s", e.Name(), found)
		}
	}
}

// Every element the scripts ask for by id is in the page, and every script they load is asked for at once.
func TestScriptsAndPageAgree(t *testing.T) {
	html := read(t, "index.html")
	entries, err := fs.ReadDir(static, "static")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if path.Ext(e.Name()) != ".js" {
			continue
		}
		if !strings.Contains(html, `="`+e.Name()+`"`) {
			t.Errorf("index.html doesn't name %s", e.Name())
		}
		for _, m := range regexp.MustCompile(`\$\('([a-z-]+)'\)|querySelector\('#([a-z-]+)'\)`).FindAllStringSubmatch(read(t, e.Name()), -1) {
			if id := m[1] + m[2]; !strings.Contains(html, `id="`+id+`"`) {
				t.Errorf("%s: no element has the id %q", e.Name(), id)
			}
		}
	}
}
