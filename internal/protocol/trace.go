package protocol

import (
	"encoding/json"
	"strings"
)

// TraceQuestion asks for what becomes of a user's messages and connections, or of
// one message, for so long. One of User and ID is set.
type TraceQuestion struct {
	User UserID    `json:"userId,omitempty"`
	ID   MessageID `json:"id,omitempty"`
	Ms   int64     `json:"ms"`
}

// TracePart is the body of a part of its answer.
type TracePart struct {
	Events []TraceEvent `json:"events,omitempty"`
	Lost   uint64       `json:"lost,omitempty"` // events that there was no room for, since the part before
}

// TraceEvent is one thing that happened on one gateway: ids and what became of
// them, never content.
type TraceEvent struct {
	At          int64     `json:"at"` // ms since 1970, by the gateway's clock
	Event       TraceKind `json:"event"`
	Outcome     string    `json:"outcome,omitempty"`
	ID          string    `json:"id,omitempty"` // of the message
	From        UserID    `json:"from,omitempty"`
	To          UserID    `json:"to,omitempty"`
	Room        RoomID    `json:"room,omitempty"`
	Epoch       string    `json:"epoch,omitempty"`
	Offset      uint64    `json:"offset,omitempty"`
	Connections int       `json:"connections,omitempty"` // it was handed to
	User        UserID    `json:"userId,omitempty"`      // of the connection
	Conn        ConnID    `json:"connId,omitempty"`
}

// TraceKind says what happened.
type TraceKind string

// The kinds.
const (
	TraceTaken      TraceKind = "taken"      // a message came to the gateway that sends it
	TraceAnswered   TraceKind = "answered"   // and its sender was told this outcome: a status or the code of an error
	TraceArrived    TraceKind = "arrived"    // a message came to a gateway that holds its receiver; the outcome says why it went no further now
	TraceDelivered  TraceKind = "delivered"  // it was appended to so many connections
	TraceRegistered TraceKind = "registered" // a connection
	TraceClosed     TraceKind = "closed"     // the outcome is the cause
	TraceJoined     TraceKind = "joined"     // a room
	TraceLeft       TraceKind = "left"
)

// MessageNames are the id and the sender of a message, from the beginning of its
// frame, as JSON has them: with quotes and escapes, so that nothing is allocated.
// Empty for a frame that AppendMessageHead did not make.
func MessageNames(frame string) (id, from string) {
	rest, ok := strings.CutPrefix(frame, `{"type":"message","id":`)
	if !ok {
		return "", ""
	}
	id, rest = cutQuoted(rest)
	if rest, ok = strings.CutPrefix(rest, `,"from":`); ok {
		from, _ = cutQuoted(rest)
	}
	return id, from
}

// cutQuoted cuts a JSON string off the front of s.
func cutQuoted(s string) (quoted, rest string) {
	if s == "" || s[0] != '"' {
		return "", s
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return s[:i+1], s[i+1:]
		}
	}
	return "", s
}

// Quoted is a name as MessageNames returns it.
func Quoted(name string) string { return string(appendString(nil, name)) }

// Unquoted is the name that Quoted was made of, or of what MessageNames returns.
func Unquoted(quoted string) (name string) {
	_ = json.Unmarshal([]byte(quoted), &name)
	return name
}
