//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gorilla/websocket"
)

// chromium is a headless browser, driven over its DevTools protocol by the test's goroutine alone.
type chromium struct {
	// Immutable after startChromium.
	t    *testing.T
	conn *websocket.Conn

	// Owned by the test.
	lastID     int
	complaints []string // what pages threw, and what their content policy refused
}

// tab is one page of it, in a window of its own so that none is hidden behind another.
type tab struct {
	browser  *chromium
	name     string
	targetID string
	session  string
}

// startChromium starts a browser that has nothing but this test. At its end the browser is closed, and the test fails for
// every exception in a page and every breach of a page's content policy.
func startChromium(t *testing.T) *chromium {
	t.Helper()
	path := Need(t, "chromium")
	var p *Process
	var url string
	for range 3 { // now and then it crashes as it starts, on a busy machine
		var err error
		if p, url, err = launchChromium(t, path); err == nil {
			break
		}
		t.Log(err)
	}
	if url == "" {
		t.Fatal("chromium does not start")
	}
	conn, _, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &chromium{t: t, conn: conn}
	t.Cleanup(func() {
		for _, c := range b.complaints {
			t.Errorf("in the browser: %s", c)
		}
		// It cleans up after itself before the profile is removed.
		if err := b.call("", "Browser.close", nil, nil); err != nil {
			t.Log(err)
		}
		conn.Close()
		if _, err := p.ExitCode(Deadline); err != nil {
			t.Log(err)
		}
	})
	return b
}

// launchChromium starts the browser, and returns the URL of its DevTools.
func launchChromium(t *testing.T, path string) (p *Process, url string, err error) {
	profile := t.TempDir()
	p = Start(t, Command{Name: "chromium", Path: path, Args: []string{
		"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--disable-breakpad",
		"--log-level=3", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--window-size=1280,900",
		"--remote-debugging-port=0", "--user-data-dir=" + profile, "about:blank",
	}})
	// The browser picks its port and writes it down, with the path of its own WebSocket on the second line.
	err = Poll(30*time.Second, func() error {
		text, err := os.ReadFile(filepath.Join(profile, "DevToolsActivePort"))
		if errors.Is(err, fs.ErrNotExist) && !p.Running() {
			return stop{errors.New("chromium ended at once")}
		}
		port, path, found := strings.Cut(strings.TrimSpace(string(text)), "\n")
		if !found {
			return fmt.Errorf("no port yet: %w", err)
		}
		url = "ws://" + net.JoinHostPort("127.0.0.1", port) + path
		return nil
	})
	return p, url, err
}

// call asks the browser, or one page of it, and waits for the answer. Events that come meanwhile are looked at and dropped.
func (b *chromium) call(session, method string, params, result any) error {
	b.lastID++
	request := map[string]any{"id": b.lastID, "method": method}
	if session != "" {
		request["sessionId"] = session
	}
	if params != nil {
		request["params"] = params
	}
	deadline := time.Now().Add(2 * Deadline)
	if err := errors.Join(b.conn.SetWriteDeadline(deadline), b.conn.SetReadDeadline(deadline), b.conn.WriteJSON(request)); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	for {
		var answer struct {
			ID     int
			Method string
			Params json.RawMessage
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := b.conn.ReadJSON(&answer); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		switch {
		case answer.Method != "":
			b.event(answer.Method, answer.Params)
		case answer.ID != b.lastID:
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", method, answer.Error.Message)
		case result == nil:
			return nil
		default:
			return json.Unmarshal(answer.Result, result)
		}
	}
}

func (b *chromium) event(method string, params json.RawMessage) {
	switch method {
	case "Runtime.exceptionThrown":
		b.complaints = append(b.complaints, string(params))
	case "Log.entryAdded":
		var log struct {
			Entry struct{ Source, Level, Text string }
		}
		// Not "network": a page that reconnects logs every connection that was refused.
		if json.Unmarshal(params, &log) == nil && log.Entry.Level == "error" && log.Entry.Source != "network" {
			b.complaints = append(b.complaints, log.Entry.Source+": "+log.Entry.Text)
		}
	}
}

// open opens a page in a new window.
func (b *chromium) open(name, url string) *tab {
	b.t.Helper()
	var target struct{ TargetID string }
	if err := b.call("", "Target.createTarget", map[string]any{"url": "about:blank", "newWindow": true}, &target); err != nil {
		b.t.Fatal(err)
	}
	p := b.attach(name, target.TargetID)
	p.must("Page.navigate", map[string]any{"url": url}, nil)
	return p
}

func (b *chromium) attach(name, targetID string) *tab {
	b.t.Helper()
	var attached struct{ SessionID string }
	if err := b.call("", "Target.attachToTarget", map[string]any{"targetId": targetID, "flatten": true}, &attached); err != nil {
		b.t.Fatal(err)
	}
	p := &tab{browser: b, name: name, targetID: targetID, session: attached.SessionID}
	p.must("Runtime.enable", nil, nil)
	p.must("Log.enable", nil, nil)
	return p
}

// duplicate opens a second tab as "duplicate tab" does: with the address and a copy of the sessionStorage of this one.
func (p *tab) duplicate(name string) *tab {
	p.browser.t.Helper()
	before := p.browser.targets()
	p.eval("void window.open(location.href)", nil)
	var added string
	err := Poll(Deadline, func() error {
		for id := range p.browser.targets() {
			if !before[id] {
				added = id
				return nil
			}
		}
		return errors.New("no new tab")
	})
	if err != nil {
		p.browser.t.Fatal(err)
	}
	return p.browser.attach(name, added)
}

func (b *chromium) targets() map[string]bool {
	b.t.Helper()
	var list struct {
		TargetInfos []struct{ TargetID, Type string }
	}
	if err := b.call("", "Target.getTargets", nil, &list); err != nil {
		b.t.Fatal(err)
	}
	pages := make(map[string]bool)
	for _, target := range list.TargetInfos {
		if target.Type == "page" {
			pages[target.TargetID] = true
		}
	}
	return pages
}

func (p *tab) must(method string, params, result any) {
	p.browser.t.Helper()
	if err := p.browser.call(p.session, method, params, result); err != nil {
		p.browser.t.Fatalf("page of %s: %v", p.name, err)
	}
}

// eval runs an expression in the page, waits for it if it is a promise, and puts its value into result.
func (p *tab) eval(expression string, result any) {
	p.browser.t.Helper()
	var answer struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	// With a user's gesture: a page may open windows only then.
	p.must("Runtime.evaluate", map[string]any{
		"expression": expression, "returnByValue": true, "awaitPromise": true, "userGesture": true,
	}, &answer)
	if answer.ExceptionDetails != nil {
		p.browser.t.Fatalf("page of %s: %s: %s", p.name, expression, answer.ExceptionDetails)
	}
	if result == nil {
		return
	}
	if err := json.Unmarshal(answer.Result.Value, result); err != nil {
		p.browser.t.Fatalf("page of %s: %s: %v", p.name, expression, err)
	}
}

// text returns the text of the last element that the selector finds, "" when there is none.
func (p *tab) text(selector string) string {
	p.browser.t.Helper()
	var text string
	p.eval(fmt.Sprintf("[...document.querySelectorAll(%q)].at(-1)?.textContent.trim() ?? ''", selector), &text)
	return text
}

// wantText waits until the text of the last element that the selector finds satisfies the test.
func (p *tab) wantText(selector, what string, ok func(text string) bool) {
	p.browser.t.Helper()
	err := Poll(3*Deadline, func() error {
		if text := p.text(selector); !ok(text) {
			return fmt.Errorf("it says %q", text)
		}
		return nil
	})
	if err != nil {
		p.browser.t.Fatalf("page of %s: %s should say %s: %v", p.name, selector, what, err)
	}
}

func (p *tab) wantExactly(selector, want string) {
	p.browser.t.Helper()
	p.wantText(selector, fmt.Sprintf("%q", want), func(text string) bool { return text == want })
}

func (p *tab) wantPart(selector, want string) {
	p.browser.t.Helper()
	p.wantText(selector, fmt.Sprintf("… %q …", want), func(text string) bool { return strings.Contains(text, want) })
}

// write types into the element with the focus, as a person does.
func (p *tab) write(text string) {
	p.browser.t.Helper()
	p.must("Input.insertText", map[string]any{"text": text}, nil)
}

func (p *tab) enter() {
	p.browser.t.Helper()
	key := map[string]any{"type": "keyDown", "key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13}
	p.must("Input.dispatchKeyEvent", key, nil)
	key["type"] = "keyUp"
	p.must("Input.dispatchKeyEvent", key, nil)
}

// texts returns the texts of all elements that the selector finds.
func (p *tab) texts(selector string) []string {
	p.browser.t.Helper()
	var texts []string
	p.eval(fmt.Sprintf("[...document.querySelectorAll(%q)].map((e) => e.textContent.trim())", selector), &texts)
	return texts
}

// wantTexts waits until these are the texts of all elements that the selector finds.
func (p *tab) wantTexts(selector string, want ...string) {
	p.browser.t.Helper()
	err := Poll(3*Deadline, func() error {
		if diff := cmp.Diff(want, p.texts(selector), cmpopts.EquateEmpty()); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	if err != nil {
		p.browser.t.Fatalf("page of %s: %s (-want +got):\n%v", p.name, selector, err)
	}
}

// fill writes into a field and sends its form, by the keyboard.
func (p *tab) fill(field, text string) {
	p.browser.t.Helper()
	p.eval(fmt.Sprintf("document.querySelector(%q).focus()", field), nil)
	p.write(text)
	p.enter()
}

func (p *tab) click(selector string) {
	p.browser.t.Helper()
	p.eval(fmt.Sprintf("document.querySelector(%q).click()", selector), nil)
}
