//go:build !secondpass

package gatewaytest

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// thread begins the selector of what is in the conversation shown; the others are hidden behind it.
const thread = "#threads > :not([hidden]) "

// say writes a message in the page and sends it by the keyboard.
func (p *tab) say(text string) {
	p.browser.t.Helper()
	p.eval("document.querySelector('#text').focus()", nil)
	p.write(text)
	p.enter()
	p.wantExactly(thread+".mine .content", text)
}

// connected waits until the page is registered and returns the id of its gateway.
func (p *tab) connected() string {
	p.browser.t.Helper()
	p.wantExactly("#state", "connected")
	return p.text("#gateway b")
}

func gatewayID(t *testing.T, g *Gateway) string {
	t.Helper()
	stats, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(stats["gateway_id"])
}

// Two people, two windows, two gateways: everything the page says comes from the cluster.
func TestTwoPagesChatAcrossGateways(t *testing.T) {
	r := Shared(t, Standalone)
	a, b := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"})
	browser := startChromium(t)

	// Alice comes in by the form, with the keyboard; Bob by a link.
	alice := browser.open("alice", a.URL()+"/")
	alice.wantExactly("#enter button", "Enter")
	alice.eval("document.querySelector('#enter-user').focus()", nil)
	alice.write("alice")
	alice.eval("document.querySelector('#enter-to').focus()", nil)
	alice.write("bob")
	alice.enter()
	bob := browser.open("bob", b.URL()+"/?user=bob&to=alice")

	if got, want := alice.connected(), gatewayID(t, a); got != want {
		t.Errorf("alice's page names gateway %q, want %q", got, want)
	}
	if got, want := bob.connected(), gatewayID(t, b); got != want {
		t.Errorf("bob's page names gateway %q, want %q", got, want)
	}
	alice.wantExactly("#peer-presence", "online")
	bob.wantExactly("#peer-presence", "online")

	alice.say("hello bob")
	bob.wantExactly(thread+".theirs .content", "hello bob")
	alice.wantPart(thread+".ack", "routed to 1 device")
	alice.wantPart(thread+".ack .position", "#1")

	// Markup is text, on both sides.
	const markup = `<img src=x onerror="document.title='owned'"> & </textarea>`
	bob.say(markup)
	alice.wantExactly(thread+".theirs .content", markup)
	bob.wantPart(thread+".ack", "routed to 1 device")
	alice.wantExactly("title", "alice · Chatgate")

	// What isn't a string is shown as JSON. Carol has no page: a program.
	carol := Connect(t, a.WS(), "carol")
	id, err := carol.Send("bob", map[string]any{"order": 7}, "")
	if err != nil {
		t.Fatal(err)
	}
	if ack, err := carol.Ack(id, Deadline); err != nil || ack.Type != "ack" {
		t.Fatalf("carol's message: %v, %v", ack, err)
	}
	bob.wantExactly("#people .badge", "1")
	bob.click("#people li:last-child button")
	bob.wantPart(thread+".theirs .content", `"order": 7`)

	// Someone who isn't there: stored, and said so.
	alice.eval("document.querySelector('#add-name').focus()", nil)
	alice.write("dave")
	alice.enter()
	alice.wantExactly("#peer h2", "dave")
	alice.wantExactly("#peer-presence", "offline")
	alice.say("for later")
	alice.wantPart(thread+".ack", "stored")

	// The raw frames are all there, and can be held still.
	bob.wantPart("#frames-list", `{"type":"register","userId":"bob"`)
	bob.click("#frames-pause")
	before := bob.text("#frames-list")
	alice.click("#people li:first-child button")
	alice.say("while paused")
	bob.wantPart("#frames-pause", "Resume (1")
	if after := bob.text("#frames-list"); after != before {
		t.Error("the frames moved while paused")
	}
	bob.click("#frames-pause")
	bob.wantPart("#frames-list li", "while paused")

	// Bob goes: alice sees it.
	bob.click("#leave")
	bob.wantExactly("#enter button", "Enter")
	alice.wantPart("#peer-presence", "offline")
}

// A message written while the gateway is dead goes out when the page has come back, once.
func TestPageComesBackAfterItsGatewayIsKilled(t *testing.T) {
	r := Shared(t, Standalone)
	a, b := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"})
	browser := startChromium(t)
	alice := browser.open("alice", a.URL()+"/?user=alice&to=bob")
	first := alice.connected()
	bob := Connect(t, b.WS(), "bob")

	a.Kill()
	alice.wantExactly("#state", "reconnecting …")
	alice.wantPart("#notice p", "1006")
	alice.say("are you there?")
	alice.wantPart(thread+".ack", "waits for the connection")
	if err := a.Restart(); err != nil {
		t.Fatal(err)
	}

	if second := alice.connected(); second == first || second != gatewayID(t, a) {
		t.Errorf("after a restart the page names gateway %q; it was %q, it is %q", second, first, gatewayID(t, a))
	}
	alice.wantPart(thread+".ack", "routed to 1 device")
	if _, err := bob.Next("message", Deadline); err != nil {
		t.Fatal(err)
	}
	if again := bob.Left("message"); len(again) > 0 {
		t.Errorf("bob got it again: %v", again)
	}
}

// A duplicated tab takes the device id along: the older tab is told, and can go on as a device of its own.
func TestDuplicatedTabIsToldAndCanGoOn(t *testing.T) {
	a := StartGateway(t, Shared(t, Standalone), Options{Name: "a"})
	browser := startChromium(t)
	older := browser.open("alice", a.URL()+"/?user=alice&to=bob")
	older.connected()

	newer := older.duplicate("alice again")
	newer.connected()
	older.wantExactly("#state", "disconnected")
	older.wantPart("#notice p", "opened elsewhere on this device")
	older.wantPart("#notice p", "4502")

	older.click("#notice button")
	older.connected()
	newer.wantExactly("#state", "connected")

	bob := Connect(t, a.WS(), "bob")
	id, err := bob.Send("alice", "to both", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bob.Ack(id, Deadline); err != nil {
		t.Fatal(err)
	}
	older.wantExactly(thread+".theirs .content", "to both")
	newer.wantExactly(thread+".theirs .content", "to both")
}

// What the page makes of frames that a test can't have a gateway send: its session is given a WebSocket of the test's own.
func TestPageShowsEachMessageOnce(t *testing.T) {
	a := StartGateway(t, nil, Options{})
	page := startChromium(t).open("nobody", a.URL()+"/")
	page.wantExactly("#enter button", "Enter")

	const story = `(async () => {
		const { Session } = await import('./session.js');
		globalThis.WebSocket = class { static OPEN = 1; readyState = 1; sent = []; constructor() { globalThis.line = this; } send(t) { this.sent.push(JSON.parse(t)); } close() {} };
		const shown = [], gaps = [], states = [];
		const session = new Session('ws://x/ws', { frame() {}, ack() {}, refused() {}, presence() {},
			message: (m) => shown.push(m.content), gap: (g) => gaps.push(g.got), state: (s) => states.push(s.name) });
		const tell = (frame) => line.onmessage({ data: JSON.stringify(frame) });
		const come = (from, id, epoch, offset, content) => tell({ type: 'message', from, id, epoch, offset, content });
		session.start('alice', 'd1');
		line.onopen();
		tell({ type: 'registered', epoch: 'e', offset: 4, top: 4, recovered: false, heartbeatIntervalMs: 1e9 });
		come('bob', 'm1', 'e', 4, 'stored before');
		come('bob', 'm2', 'e', 5, 'one');
		come('bob', 'm2', 'e', 5, 'one again');
		come('carol', 'm2', 'e', 6, 'two');
		come('bob', 'm2', 'f', 7, 'one in another epoch');
		come('bob', 'm3', 'f', 8, 'three');
		come('bob', 'm4', 'e', 6, 'late, of the old epoch');
		tell({ type: 'message', from: 'bob', id: 'm5', content: 'ephemeral', ephemeral: true });
		const id = session.send('bob', 'unanswered');
		line.onclose({ code: 1006, reason: '' });
		session.start('alice', 'd1');
		line.onopen();
		const register = line.sent.at(-1);
		tell({ type: 'registered', epoch: 'f', offset: 10, top: 10, recovered: false, heartbeatIntervalMs: 1e9 });
		const repeated = line.sent.at(-1);
		tell({ type: 'closing', code: 4503, reason: 'spam', reconnect: false });
		line.onclose({ code: 1006, reason: '' });
		return { shown, gaps, resume: register.resume, same: repeated.id === id && repeated.content === 'unanswered', end: states.at(-1) };
	})()`
	type position struct {
		Epoch  string
		Offset int
	}
	type seen struct {
		Shown  []string
		Gaps   []position // where it went on after messages it could not have
		Resume position   // what it asked for when it came back
		Same   bool       // the unanswered message went out again, with its id
		End    string
	}
	var got seen
	page.eval(story, &got)
	want := seen{
		Shown: []string{"one", "two", "three", "ephemeral"}, Gaps: []position{{"f", 10}}, Resume: position{"f", 8}, Same: true,
		// Though the line was cut, the gateway's last words were not to come back.
		End: "ended",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the page's session (-want +got):\n%s", diff)
	}

	// Its table of close codes is the one of the protocol.
	for code, want := range map[int]bool{
		1000: false, 1001: true, 1002: false, 1003: false, 1005: false, 1006: true, 1007: false, 1008: false, 1009: false,
		1011: true, 1012: true, 1013: true, 3999: false, 4000: true, 4007: true, 4499: true, 4500: false, 4502: false, 4999: false,
	} {
		var got bool
		page.eval(fmt.Sprintf("import('./session.js').then((m) => m.comesBack(%d))", code), &got)
		if got != want {
			t.Errorf("after code %d: comes back is %v, want %v", code, got, want)
		}
	}
}
