// Package console is the page at "/": a small chat client for a person with a
// browser, embedded in the binary.
//
// What it owns: the static files, the headers they are served with, and the
// browser's half of the protocol as the page speaks it. session.js is the
// client and knows no document; app.js shows what it says, with talk.js (one
// conversation), here.js (who is in a room) and frames.js (what went over the
// wire). One thing it agrees on with itself alone: an ephemeral message with the
// content "typing" is a typing sign.
//
// What it leaves to others: whether the page is served at all, and on which
// listener (package gateway); the WebSocket it talks to (package handler).
//
// Goroutines: none. Locks: none; everything is read once, in Handler.
package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"time"

	"chatgate/internal/problem"
)

//go:embed static
var static embed.FS

// contentTypes names the type of every kind of file served. mime.TypeByExtension
// is not asked, because it answers from the tables of the machine.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".svg":  "image/svg+xml",
}

// policy lets the page load its own files and open WebSockets to its own host,
// nothing else, and lets no text become markup: the browser refuses what a script
// might do in error. 'self' does not cover ws: and wss: in every browser, hence the
// host a second time. The form may be sent before the script is there: it leads to
// the page's own address.
func policy(host string) string {
	sockets := ""
	if plainHost.MatchString(host) {
		sockets = " ws://" + host + " wss://" + host
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'" + sockets + "; " +
		"base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
}

// plainHost is a Host header that can add nothing else to a policy.
var plainHost = regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)

type file struct {
	body        []byte
	contentType string
	etag        string
}

// Handler serves the page: "/" and the files it refers to, 404 for any other
// path and 405 for anything but GET and HEAD. A file is sent again only when
// it changed.
func Handler() http.Handler {
	files, err := load(static)
	if err != nil {
		panic(err) // the files are part of the binary: only a wrong build gets here
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := files[r.URL.Path]
		if !ok {
			problem.Problem{Status: http.StatusNotFound}.Write(w)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			problem.Problem{Status: http.StatusMethodNotAllowed}.Write(w)
			return
		}
		h := w.Header()
		h.Set("Content-Type", f.contentType)
		h.Set("Content-Security-Policy", policy(r.Host))
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("X-Frame-Options", "DENY")        // for browsers that don't know frame-ancestors
		h.Set("Referrer-Policy", "no-referrer") // the address holds the user's name
		h.Set("Cache-Control", "no-cache")      // keep, but ask: a gateway may have been upgraded
		h.Set("ETag", f.etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.body))
	})
}

func load(fsys fs.FS) (map[string]file, error) {
	entries, err := fs.ReadDir(fsys, "static")
	if err != nil {
		return nil, fmt.Errorf("reading the page's files: %w", err)
	}
	files := make(map[string]file, len(entries))
	for _, e := range entries {
		contentType, ok := contentTypes[path.Ext(e.Name())]
		if !ok {
			return nil, fmt.Errorf("the page's file %s has no known content type", e.Name())
		}
		body, err := fs.ReadFile(fsys, path.Join("static", e.Name()))
		if err != nil {
			return nil, fmt.Errorf("reading the page's files: %w", err)
		}
		sum := sha256.Sum256(body)
		f := file{body: body, contentType: contentType, etag: `"` + hex.EncodeToString(sum[:8]) + `"`}
		if e.Name() == "index.html" {
			files["/"] = f
			continue
		}
		files["/"+e.Name()] = f
	}
	return files, nil
}
