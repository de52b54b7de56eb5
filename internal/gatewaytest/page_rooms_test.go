//go:build !secondpass

package gatewaytest

import (
	"fmt"
	"testing"
)

// A room and a name as an attacker would choose them. They are text, wherever they are shown.
const (
	evilRoom = `<img src=x onerror="document.title='owned'">`
	evilName = `</b><script>document.title='owned'</script>`
)

// Three people in a room over two gateways; one of them is a program. The gateway of one page dies, and the page comes back
// into the room where it was.
func TestPagesMeetInARoom(t *testing.T) {
	r := Shared(t, Standalone)
	a, b := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"})
	browser := startChromium(t)
	carol := Connect(t, b.WS(), evilName)
	speak := func(to, content string, fields ...any) {
		t.Helper()
		id, err := carol.Send(to, content, "", fields...)
		if err != nil {
			t.Fatal(err)
		}
		if len(fields) == 0 {
			if ack, err := carol.Ack(id, Deadline); err != nil || ack.Type != "ack" {
				t.Fatalf("carol's message: %v, %v", ack, err)
			}
		}
	}
	if err := carol.Write(object("join", []any{"room", evilRoom})); err != nil {
		t.Fatal(err)
	}
	if _, err := carol.Next("joined", Deadline); err != nil {
		t.Fatal(err)
	}
	speak("room:"+evilRoom, "said before")

	// Alice joins in the page, Bob as he enters. What was said before is there, and nobody missed it.
	alice := browser.open("alice", a.URL()+"/?user=alice")
	alice.connected()
	alice.fill("#join-name", evilRoom)
	alice.wantTexts(thread+".content", "said before")
	alice.wantTexts("#rooms .badge", "")
	bob := browser.open("bob", b.URL()+"/")
	bob.atTheDoor()
	bob.eval("document.querySelector('#enter-user').focus()", nil)
	bob.write("bob")
	bob.fill("#enter-room", evilRoom)
	bob.connected()
	bob.wantTexts(thread+".content", "said before")
	alice.wantExactly("#here-toggle:not([hidden])", "3 here")
	alice.wantTexts("#here-list .name", evilName, "alice", "bob")

	// Bob writes: alice sees that he does, was told once, and then what he says.
	bob.eval("document.querySelector('#text').focus()", nil)
	for _, key := range []string{"h", "e", "l", "l"} {
		bob.write(key)
	}
	alice.wantExactly("#typing.shown", "bob is typing")
	bob.write("o")
	bob.enter()
	alice.wantTexts(thread+".content", "said before", "hello")
	alice.wantTexts("#typing.shown")
	alice.wantExactly(thread+".who", "bob")
	bob.wantPart(thread+".ack", "routed")
	var signs int
	bob.eval(`[...document.querySelectorAll('#frames-list .out')].filter((f) => f.textContent.includes('"content":"typing"')).length`, &signs)
	if signs != 1 {
		t.Errorf("bob's page sent %d typing signs for five letters, want 1", signs)
	}

	// A sign without a message fades by itself. In an inbox it opens no conversation.
	speak("room:"+evilRoom, "typing", "ephemeral", true)
	speak("alice", "typing", "ephemeral", true)
	alice.wantExactly("#typing.shown", evilName+" is typing")
	alice.wantTexts("#people .name")
	alice.wantTexts("#typing.shown")

	a.Kill()
	alice.wantExactly("#state", "reconnecting …")
	alice.say("to all")
	speak("room:"+evilRoom, "one")
	speak("room:"+evilRoom, "two")
	if err := a.Restart(); err != nil {
		t.Fatal(err)
	}
	alice.connected()
	alice.wantTexts(thread+".content", "said before", "hello", "one", "two", "to all")
	bob.wantTexts(thread+".content", "said before", "hello", "one", "two", "to all")
	alice.wantPart("#frames-list", `:{"epoch":"`)

	// Another conversation, and what is said in the room meanwhile.
	speak("alice", "psst")
	alice.wantTexts("#people .badge", "1")
	alice.click("#people button")
	alice.wantExactly("#peer h2", evilName)
	alice.wantTexts(thread+".content", "psst")
	alice.wantPresence("online")
	bob.say("where are you?")
	alice.wantTexts("#rooms .badge", "1")
	alice.click("#rooms button")
	alice.wantExactly(thread+".theirs:last-child .content", "where are you?")

	// Bob leaves the room, and is told nothing more of it.
	bob.click("#peer-close")
	bob.wantTexts("#rooms .name")
	bob.wantPart("#frames-list", `"type":"left"`)
	alice.wantExactly("#here-toggle", "2 here")
	alice.wantTexts("#here-list .name", evilName, "alice")
	alice.say("he is gone")
	speak("bob", "they talk about you")
	bob.wantExactly(thread+".content", "they talk about you")
	bob.wantTexts("#rooms .name")

	alice.wantExactly("title", "alice · Chatgate")
	alice.wantTexts("#app :is(img[src=x], script)")
}

// What a tab says stands in the others too, survives a reload, and what is older is read from the log as the reader scrolls back.
func TestTabsOfOneUserShareWhatIsSaid(t *testing.T) {
	a := StartGateway(t, Shared(t, Standalone), Options{Name: "a", Flags: []string{"--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0"}})
	browser := startChromium(t)
	bob := Connect(t, a.WS(), "bob")
	if err := bob.Write(object("join", []any{"room", "attic"})); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.Next("joined", Deadline); err != nil {
		t.Fatal(err)
	}
	const before = 260      // more than a new device is given
	for i := range before { // one after the other, or they were out of order where one is refused and repeated
		for _, to := range []string{"room:attic", []string{"alice", "dave"}[i%2]} {
			id, err := bob.Send(to, fmt.Sprint(i+1), "")
			if err != nil {
				t.Fatal(err)
			}
			if f, err := bob.Settle(id, 4*Deadline); err != nil || f.Type != "ack" {
				t.Fatalf("%s, %v", f, err)
			}
		}
	}

	first := browser.open("alice", a.URL()+"/?user=alice&to=bob")
	first.connected()
	second := browser.open("alice again", a.URL()+"/?user=alice&to=bob")
	second.connected()
	first.say("from the first tab")
	second.wantExactly(thread+".mine .content", "from the first tab")
	second.wantExactly(thread+".mine .tag", "from another tab")
	first.wantPart(thread+".ack", "routed to 1 device")
	second.say("from the second")
	first.wantExactly(thread+".mine .content", "from the second")
	first.wantTexts(thread+".mine .content", "from the first tab", "from the second")
	second.wantTexts(thread+".mine .content", "from the first tab", "from the second")
	second.wantTexts("#people .badge", "")

	// A note to oneself is one message.
	first.fill("#add-name", "alice")
	first.say("milk")
	first.wantPart(thread+".ack", "routed to 2 devices")
	first.wantTexts(thread+".content", "milk")

	// A room: the newest at once, the rest on the way up.
	first.fill("#join-name", "attic")
	first.wantExactly(thread+".message:last-child .content", fmt.Sprint(before))
	err := Poll(3*Deadline, func() error {
		first.eval("document.querySelector('"+thread+"').scrollTop = -1e9", nil)
		if got := first.text(thread + "p.older:not([hidden])"); got != "This is the beginning." {
			return fmt.Errorf("the top says %q", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	all := make([]string, before)
	for i := range all {
		all[i] = fmt.Sprint(i + 1)
	}
	first.wantTexts(thread+".content", all...)

	// The conversations are there again, and nothing in them counts as new.
	first.must("Page.navigate", map[string]any{"url": a.URL() + "/?user=alice&to=bob"}, nil)
	first.connected()
	first.wantTexts("#rooms .name", "attic")
	first.wantTexts("#people .name", "bob", "alice")
	first.wantTexts(thread+".mine .content", "from the first tab", "from the second")
	first.wantTexts(".tag")
	first.wantTexts("#people .badge", "", "")
}
