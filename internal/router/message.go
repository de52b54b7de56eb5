package router

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// Message is one message on its way. The sender fills it, gives it to Send, and
// may not touch it again before Done is called; then it may be reused.
type Message struct {
	To        protocol.Address
	From      protocol.UserID
	ID        []byte // the sender's id for it, unique for the sender
	Frame     []byte // what the receiver gets, from protocol.AppendMessageHead
	Content   []byte // what H(content) is taken of
	Origin    []byte // what its event says of where it came from, from protocol.AppendMessageOrigin; empty: it has no event
	Ts        int64  // ms since 1970
	Ephemeral bool
	// Newcomer says that the sender may be the first to so many addresses only: where nobody has written yet, this message is taken if
	// Config.MayBegin agrees.
	Newcomer bool
	// Copy is what the sender keeps of it: a Message to the sender's own address, without Done. nil: nothing.
	Copy *Message

	// Done is called exactly once, from a goroutine of the router. It must not
	// block; what it appends through the batch is flushed with the answers of the
	// messages that travelled with this one.
	Done func(*connection.Batch, *Message)
	// Sender is for Done: the connection that is to be answered.
	Sender *connection.Connection
	// HasID is for Done: the sender gave the id itself.
	HasID bool

	// Result is set before Done is called.
	Result Result

	next    time.Time // when it entered the lane
	key     [16]byte  // of (From, ID)
	content [8]byte   // of Content
	head    []byte    // see send.lua
	begins  bool      // MayBegin has agreed
	lacks   bool      // the script found that it would be the first, and did nothing
}

// Result is what became of a message.
type Result struct {
	// Err is nil when the message was routed, stored or dropped. Its codes are
	// unavailable and limited (certainly not stored), unknown, conflict and
	// overloaded.
	Err     *protocol.ReplyError
	Status  protocol.Status
	Epoch   string // "" for ephemeral messages
	Offset  uint64
	Devices int
	Ts      int64
}

// hash computes the keys of dedupe: a sender's id names one message, and the hash
// of its content tells a repeat from another message under the same id. Both are
// truncated SHA-256, so that no sender can make up a pair that collides with
// somebody else's.
func (m *Message) hash() {
	m.head = binary.BigEndian.AppendUint16(m.head[:0], uint16(len(m.From)))
	m.head = append(m.head, m.From...)
	m.digest()
}

// hashCopy is hash for the copy of a message to an address. The same id to two receivers makes two copies, and neither is taken for
// a message that the sender wrote to himself.
func (m *Message) hashCopy(to protocol.Address) {
	m.head = binary.BigEndian.AppendUint16(m.head[:0], copyMark) // no user is named so long
	m.head = binary.BigEndian.AppendUint16(m.head, uint16(len(to)))
	m.head = append(m.head, to...)
	m.digest()
}

const copyMark = 0xffff

// digest ends the computation: head holds what stands before the id.
func (m *Message) digest() {
	m.head = append(m.head, m.ID...)
	key, content := sha256.Sum256(m.head), sha256.Sum256(m.Content)
	m.key, m.content = [16]byte(key[:16]), [8]byte(content[:8])
}

// prepare writes the head that lua/send.lua takes, for the message's place among
// the addresses of its call.
func (m *Message) prepare(address int) {
	m.head = append(m.head[:0], m.key[:]...)
	m.head = append(m.head, byte('0'+address/100%10), byte('0'+address/10%10), byte('0'+address%10))
	m.head = append(m.head, m.content[:]...)
	m.head = strconv.AppendInt(m.head, max(m.Ts, minTs), 10)
	if m.Newcomer && !m.begins {
		m.head = append(m.head, '-')
	} else {
		m.head = append(m.head, '+')
	}
	m.head = protocol.AppendRecordHead(m.head, m.To, len(m.Frame))
}

// minTs is the first time in ms with the 13 digits that send.lua cuts out; the
// next number of digits comes in 2286.
const minTs = 1_000_000_000_000

// carried is what a message counts for in the bounds of a call, bytes.
func (m *Message) carried() int { return len(m.Frame) + len(m.Origin) }

// size is what a message counts for in a lane's bounds, bytes.
func (m *Message) size() int { return len(m.Frame) + len(m.Origin) + len(m.To) + messageOverhead }

// messageOverhead stands for the struct, its keys and its place in the queue.
const messageOverhead = 256

// fail answers a message with an error.
func (m *Message) fail(code protocol.ErrorCode, text string, retryAfter time.Duration) {
	m.Result = Result{Err: &protocol.ReplyError{
		ID: string(m.ID), Code: code, Message: text, RetryAfterMs: retryAfter.Milliseconds(),
	}}
}
