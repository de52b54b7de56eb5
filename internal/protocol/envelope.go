package protocol

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
)

// Envelopes travel between gateways on their channels. Every one begins with
// EnvelopeVersion and a kind; what follows depends on the kind:
//
//	m  number LF record...         stored messages; the channel's next number
//	e  record...                   ephemeral messages, never numbered
//	p  number SP own SP line       pulse: the channel's last number, how many
//	                               connections the registry says it owns, and
//	                               Redis' history line
//	k  conn US fence US code US reason US by     close this connection
//	a  frame                       a message for everyone, never numbered
//	s  number LF user US state US epoch US n US ms   a watched user's state;
//	                               numbered like m
//	j  room LF count, then for each LF and +user or -user: how many are in a
//	                               room now, and who joined or left it; nobody
//	                               is named where they are many
//	q  id SP asker SP ms LF verb LF body   a question (question.go), and
//	r  id SP gateway SP number SP more LF status LF body   a part of its answer;
//	                               never numbered
//
// SP, LF and US are 0x20, 0x0A and 0x1F. A record is
//
//	epoch SP offset SP addressLen SP frameLen LF address frame
//
// with "- 0" for epoch and offset when ephemeral; frame is what
// AppendMessageHead made. Scripts write m, p, k, s and j (see the .lua files), so
// numbers are decimal and nothing needs more than concatenation. An envelope of
// another version or kind counts as lost.
const EnvelopeVersion = 1

// EnvelopeKind is the second byte of an envelope.
type EnvelopeKind byte

// The kinds of envelopes.
const (
	EnvelopeMessages  EnvelopeKind = 'm'
	EnvelopeEphemeral EnvelopeKind = 'e'
	EnvelopePulse     EnvelopeKind = 'p'
	EnvelopeKick      EnvelopeKind = 'k'
	EnvelopeEveryone  EnvelopeKind = 'a'
	EnvelopeState     EnvelopeKind = 's'
	EnvelopeMembers   EnvelopeKind = 'j'
	EnvelopeQuestion  EnvelopeKind = 'q'
	EnvelopeAnswer    EnvelopeKind = 'r'
)

// ErrEnvelope says that an envelope can't be understood: another version, an
// unknown kind, or a body that is cut.
var ErrEnvelope = errors.New("protocol: envelope not understood")

// Records iterates over the records of an envelope. The strings alias the
// payload; nothing is allocated.
type Records struct {
	rest string
}

// Record is one message for one address.
type Record struct {
	Address Address
	Epoch   string // "" when ephemeral
	Offset  uint64
	Frame   string // without its position, as AppendMessageHead made it
}

// OpenEnvelope returns the kind of an envelope and its body.
func OpenEnvelope(payload string) (EnvelopeKind, string, error) {
	if len(payload) < 2 || payload[0] != EnvelopeVersion {
		return 0, "", ErrEnvelope
	}
	switch k := EnvelopeKind(payload[1]); k {
	case EnvelopeMessages, EnvelopeEphemeral, EnvelopePulse, EnvelopeKick, EnvelopeEveryone, EnvelopeState, EnvelopeMembers,
		EnvelopeQuestion, EnvelopeAnswer:
		return k, payload[2:], nil
	}
	return 0, "", ErrEnvelope
}

// OpenMessages returns the number of a stored envelope's body, and its records.
func OpenMessages(body string) (number uint64, r Records, err error) {
	head, rest, ok := strings.Cut(body, "\n")
	if !ok {
		return 0, r, ErrEnvelope
	}
	if number, err = strconv.ParseUint(head, 10, 64); err != nil {
		return 0, r, ErrEnvelope
	}
	return number, Records{rest: rest}, nil
}

// OpenEphemeral returns the records of an ephemeral envelope's body.
func OpenEphemeral(body string) Records { return Records{rest: body} }

// Next reads one record. It returns false at the end, and ErrEnvelope when the
// rest is cut.
func (r *Records) Next(rec *Record) (bool, error) {
	if r.rest == "" {
		return false, nil
	}
	epoch, rest, ok1 := strings.Cut(r.rest, " ")
	offset, rest, ok2 := cutUint(rest, ' ')
	addressLen, rest, ok3 := cutUint(rest, ' ')
	frameLen, rest, ok4 := cutUint(rest, '\n')
	if !ok1 || epoch == "" || !ok2 || !ok3 || !ok4 || addressLen > uint64(len(rest)) || frameLen > uint64(len(rest))-addressLen {
		return false, ErrEnvelope
	}
	if epoch == "-" {
		epoch = ""
	}
	*rec = Record{
		Address: Address(rest[:addressLen]), Epoch: epoch, Offset: offset,
		Frame: rest[addressLen : addressLen+frameLen],
	}
	r.rest = rest[addressLen+frameLen:]
	return true, nil
}

func cutUint(s string, end byte) (uint64, string, bool) {
	var n uint64
	for i := 0; i < len(s) && i < 20; i++ {
		if s[i] == end {
			return n, s[i+1:], i > 0
		}
		if s[i] < '0' || s[i] > '9' {
			break
		}
		n = n*10 + uint64(s[i]-'0')
	}
	return 0, s, false
}

// AppendEphemeralHeader begins an ephemeral envelope.
func AppendEphemeralHeader(dst []byte) []byte {
	return append(dst, EnvelopeVersion, byte(EnvelopeEphemeral))
}

// AppendEveryone makes the envelope of a message for everyone.
func AppendEveryone(dst []byte, m *MessageHead) []byte {
	return AppendMessageHead(append(dst, EnvelopeVersion, byte(EnvelopeEveryone)), m)
}

// OpenEveryone returns the frame of such an envelope's body, as AppendMessageHead
// made it.
func OpenEveryone(body string) (frame string, err error) {
	if !strings.HasPrefix(body, `{"type":"message",`) {
		return "", ErrEnvelope
	}
	return body, nil
}

// AppendEphemeralRecord adds one message to an ephemeral envelope.
func AppendEphemeralRecord(dst []byte, a Address, frame []byte) []byte {
	dst = append(dst, "- 0"...)
	dst = AppendRecordHead(dst, a, len(frame))
	return append(dst, frame...)
}

// AppendRecordHead adds what stands in a record between the offset and the frame.
func AppendRecordHead(dst []byte, a Address, frameLen int) []byte {
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(len(a)), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(frameLen), 10)
	dst = append(dst, '\n')
	return append(dst, a...)
}

// Pulse is the body of a pulse envelope.
type Pulse struct {
	Number uint64 // the channel's last number
	Own    int64  // connections the registry says this gateway owns in the group
	Line   string // Redis' history line
}

// OpenPulse reads a pulse's body.
func OpenPulse(body string) (Pulse, error) {
	f := strings.Split(body, " ")
	if len(f) != 3 {
		return Pulse{}, ErrEnvelope
	}
	n, err1 := strconv.ParseUint(f[0], 10, 64)
	own, err2 := strconv.ParseInt(f[1], 10, 64)
	if err1 != nil || err2 != nil {
		return Pulse{}, ErrEnvelope
	}
	return Pulse{Number: n, Own: own, Line: f[2]}, nil
}

// Kick is the body of a kick envelope.
type Kick struct {
	Conn   ConnID
	Fence  uint64
	Code   CloseCode
	Reason string
	By     string
	At     int64 // ms since 1970; 0 from a version that didn't say
}

// OpenKick reads a kick's body.
func OpenKick(body string) (Kick, error) {
	f := strings.SplitN(body, "\x1f", 6)
	if len(f) < 5 {
		return Kick{}, ErrEnvelope
	}
	fence, err1 := strconv.ParseUint(f[1], 10, 64)
	code, err2 := strconv.ParseUint(f[2], 10, 16)
	if err1 != nil || err2 != nil {
		return Kick{}, ErrEnvelope
	}
	k := Kick{Conn: ConnID(f[0]), Fence: fence, Code: CloseCode(code), Reason: UnpackReason(f[3]), By: f[4]}
	if len(f) == 6 {
		if k.At, err1 = strconv.ParseInt(f[5], 10, 64); err1 != nil {
			return Kick{}, ErrEnvelope
		}
	}
	return k, nil
}

// In a mark, and in the kick envelope made of it, a space ends the reason: so those
// in it are written as a control character that no reason holds.
const packedSpace = "\x1d"

// PackReason makes one word of a reason.
func PackReason(reason string) string { return strings.ReplaceAll(reason, " ", packedSpace) }

// UnpackReason undoes it.
func UnpackReason(word string) string { return strings.ReplaceAll(word, packedSpace, " ") }

// UserState is what is known of a user's presence: the body of a state envelope.
type UserState struct {
	User  UserID
	State PresenceState
	Epoch string // of the version; empty: Redis knows of no state
	N     uint64 // of the version: grows with every change in an epoch
	Since int64  // ms since 1970
}

// Version names the state to clients; empty when Redis knows of none.
func (s *UserState) Version() string {
	if s.Epoch == "" {
		return ""
	}
	return s.Epoch + "." + strconv.FormatUint(s.N, 10)
}

// LastSeen is when a user who is offline went, ms since 1970; 0: online, or not known.
func (s *UserState) LastSeen() int64 {
	if s.State == StateOffline {
		return s.Since
	}
	return 0
}

// OpenState returns the number of a state envelope's body, and the state, which
// aliases it.
func OpenState(body string) (number uint64, s UserState, err error) {
	head, rest, ok := strings.Cut(body, "\n")
	f := strings.Split(rest, "\x1f")
	if !ok || len(f) != 5 || f[0] == "" || f[2] == "" || f[1] != string(StateOnline) && f[1] != string(StateOffline) {
		return 0, s, ErrEnvelope
	}
	number, err1 := strconv.ParseUint(head, 10, 64)
	n, err2 := strconv.ParseUint(f[3], 10, 64)
	since, err3 := strconv.ParseInt(f[4], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return 0, s, ErrEnvelope
	}
	s = UserState{User: UserID(f[0]), State: StateOffline, Epoch: f[2], N: n, Since: since}
	if f[1] == string(StateOnline) {
		s.State = StateOnline
	}
	return number, s, nil
}

// Epochs name a stretch of a log's history. 62^11 is just above 2^64.
const epochAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// NewEpoch returns a random epoch of at most 11 characters.
func NewEpoch() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	n := binary.LittleEndian.Uint64(b[:])
	out := make([]byte, 0, 11)
	for {
		out = append(out, epochAlphabet[n%62])
		if n /= 62; n == 0 {
			return string(out)
		}
	}
}
