package protocol

import (
	"encoding/json"
	"strings"
	"testing"
)

func BenchmarkDecode(b *testing.B) {
	frames := map[string]string{
		"heartbeat": `{"type":"heartbeat"}`,
		"message":   `{"type":"message","id":"0198c5a2-7d1e-7c3a-9b60-5f2f6f1f2a11","to":"bob","content":{"text":"hi, how are you?"}}`,
		"message-cyrillic": `{"type":"message","id":"0198c5a2-7d1e-7c3a-9b60-5f2f6f1f2a11","to":"bob","content":{"text":"` +
			strings.Repeat("привет ", 20) + `"}}`,
		"message-4k": `{"type":"message","id":"0198c5a2-7d1e-7c3a-9b60-5f2f6f1f2a11","to":"bob","content":{"text":"` +
			strings.Repeat("lorem ipsum ", 340) + `"}}`,
		"register": `{"type":"register","userId":"alice","deviceId":"phone-1","meta":{"app":"shop"},"resume":{"epoch":"9fK2mQx7aZ","offset":41}}`,
	}
	for name, frame := range frames {
		b.Run(name, func(b *testing.B) {
			data := []byte(frame)
			var f Frame
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if err := f.Decode(data); err != nil {
					b.Fatal(err)
				}
			}
		})
		// What the scanner is instead of.
		b.Run(name+"/encoding-json", func(b *testing.B) {
			data := []byte(frame)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				var f struct {
					Type, ID, UserID, DeviceID, To, Room string
					Meta, Content                        json.RawMessage
					Resume                               *struct {
						Epoch  string
						Offset uint64
					}
				}
				if err := json.Unmarshal(data, &f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	dst := make([]byte, 0, 4096)
	ack := Ack{ID: []byte("0198c5a2-7d1e-7c3a-9b60-5f2f6f1f2a11"), Status: StatusRouted, Epoch: "c7Wd1LhE0s", Offset: 18, Devices: 2, HasDevices: true, Ts: 1795305601234}
	head := MessageHead{ID: ack.ID, From: "alice", To: []byte("bob"), Content: []byte(`{"text":"hi, how are you?"}`), Ts: 1795305601234}
	encoders := map[string]func(){
		"ack":          func() { dst = AppendAck(dst[:0], &ack) },
		"heartbeat":    func() { dst = AppendHeartbeat(dst[:0], 1795305601234, false) },
		"message-head": func() { dst = AppendMessageHead(dst[:0], &head) },
		"message-tail": func() { dst = AppendMessageTail(dst[:0], "9fK2mQx7aZ", 42) },
	}
	for name, run := range encoders {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				run()
			}
		})
	}
}
