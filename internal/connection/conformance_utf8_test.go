package connection

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

// Group 6: valid text in every division, and all that Markus Kuhn's stress test of decoders knows (www.cl.cam.ac.uk/~mgk25/ucs/examples/UTF-8-test.txt).
func rfcUTF8() []rfcCase {
	mixed := "Hello-\u00b5@\u00df\u00f6\u00e4\u00fc\u00e0\u00e1-UTF-8!!"
	greek := "\u03ba\u1f79\u03c3\u03bc\u03b5"
	surrogate := greek + "\xed\xa0\x80edited"
	beyond := greek + "\xf4\x90\x80\x80edited"
	cut := strings.Index(mixed, "\u00fc")
	cases := []rfcCase{
		one("6.1.1", bye, 0, frames(fr(opText, "")), echo("")),
		one("6.1.2", bye, 0, frames(fr(beginText, ""), fr(goOn, ""), fr(opCont, "")), echo("")),
		one("6.1.3", bye, 0, frames(fr(beginText, ""), fr(goOn, "middle"), fr(opCont, "")), echo("middle")),
		one("6.2.1", bye, 0, frames(fr(opText, mixed)), echo(mixed)),
		one("6.2.2", bye, 0, frames(fr(beginText, mixed[:cut]), fr(opCont, mixed[cut:])), echo(mixed)),
		one("6.2.3", bye, 0, fragments(beginText, mixed, 1), echo(mixed)),
		one("6.2.4", bye, 0, fragments(beginText, greek, 1), echo(greek)),
		one("6.3.1", notUTF8, 0, frames(fr(opText, surrogate))),
		one("6.3.2", notUTF8, 0, fragments(beginText, surrogate, 1)),
	}
	cases = append(cases, rfcFailFast(beyond, len(greek))...)
	for i, group := range utf8Sequences(greek) {
		for j, s := range group {
			end, heard := notUTF8, []rfcFrame(nil)
			if utf8.ValidString(s) {
				end, heard = bye, hear(echo(s))
			}
			cases = append(cases, one(fmt.Sprintf("6.%d.%d", i+5, j+1), end, 0, frames(fr(opText, s)), heard...))
		}
	}
	return cases
}

// rfcFailFast has what can't become UTF-8 any more refused before the rest of it has come: the rest never comes. The first part, which
// is good, is followed by a ping where a frame ends with it, to see that it was.
func rfcFailFast(s string, good int) []rfcCase {
	inFrames := func(to int) []rfcPart {
		return []rfcPart{
			{send: frames(fr(beginText, s[:to]), fr(opPing, "")), hear: hear(pong(""))},
			{send: frames(fr(goOn, s[to:to+4]))},
		}
	}
	whole := fr(opText, s)
	head := len(whole) - len(s)
	inPieces := func(to, bytes int) []rfcPart {
		return []rfcPart{{send: frames(whole[:head+to], whole[head+to:head+to+bytes]), chop: perFrame}}
	}
	one := inFrames(good + 1)
	one[1].send = frames(fr(goOn, s[good+1:good+2]))
	return []rfcCase{
		{"6.4.1", inFrames(good), notUTF8},
		{"6.4.2", one, notUTF8},
		{"6.4.3", inPieces(good, 4), notUTF8},
		{"6.4.4", inPieces(good+1, 1), notUTF8},
	}
}

// utf8Sequences are 6.5 to 6.23, in this order.
func utf8Sequences(greek string) [][]string {
	var prefixes, lonely, nonCharacters []string
	for i := range len(greek) {
		prefixes = append(prefixes, greek[:i+1])
	}
	span := func(from, to byte, between string) (s string) {
		for b := from; b < to; b++ {
			s += string([]byte{b}) + between
		}
		return s
	}
	for _, r := range [][2]byte{{0xc0, 0xdf}, {0xe0, 0xef}, {0xf0, 0xf7}, {0xf8, 0xfb}, {0xfc, 0xfd}} {
		lonely = append(lonely, span(r[0], r[1], " "))
	}
	// The last two code points of every plane.
	for plane := rune(0); plane <= 0x10; plane++ {
		nonCharacters = append(nonCharacters, string(plane<<16|0xfffe), string(plane<<16|0xffff))
	}
	unended := []string{
		"\xc0", "\xe0\x80", "\xf0\x80\x80", "\xf8\x80\x80\x80", "\xfc\x80\x80\x80\x80",
		"\xdf", "\xef\xbf", "\xf7\xbf\xbf", "\xfb\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf",
	}
	return [][]string{
		0: {"hello$world", "hello\u00a2world", "hello\u20acworld", "hello\U00024b62world", greek},
		1: prefixes,
		// The first and the last of each length, and those of lengths that are no longer UTF-8.
		2: {"\x00", "\u0080", "\u0800", "\U00010000"},
		3: {"\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80"},
		4: {"\x7f", "\u07ff", "\uffff", "\U0010ffff"},
		5: {"\xf7\xbf\xbf\xbf", "\xfb\xbf\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf\xbf"},
		6: {"\ud7ff", "\ue000", "\ufffd", "\U0010ffff", "\xf4\x90\x80\x80"},
		// Continuations of nothing, beginnings of nothing.
		7: {
			"\x80", "\xbf", "\x80\xbf", "\x80\xbf\x80", "\x80\xbf\x80\xbf", "\x80\xbf\x80\xbf\x80", "\x80\xbf\x80\xbf\x80\xbf",
			span(0x80, 0xbf, ""),
		},
		8:  lonely,
		9:  unended,
		10: {strings.Join(unended, "")},
		11: {"\xfe", "\xff", "\xfe\xfe\xff\xff"},
		// Longer than they need be: a slash, the largest of each length, NUL.
		12: {"\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xf8\x80\x80\x80\xaf", "\xfc\x80\x80\x80\x80\xaf"},
		13: {"\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xf8\x87\xbf\xbf\xbf", "\xfc\x83\xbf\xbf\xbf\xbf"},
		14: {"\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xf8\x80\x80\x80\x80", "\xfc\x80\x80\x80\x80\x80"},
		// Surrogates, alone and in pairs.
		15: {"\xed\xa0\x80", "\xed\xad\xbf", "\xed\xae\x80", "\xed\xaf\xbf", "\xed\xb0\x80", "\xed\xbe\x80", "\xed\xbf\xbf"},
		16: {
			"\xed\xa0\x80\xed\xb0\x80", "\xed\xa0\x80\xed\xbf\xbf", "\xed\xad\xbf\xed\xb0\x80", "\xed\xad\xbf\xed\xbf\xbf",
			"\xed\xae\x80\xed\xb0\x80", "\xed\xae\x80\xed\xbf\xbf", "\xed\xaf\xbf\xed\xb0\x80", "\xed\xaf\xbf\xed\xbf\xbf",
		},
		17: nonCharacters,
		18: {"\ufff9", "\ufffa", "\ufffb", "\ufffc", "\ufffd", "\ufffe", "\uffff"},
	}
}

// Every way to cut text in two is told from text that is wrong.
func TestUnfinishedCharactersAreTold(t *testing.T) {
	for _, r := range "a\u00e9\u20ac\U0001f600" {
		s := "x" + string(r)
		for n := 1; n < len(s)-1; n++ {
			if got := unfinished([]byte(s[:1+n])); got != n {
				t.Errorf("%d bytes of %q: %d unfinished", n, r, got)
			}
		}
		if got := unfinished([]byte(s)); got != 0 {
			t.Errorf("%q is whole: %d unfinished", s, got)
		}
	}
	for _, wrong := range []string{"\xff", "\xf4\x90", "\xed\xa0", "\x80\x80\x80\x80", "\xc0", "\xe0\x80"} {
		if got := unfinished([]byte(wrong)); got != 0 {
			t.Errorf("%x can't become text: %d unfinished", wrong, got)
		}
	}
}
