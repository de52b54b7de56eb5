//go:build !race

package gatewaytest_test

import (
	"fmt"
)

// roomWork is one room, and how it is spoken in. A burst is sent in one write, and the next when everybody has all of it.
type roomWork struct {
	name  string
	count int // members
	args  roomPace
}

// benchRooms spreads the members evenly over the gateways. What a delivery costs is compared with an echo of the same
// size: one read and one write, where a delivery is one write.
func benchRooms(t *bed, w roomWork) {
	load, echoLoad := t.loads[0], t.loads[1]
	var addrs, names []string
	for _, g := range t.gateways {
		addrs, names = append(addrs, g.Addr), append(names, g.Name)
	}
	load.call(t.b, "rooms.connect", roomArgs{Addrs: addrs, Members: w.count}, nil)
	echoLoad.call(t.b, "messages.connect", messageArgs{Senders: t.echoAddr, Count: *benchPairs}, nil)
	var s samples
	for i := range *benchRounds {
		e := t.round(echoLoad, "messages", startArgs{InFlight: 16}, "")
		d := t.round(load, "rooms", w.args, lastOnly(i, w.name))
		s.addRound(d, e, append(names, "redis")...)
		s.add("gateway-us", d.us(names...))
		s.add("p50-us", micros(d.total.P50))
		s.add("p99-us", micros(d.total.P99))
		s.add("load-us", d.us("load 0"))
		s.add("lost", float64(d.total.Sent*d.total.each()-d.total.Delivered))
	}
	t.report.take(t.b, w.name, &s)
}

// roomLines are the rows of the table.
func roomLines() (lines []line) {
	for _, w := range roomWorks {
		how := fmt.Sprintf("%d in flight", w.args.InFlight)
		if w.args.Burst > 1 {
			how = fmt.Sprintf("in bursts of %d", w.args.Burst)
		}
		mark := ""
		switch {
		case w.count != 1000: // the marks are for rooms of this size
		case w.args.Burst > 1:
			mark = "2 us"
		default:
			mark = "6.5 us"
		}
		lines = append(lines, line{w.name, fmt.Sprintf("room of %d, %s", w.count, how), mark})
	}
	return lines
}

var roomWorks = []roomWork{
	{"room=1000/inflight=2", 1000, roomPace{InFlight: 2}},
	{"room=1000/burst=16", 1000, roomPace{Burst: 16}},
	{"room=10000/inflight=2", 10000, roomPace{InFlight: 2}},
	{"room=10000/burst=16", 10000, roomPace{Burst: 16}},
}
