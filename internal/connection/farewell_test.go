package connection

import (
	"bytes"
	"crypto/tls"
	"net"
	"strings"
	"testing"

	"chatgate/internal/protocol"
)

// A client says goodbye and is gone, while its reader is held by what it sent before. Its socket fails as soon as it is written to, but what it said has come: that is how it ended.
// Who said nothing, or what can't be understood, was cut off.
func TestAGoodbyeCountsWhoeverNoticesTheEnd(t *testing.T) {
	bye, many := string(clientFrame(opClose, "\x03\xe8done")), strings.Repeat(string(clientFrame(opText, strings.Repeat("x", 60))), 300)
	cases := map[string]struct {
		last string
		kind Kind
		code protocol.CloseCode
	}{
		"goodbye":                   {bye, KindClientClose, 1000},
		"a closed tab":              {string(clientFrame(opClose, "\x03\xe9")), KindClientClose, 1001},
		"without a code":            {string(clientFrame(opClose, "")), KindClientClose, closeNoStatus},
		"behind a message":          {string(clientFrame(opText, "more")) + bye, KindClientClose, 1000},
		"behind many":               {many + string(clientFrame(opPing, "?")) + bye, KindClientClose, 1000},
		"behind a large one":        {string(clientFrame(opText, strings.Repeat("y", 40<<10))) + bye, KindClientClose, 1000},
		"nothing":                   {"", KindNetwork, protocol.CloseAbnormal},
		"messages":                  {many, KindNetwork, protocol.CloseAbnormal},
		"half a goodbye":            {bye[:len(bye)-3], KindNetwork, protocol.CloseAbnormal},
		"a code that nobody sends":  {string(clientFrame(opClose, "\x03\xee")), KindNetwork, protocol.CloseAbnormal},
		"no WebSocket, and goodbye": {"\x93\x80" + bye, KindNetwork, protocol.CloseAbnormal},
	}
	for over, start := range map[string]func(testing.TB, func(*Config)) *gate{"bare": newGate, "TLS": newTLSGate} {
		for name, tc := range cases {
			t.Run(over+"/"+name, func(t *testing.T) {
				t.Parallel()
				g := start(t, nil)
				began, held := make(chan struct{}), make(chan struct{})
				g.handle = func(_ *Connection, b []byte) {
					if bytes.Equal(b, []byte("hold")) {
						close(began)
						<-held
					}
				}
				c, r := g.rawDial(0)
				r.send(opText, "hold")
				<-began
				r.write([]byte(tc.last))
				socket := r.nc
				if over, ok := socket.(*tls.Conn); ok {
					socket = over.NetConn()
				}
				_ = socket.(*net.TCPConn).SetLinger(0)
				_ = socket.Close()
				poll(t, "the socket fails", func() bool {
					c.Send([]byte("are you there?"))
					_, ended := c.Cause()
					return ended
				})
				close(held)
				g.wantEnd(c, tc.kind, tc.code)
			})
		}
	}
}
