package api

import (
	"strconv"
	"strings"
	"time"

	"chatgate/internal/protocol"
)

// The fields of a command, of an answer, and of one that was given up.
const (
	fieldOperation = "op"
	fieldBody      = "body"
	fieldKey       = "key"
	fieldReply     = "reply"

	fieldCommand = "command" // the entry's id in the stream of commands
	fieldStatus  = "status"
	fieldAnswer  = "answer"
	fieldTries   = "tries"
)

// command is one that this gateway has in hand.
type command struct {
	id     string // of its entry
	tries  int64  // how often it was handed out, this time included
	again  bool   // it may have been done before
	twice  bool   // a field was
	taken  time.Time
	fields map[string]string
}

// put is when the command came, ms since 1970 by the clock of Redis; 0: its id doesn't say, because a backend made it up.
func (x *command) put() int64 {
	ms, _, _ := strings.Cut(x.id, "-")
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil || n < leastTime {
		return 0
	}
	return min(n, time.Now().UnixMilli())
}

// leastTime is a moment before any command, ms since 1970.
const leastTime = 1_000_000_000_000

// once keeps a command that may have been done before from doing more than it did then: whoever came back since, or has another token
// since, is not who was meant. A message has its id for that.
func (x *command) once(request any) {
	put := x.put()
	if !x.again || put == 0 {
		return
	}
	before := func(to *int64) {
		if *to == 0 || *to > put {
			*to = put
		}
	}
	switch q := request.(type) {
	case *DisconnectUserRequest:
		before(&q.Before)
	case *RevokeRequest:
		before(&q.Before)
	}
}

// check returns the body, or what is wrong with the fields beside it.
func (x *command) check() ([]byte, *Problem) {
	for name := range x.fields {
		switch name {
		case fieldOperation, fieldBody, fieldKey, fieldReply:
		default:
			return nil, bad("command", "unknown field")
		}
	}
	switch {
	case x.twice:
		return nil, bad("command", "a field is given twice")
	case x.fields[fieldOperation] == "":
		return nil, bad(fieldOperation, "missing")
	}
	for name, most := range map[string]int{fieldKey: protocol.MaxMessageIDBytes, fieldReply: protocol.MaxIDBytes} {
		if text, ok := x.fields[name]; ok {
			if fault := protocol.IDFault(text, most); fault != "" {
				return nil, bad(name, fault)
			}
		}
	}
	body, ok := x.fields[fieldBody]
	switch {
	case !ok:
		return []byte("{}"), nil
	case len(body) > maxBody:
		return nil, tooLong()
	}
	return []byte(body), nil
}

// fate is what is to become of a command that was tried.
type fate uint8

const (
	fateDone    fate = iota // it is done
	fateRefused             // it is wrong, and will never be right
	fateLater               // the same again may succeed, and what it did already is done once all the same
	fateBroken              // it found a mistake of ours
)

// fateOf reads an answer. after is how long it asks to wait with another try.
func fateOf(answer any) (f fate, after time.Duration) {
	switch x := answer.(type) {
	case *Problem:
		switch {
		case x.Code == CodeInternal:
			f = fateBroken
		case infoOf(x.Code).Retry:
			f, after = fateLater, time.Duration(x.RetryAfterMs)*time.Millisecond
		default:
			f = fateRefused
		}
	case *SendAnswer:
		for i := range x.Results {
			if e := x.Results[i].Error; e != nil && infoOf(e.Code).Retry {
				f, after = fateLater, max(after, time.Duration(e.RetryAfterMs)*time.Millisecond)
			}
		}
	case *RoomsAnswer:
		for i := range x.Connections {
			for _, o := range x.Connections[i].Rooms {
				if o == protocol.RoomUnavailable || o == protocol.RoomBusy {
					f = fateLater
				}
			}
		}
	}
	return f, max(after, commandsPoll)
}
