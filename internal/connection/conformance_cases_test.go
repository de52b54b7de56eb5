package connection

import (
	"fmt"
	"slices"
	"strings"

	"chatgate/internal/protocol"
)

// Group 1: every form of the length.
func rfcFraming() (cases []rfcCase) {
	for i, n := range []int{0, 125, 126, 127, 128, 65535, 65536, 65536} {
		chop := 0
		if i == 7 {
			chop = 997
		}
		payload := strings.Repeat("*", n)
		cases = append(cases,
			one(fmt.Sprintf("1.1.%d", i+1), bye, chop, frames(fr(opText, payload)), echo(payload)),
			one(fmt.Sprintf("1.2.%d", i+1), isBinary, chop, frames(fr(opBinary, strings.Repeat("\xfe", n)))))
	}
	return cases
}

// Group 2.
func rfcPings() []rfcCase {
	blob := "\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
	full := strings.Repeat("\xfe", 125)
	var ten [][]byte
	var pongs []rfcFrame
	for i := range 10 {
		payload := fmt.Sprintf("payload-%d", i)
		ten, pongs = append(ten, fr(opPing, payload)), append(pongs, pong(payload))
	}
	return []rfcCase{
		one("2.1", bye, 0, frames(fr(opPing, "")), pong("")),
		one("2.2", bye, 0, frames(fr(opPing, "Hello, world!")), pong("Hello, world!")),
		one("2.3", bye, 0, frames(fr(opPing, blob)), pong(blob)),
		one("2.4", bye, 0, frames(fr(opPing, full)), pong(full)),
		one("2.5", breaks, 0, frames(fr(opPing, full+"\xfe"))),
		one("2.6", bye, 1, frames(fr(opPing, full)), pong(full)),
		one("2.7", bye, 0, frames(fr(opPong, ""))),
		one("2.8", bye, 0, frames(fr(opPong, "unasked"))),
		one("2.9", bye, 0, frames(fr(opPong, "unasked"), fr(opPing, "asked")), pong("asked")),
		one("2.10", bye, 0, ten, pongs...),
		one("2.11", bye, 1, ten, pongs...),
	}
}

// Group 3: reserved bits, alone and behind a good message, before a ping that must not be answered.
func rfcReservedBits() []rfcCase {
	const rsv = 0x10
	behind := func(bits byte) [][]byte {
		return frames(fr(opText, "hello"), fr(opText|bits*rsv, "hello"), fr(opPing, ""))
	}
	return []rfcCase{
		one("3.1", breaks, 0, frames(fr(opText|1*rsv, "hello"))),
		one("3.2", breaks, 0, behind(2), echo("hello")),
		one("3.3", breaks, perFrame, behind(3), echo("hello")),
		one("3.4", breaks, 1, behind(4), echo("hello")),
		one("3.5", breaks, 0, frames(fr(opBinary|5*rsv, "\x00\xff"))),
		one("3.6", breaks, 0, frames(fr(opPing|6*rsv, "hello"))),
		one("3.7", breaks, 0, frames(fr(opClose|7*rsv, ""))),
	}
}

// Group 4: opcodes that nobody has given a meaning.
func rfcOpcodes() (cases []rfcCase) {
	for i := range byte(5) {
		payload := []string{"", "reserved", "", "reserved", ""}[i]
		for group, first := range map[int]byte{1: 0x80 | 3 + i, 2: 0x80 | 11 + i} {
			id := fmt.Sprintf("4.%d.%d", group, i+1)
			bad := fr(first, payload)
			if i < 2 {
				cases = append(cases, one(id, breaks, 0, frames(bad)))
				continue
			}
			chop := []int{0, 0, 0, perFrame, 1}[i]
			cases = append(cases, one(id, breaks, chop, frames(fr(opText, "hello"), bad, fr(opPing, "")), echo("hello")))
		}
	}
	return cases
}

// Group 5.
func rfcFragmentation() []rfcCase {
	two := frames(fr(beginText, "fragment1"), fr(opCont, "fragment2"))
	pinged := frames(fr(beginText, "fragment1"), fr(opPing, "ping"), fr(opCont, "fragment2"))
	lonely := func(first byte) [][]byte { return frames(fr(first, "goes on with nothing"), fr(opText, "hello")) }
	twice := func(first byte) [][]byte {
		f := frames(fr(first, "fragment1"), fr(beginText, "fragment2"), fr(opCont, "fragment3"))
		return slices.Concat(f, f)
	}
	five := func(chop int) []rfcPart {
		return []rfcPart{
			{frames(fr(beginText, "1"), fr(goOn, "2"), fr(opPing, "first")), chop, hear(pong("first"))},
			{frames(fr(goOn, "3"), fr(goOn, "4"), fr(opPing, "second"), fr(opCont, "5")), chop, hear(pong("second"), echo("12345"))},
		}
	}
	return []rfcCase{
		one("5.1", breaks, 0, frames(fr(0x9, "fragment1"), fr(opCont, "fragment2"))),
		one("5.2", breaks, 0, frames(fr(0xA, "fragment1"), fr(opCont, "fragment2"))),
		one("5.3", bye, 0, two, echo("fragment1fragment2")),
		one("5.4", bye, perFrame, two, echo("fragment1fragment2")),
		one("5.5", bye, 1, two, echo("fragment1fragment2")),
		one("5.6", bye, 0, pinged, pong("ping"), echo("fragment1fragment2")),
		one("5.7", bye, perFrame, pinged, pong("ping"), echo("fragment1fragment2")),
		one("5.8", bye, 1, pinged, pong("ping"), echo("fragment1fragment2")),
		one("5.9", breaks, 0, lonely(opCont)),
		one("5.10", breaks, perFrame, lonely(opCont)),
		one("5.11", breaks, 1, lonely(opCont)),
		one("5.12", breaks, 0, lonely(goOn)),
		one("5.13", breaks, perFrame, lonely(goOn)),
		one("5.14", breaks, 1, lonely(goOn)),
		one("5.15", breaks, 0, slices.Concat(two, frames(fr(goOn, "fragment3"), fr(opText, "fragment4"))), echo("fragment1fragment2")),
		one("5.16", breaks, 0, twice(goOn)),
		one("5.17", breaks, 0, twice(opCont)),
		one("5.18", breaks, 0, frames(fr(beginText, "fragment1"), fr(opText, "fragment2"))),
		{"5.19", five(0), bye},
		{"5.20", five(perFrame), bye},
	}
}

// Group 7, where the client closes in every way there is.
func rfcClosing() (cases []rfcCase) {
	bad := "\u03ba\u1f79\u03c3\u03bc\u03b5\xed\xa0\x80edited"
	big := strings.Repeat("BAsd7&jh23", 256<<10/10+1)[:256<<10]
	normal := closing(1000, "")
	cases = []rfcCase{
		one("7.1.1", bye, 0, frames(fr(opText, "hello")), echo("hello")),
		one("7.1.2", answeredBy(1000), 0, frames(normal, fr(opClose, ""))),
		one("7.1.3", answeredBy(1000), 0, frames(normal, fr(opPing, ""))),
		one("7.1.4", answeredBy(1000), 0, frames(normal, fr(opText, "hello"))),
		one("7.1.5", answeredBy(1000), 0, frames(fr(beginText, "fragment1"), normal, fr(opCont, "fragment2"))),
		one("7.1.6", answeredBy(1000), 0, frames(fr(opText, big), fr(opText, "hello"), normal, fr(opPing, "")), echo(big), echo("hello")),
		one("7.3.1", answeredBy(closeNoStatus), 0, frames(fr(opClose, ""))),
		one("7.3.2", breaks, 0, frames(fr(opClose, "a"))),
		one("7.3.3", answeredBy(1000), 0, frames(normal)),
		one("7.3.4", answeredBy(1000), 0, frames(closing(1000, "hello"))),
		one("7.3.5", answeredBy(1000), 0, frames(closing(1000, strings.Repeat("*", 123)))),
		one("7.3.6", breaks, 0, frames(closing(1000, strings.Repeat("*", 124)))),
		one("7.5.1", breaks, 0, frames(closing(1000, bad))),
	}
	for i, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} {
		cases = append(cases, one(fmt.Sprintf("7.7.%d", i+1), answeredBy(protocol.CloseCode(code)), 0, frames(closing(code, ""))))
	}
	for i, code := range []uint16{0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999} {
		cases = append(cases, one(fmt.Sprintf("7.9.%d", i+1), breaks, 0, frames(closing(code, ""))))
	}
	return append(cases, // for information in the suite
		one("7.13.1", breaks, 0, frames(closing(5000, ""))),
		one("7.13.2", breaks, 0, frames(closing(65535, ""))))
}

// Group 9: sizes, fragments, pieces and round trips. What is over our limit is refused; the fragments are there at our limit, too.
func rfcLimits() (cases []rfcCase) {
	bulk := func(n int) string { return strings.Repeat("*", n) }
	for i, n := range []int{64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20} {
		end, blob, heard := bye, isBinary, hear(echo(bulk(n)))
		if n > conformanceLimit {
			end, blob, heard = tooBig, tooBig, nil
		}
		cases = append(cases,
			one(fmt.Sprintf("9.1.%d", i+1), end, 0, frames(fr(opText, bulk(n))), heard...),
			one(fmt.Sprintf("9.2.%d", i+1), blob, 0, frames(fr(opBinary, bulk(n)))))
	}
	for i, size := range []int{64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		blob := isBinary
		if size > conformanceLimit {
			blob = tooBig
		}
		cases = append(cases,
			one(fmt.Sprintf("9.3.%d", i+1), tooBig, 0, fragments(beginText, bulk(4<<20), size)),
			one(fmt.Sprintf("9.4.%d", i+1), blob, 0, fragments(beginBinary, bulk(4<<20), size)))
		if size <= conformanceLimit {
			cases = append(cases, one(fmt.Sprintf("9.3.%d at our limit", i+1), bye, 0, fragments(beginText, bulk(conformanceLimit), size), echo(bulk(conformanceLimit))))
		}
	}
	for i, chop := range []int{64, 128, 256, 512, 1024, 2048} {
		cases = append(cases,
			one(fmt.Sprintf("9.5.%d", i+1), bye, chop, frames(fr(opText, bulk(1<<20))), echo(bulk(1<<20))),
			one(fmt.Sprintf("9.6.%d", i+1), isBinary, chop, frames(fr(opBinary, bulk(1<<20)))))
	}
	for i, n := range []int{0, 16, 64, 256, 1024, 4096} {
		trip := rfcPart{send: frames(fr(opText, bulk(n))), hear: hear(echo(bulk(n)))}
		cases = append(cases,
			rfcCase{fmt.Sprintf("9.7.%d", i+1), slices.Repeat([]rfcPart{trip}, 1000), bye},
			one(fmt.Sprintf("9.8.%d", i+1), isBinary, 0, frames(fr(opBinary, bulk(n)))))
	}
	return cases
}

// Group 10.
func rfcAutoFragments() []rfcCase {
	payload := strings.Repeat("*", 65536)
	return []rfcCase{one("10.1.1", bye, 0, fragments(beginText, payload, 1300), echo(payload))}
}

// rfcGroups are the suite's groups, with the number of its cases.
var rfcGroups = []struct {
	number int
	name   string
	size   int
	cases  func() []rfcCase // nil: left out
	why    string           // left out, or refused
}{
	{1, "framing", 16, rfcFraming, "binary: 1003"},
	{2, "pings and pongs", 11, rfcPings, ""},
	{3, "reserved bits", 7, rfcReservedBits, ""},
	{4, "opcodes", 10, rfcOpcodes, ""},
	{5, "fragmentation", 20, rfcFragmentation, ""},
	{6, "UTF-8", 145, rfcUTF8, ""},
	{7, "closing", 37, rfcClosing, ""},
	{9, "limits and performance", 54, rfcLimits, "binary: 1003; over the largest limit, 1 MiB: 1009"},
	{10, "automatic fragments", 1, rfcAutoFragments, ""},
	{12, "compression, plain", 90, nil, "off by default, and what is sent is never compressed: docs/security.md"},
	{13, "compression, with parameters", 126, nil, "off by default, and what is sent is never compressed: docs/security.md"},
}
