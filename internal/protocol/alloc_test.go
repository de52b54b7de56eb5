//go:build !race

package protocol

import "testing"

// What a message passes through allocates nothing once its buffers have grown; the race detector would count its own allocations.
func TestHotPathDoesNotAllocate(t *testing.T) {
	plain := golden(t, "testdata/client/message.json")
	escaped := []byte(`{"type":"message","id":"m\u002d1","to":"al\u0069ce \ud83d\ude42","content":"a\nb"}`)
	dst := make([]byte, 0, 4096)
	ack := Ack{ID: []byte("m-1"), Status: StatusRouted, Epoch: "c7Wd1LhE0s", Offset: 18, Devices: 2, HasDevices: true, Ts: 1795305601234}
	head := MessageHead{ID: []byte("m-1"), From: "алиса\n", To: []byte("bob"), Content: []byte(`{"text":"hi"}`), Ts: 1795305601234, Ephemeral: true, Own: true}
	refusal := ReplyError{ID: "m-1", Code: CodeLimited, Message: "too many messages", Limit: "message-rate", RetryAfterMs: 250}
	users := []UserPresence{{User: "bob", State: StateOnline, Version: "r4Yx8.3", Devices: 2}}
	var f Frame
	decode := func(data []byte) func() {
		return func() {
			if err := f.Decode(data); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]func(){
		"decode message":         decode(plain),
		"decode escaped message": decode(escaped),
		"decode heartbeat":       decode([]byte(`{"type":"heartbeat"}`)),
		"decode received":        decode([]byte(`{"type":"received","epoch":"9fK2mQx7aZ","offset":18446744073709551615}`)),
		"ack":                    func() { dst = AppendAck(dst[:0], &ack) },
		"heartbeat":              func() { dst = AppendHeartbeat(dst[:0], 1795305601234, true) },
		"message head":           func() { dst = AppendMessageHead(dst[:0], &head) },
		"message tail":           func() { dst = AppendMessageTail(dst[:0], "9fK2mQx7aZ", 42) },
		"error":                  func() { dst = AppendError(dst[:0], &refusal) },
		"presence":               func() { dst = AppendPresence(dst[:0], ack.ID, users) },
		"closing":                func() { dst = AppendClosing(dst[:0], &Closing{Code: CloseKicked, Reason: "spam", By: "support"}) },
		"valid id":               func() { ValidID([]byte("алиса"), MaxIDBytes) },
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			if n := testing.AllocsPerRun(100, run); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}
