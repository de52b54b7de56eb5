//go:build !secondpass

package gatewaytest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// thread begins the selector of what is in the conversation shown; the others are hidden behind it.
const thread = "#threads > :not([hidden]) "

// say writes a message in the page and sends it by the keyboard.
func (p *tab) say(text string) {
	p.browser.t.Helper()
	p.fill("#text", text)
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

// atTheDoor waits until the page takes a name. Before its script is there, the form would lead to another page.
func (p *tab) atTheDoor() {
	p.browser.t.Helper()
	err := Poll(3*Deadline, func() error {
		var ready bool
		if p.eval("!!document.querySelector('#enter')?.onsubmit", &ready); !ready {
			return errors.New("no script yet")
		}
		return nil
	})
	if err != nil {
		p.browser.t.Fatalf("page of %s: %v", p.name, err)
	}
}

// wantPresence waits for what the page says of the person it chats with.
func (p *tab) wantPresence(want string) {
	p.browser.t.Helper()
	p.wantPart(".with-presence #peer-presence", want)
}

// Two people, two windows, two gateways: everything the page says comes from the cluster.
func TestTwoPagesChatAcrossGateways(t *testing.T) {
	r := Shared(t, Standalone)
	a, b := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"})
	browser := startChromium(t)

	// Alice comes in by the form, with the keyboard; Bob by a link.
	alice := browser.open("alice", a.URL()+"/")
	alice.atTheDoor()
	alice.eval("document.querySelector('#enter-user').focus()", nil)
	alice.write("alice")
	alice.fill("#enter-to", "bob")
	bob := browser.open("bob", b.URL()+"/?user=bob&to=alice")

	if got, want := alice.connected(), gatewayID(t, a); got != want {
		t.Errorf("alice's page names gateway %q, want %q", got, want)
	}
	if got, want := bob.connected(), gatewayID(t, b); got != want {
		t.Errorf("bob's page names gateway %q, want %q", got, want)
	}
	alice.wantPresence("online")
	bob.wantPresence("online")

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
	alice.fill("#add-name", "dave")
	alice.wantExactly("#peer h2", "dave")
	alice.wantPresence("offline")
	alice.say("for later")
	alice.wantPart(thread+".ack", "stored")

	// The raw frames are all there, and can be held still.
	bob.wantPart("#frames-list", `{"type":"register","userId":"bob"`)
	bob.click("#frames-pause")
	before := bob.text("#frames-list")
	alice.click("#people li:first-child button")
	alice.say("while paused")
	bob.wantPart("#frames-pause", "Resume (2)") // the typing sign, and the message
	if after := bob.text("#frames-list"); after != before {
		t.Error("the frames moved while paused")
	}
	bob.click("#frames-pause")
	bob.wantPart("#frames-list li", "while paused")

	// Bob goes: alice sees it.
	bob.click("#sign-out")
	bob.wantExactly("#enter button", "Enter")
	alice.wantPresence("offline")
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
		const session = new Session('ws://x/ws', { frame() {}, ack() {}, refused() {}, joined() {}, notJoined() {}, presence() {}, members() {}, unserved() {},
			message: (m, old) => shown.push(m.content + (old ? ', old' : '')), gap: (g) => gaps.push(g.next), state: (s) => states.push(s.name) });
		const tell = (frame) => line.onmessage({ data: JSON.stringify(frame) });
		const come = (from, id, epoch, offset, content) => tell({ type: 'message', from, id, epoch, offset, content });
		session.start('alice', 'd1');
		line.onopen();
		tell({ type: 'registered', epoch: 'e', offset: 3, top: 4, recovered: true, heartbeatIntervalMs: 1e9 });
		come('bob', 'm0', 'e', 3, 'stored before');
		come('bob', 'm1', 'e', 4, 'backlog');
		come('bob', 'm2', 'e', 5, 'one');
		come('bob', 'm2', 'e', 5, 'one again');
		come('carol', 'm2', 'e', 6, 'two');
		come('bob', 'm2', 'f', 7, 'one in another epoch');
		come('bob', 'm3', 'f', 8, 'three');
		come('bob', 'm4', 'e', 6, 'late, of the old epoch');
		tell({ type: 'message', from: 'bob', id: 'm5', content: 'ephemeral', ephemeral: true });
		const id = session.send({ to: 'bob' }, 'unanswered');
		session.join('__proto__');
		tell({ type: 'joined', room: '__proto__', epoch: 'r', offset: 7, top: 8, recovered: true });
		const say = (offset) => tell({ type: 'message', from: 'bob', id: 'r' + offset, room: '__proto__', epoch: 'r', offset, content: 'room ' + offset });
		[8, 9, 9].forEach(say);
		line.onclose({ code: 1006, reason: '' });
		session.start('alice', 'd1');
		line.onopen();
		const register = line.sent.at(-1);
		tell({ type: 'registered', epoch: 'f', offset: 10, top: 12, recovered: false, heartbeatIntervalMs: 1e9 });
		const repeated = line.sent.at(-1);
		tell({ type: 'gap', epoch: 'f', from: 9, to: 10, reason: 'trimmed', next: { epoch: 'f', offset: 10 } });
		come('bob', 'm6', 'f', 10, 'before the gap');
		come('bob', 'm7', 'f', 11, 'missed');
		say(12); // not joined yet
		tell({ type: 'joined', room: '__proto__', epoch: 'r', offset: 9, top: 10, recovered: true });
		[9, 10].forEach(say);
		session.leave('__proto__');
		say(11);
		tell({ type: 'closing', code: 4503, reason: 'spam', reconnect: false });
		line.onclose({ code: 1006, reason: '' });
		return { shown, gaps, resume: register.resume, room: Object.entries(register.rooms)[0], same: repeated.id === id && repeated.content === 'unanswered', end: states.at(-1) };
	})()`
	type position struct {
		Epoch  string
		Offset int
	}
	type seen struct {
		Shown  []string
		Gaps   []position // where it went on after messages it could not have
		Resume position   // what it asked for when it came back
		Room   []any      // and where, with what
		Same   bool       // the unanswered message went out again, with its id
		End    string
	}
	var got seen
	page.eval(story, &got)
	want := seen{
		Shown: []string{"backlog, old", "one", "two", "three", "ephemeral", "room 8, old", "room 9", "missed", "room 10"},
		Gaps:  []position{{"f", 10}}, Resume: position{"f", 8}, Same: true,
		Room: []any{"__proto__", map[string]any{"epoch": "r", "offset": 9.0}},
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
		page.eval(fmt.Sprintf("import('./rules.js').then((m) => m.comesBack(%d))", code), &got)
		if got != want {
			t.Errorf("after code %d: comes back is %v, want %v", code, got, want)
		}
	}
}
