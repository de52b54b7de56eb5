package protocol

import (
	"strconv"
	"strings"
)

// A question asks one gateway something about what only it knows or can do: what
// it holds in memory, its sockets. It travels, like everything between gateways,
// as an envelope on the channel of whoever is asked; the answer on the asker's.
// Both are published at most once and never numbered: an asker waits for a while
// and then names who is missing.

// Verb says what is asked for. One that a gateway doesn't know is answered
// AnswerNotUnderstood, so that versions can run together.
type Verb string

// The verbs. Their bodies are JSON, in the types named.
const (
	VerbConnection Verb = "connection" // ConnectionQuestion -> ConnectionDetails
	VerbJoin       Verb = "join"       // RoomsQuestion -> RoomsOutcome
	VerbLeave      Verb = "leave"      // RoomsQuestion -> RoomsOutcome
	VerbMeta       Verb = "meta"       // MetaQuestion -> MetaOutcome
	VerbDrain      Verb = "drain"      // LoadQuestion -> Load
	VerbResume     Verb = "resume"     // LoadQuestion -> Load
	VerbLoad       Verb = "load"       // LoadQuestion -> Load
	VerbShed       Verb = "shed"       // LoadQuestion -> Load
	VerbTrace      Verb = "trace"      // TraceQuestion -> parts of Trace
	VerbCallOff    Verb = "call-off"   // no body, and no answer: who asked the question of this id waits no more
)

// AnswerStatus says what a gateway made of a question.
type AnswerStatus string

// The statuses of an answer.
const (
	AnswerDone          AnswerStatus = "done"
	AnswerNotUnderstood AnswerStatus = "not-understood" // another version: nothing was done
	AnswerRefused       AnswerStatus = "refused"        // nothing was done; the body says why
)

// Question is the body of a question envelope:
//
//	id SP asker SP ms LF verb LF body
type Question struct {
	ID     uint64 // of the asker, who finds the answer by it
	Asker  GatewayID
	Within int64 // for how long the asker waits from when he asked, ms
	Verb   Verb
	Body   string
}

// AppendQuestion makes the envelope of a question.
func AppendQuestion(dst []byte, q *Question) []byte {
	dst = append(dst, EnvelopeVersion, byte(EnvelopeQuestion))
	dst = append(strconv.AppendUint(dst, q.ID, 10), ' ')
	dst = append(append(dst, q.Asker...), ' ')
	dst = append(strconv.AppendInt(dst, q.Within, 10), '\n')
	dst = append(append(dst, q.Verb...), '\n')
	return append(dst, q.Body...)
}

// OpenQuestion reads a question envelope's body.
func OpenQuestion(body string) (q Question, err error) {
	head, rest, ok1 := strings.Cut(body, "\n")
	verb, rest, ok2 := strings.Cut(rest, "\n")
	f := strings.Split(head, " ")
	if !ok1 || !ok2 || len(f) != 3 || f[1] == "" || verb == "" {
		return q, ErrEnvelope
	}
	id, err1 := strconv.ParseUint(f[0], 10, 64)
	within, err2 := strconv.ParseInt(f[2], 10, 32)
	if err1 != nil || err2 != nil || within < 0 {
		return q, ErrEnvelope
	}
	return Question{ID: id, Asker: GatewayID(f[1]), Within: within, Verb: Verb(verb), Body: rest}, nil
}

// Answer is the body of an answer envelope, which is a whole answer or a part of
// one:
//
//	id SP gateway SP number SP more LF status LF body
type Answer struct {
	ID      uint64 // of the question
	Gateway GatewayID
	Number  uint64 // of the part: 1, 2, 3, …; what is missing was lost
	More    bool   // other parts follow
	Status  AnswerStatus
	Body    string
}

// AppendAnswer makes the envelope of an answer.
func AppendAnswer(dst []byte, a *Answer) []byte {
	dst = append(dst, EnvelopeVersion, byte(EnvelopeAnswer))
	dst = append(strconv.AppendUint(dst, a.ID, 10), ' ')
	dst = append(append(dst, a.Gateway...), ' ')
	dst = append(strconv.AppendUint(dst, a.Number, 10), ' ')
	if a.More {
		dst = append(dst, "1\n"...)
	} else {
		dst = append(dst, "0\n"...)
	}
	dst = append(append(dst, a.Status...), '\n')
	return append(dst, a.Body...)
}

// OpenAnswer reads an answer envelope's body.
func OpenAnswer(body string) (a Answer, err error) {
	head, rest, ok1 := strings.Cut(body, "\n")
	status, rest, ok2 := strings.Cut(rest, "\n")
	f := strings.Split(head, " ")
	if !ok1 || !ok2 || len(f) != 4 || f[1] == "" || status == "" || f[3] != "0" && f[3] != "1" {
		return a, ErrEnvelope
	}
	id, err1 := strconv.ParseUint(f[0], 10, 64)
	number, err2 := strconv.ParseUint(f[2], 10, 64)
	if err1 != nil || err2 != nil || number == 0 {
		return a, ErrEnvelope
	}
	return Answer{ID: id, Gateway: GatewayID(f[1]), Number: number, More: f[3] == "1", Status: AnswerStatus(status), Body: rest}, nil
}

// ConnectionQuestion asks for one connection.
type ConnectionQuestion struct {
	Conn ConnID `json:"connId"`
}

// ConnectionDetails is what the gateway of a connection knows of it. Held is false
// when it has none of that name, and then nothing else is set.
type ConnectionDetails struct {
	Held      bool     `json:"held"`
	Busy      bool     `json:"busy,omitempty"` // all the time with its client: Rooms and Watches are not known
	Remote    string   `json:"remoteAddr,omitempty"`
	Rooms     []RoomID `json:"rooms,omitempty"` // sorted
	Watches   int      `json:"watches"`
	Waiting   int      `json:"waitingBytes"`        // what the client has not taken yet
	InFlight  int      `json:"inFlight"`            // messages from it that are not answered yet
	SilentMs  int64    `json:"silentMs"`            // since the last byte came from it
	IdleMs    int64    `json:"idleMs"`              // since its last frame
	ExpiresAt int64    `json:"expiresAt,omitempty"` // of its token, ms since 1970
	TokenID   string   `json:"tokenId,omitempty"`
}

// RoomsQuestion asks for a user's connections, or one of them, to be put into
// rooms, or out.
type RoomsQuestion struct {
	User  UserID   `json:"userId"`
	Conn  ConnID   `json:"connId,omitempty"` // empty: all of them
	Rooms []RoomID `json:"rooms"`
}

// RoomsOutcome says what became of it.
type RoomsOutcome struct {
	Connections []RoomsOfConnection `json:"connections"`
}

// RoomsOfConnection says what became of the rooms of one connection, in the order
// of the question.
type RoomsOfConnection struct {
	Conn     ConnID        `json:"connId"`
	Outcomes []RoomOutcome `json:"outcomes"`
}

// RoomOutcome is what became of one room.
type RoomOutcome string

// The outcomes.
const (
	RoomJoined      RoomOutcome = "joined"
	RoomAlready     RoomOutcome = "already" // was in it, or out of it, before
	RoomLeft        RoomOutcome = "left"
	RoomLimited     RoomOutcome = "limited"     // the connection is in as many as it may be
	RoomUnavailable RoomOutcome = "unavailable" // Redis did not answer: nothing changed
	RoomGone        RoomOutcome = "gone"        // the connection ended
	RoomBusy        RoomOutcome = "busy"        // it was not the connection's turn in time: nothing changed
)

// MetaQuestion asks for something to be merged into the meta of a connection.
type MetaQuestion struct {
	Conn  ConnID `json:"connId"`
	Patch string `json:"patch"` // RFC 7396; a text, so that its bytes stay as they are
}

// MetaOutcome says what became of it.
type MetaOutcome struct {
	Result  MetaResult `json:"result"`
	Meta    string     `json:"meta,omitempty"`    // MetaSet and MetaUnsure: what it is now
	Code    ErrorCode  `json:"code,omitempty"`    // MetaRefused
	Message string     `json:"message,omitempty"` // MetaRefused
}

// MetaResult is what became of a meta.
type MetaResult string

// The results.
const (
	MetaSet     MetaResult = "set"     // and the registry has it
	MetaUnsure  MetaResult = "unsure"  // it counts, and the registry will have it when Redis answers
	MetaRefused MetaResult = "refused" // it can't be merged, or would be too large
	MetaGone    MetaResult = "gone"    // the connection ended, or was told to go
	MetaBusy    MetaResult = "busy"    // it was not the connection's turn in time: nothing changed
)

// LoadQuestion is about how many connections a gateway has. Its fields are for
// VerbShed.
type LoadQuestion struct {
	Keep int `json:"keep,omitempty"` // shed what is above
	Rate int `json:"rate,omitempty"` // connections a second
}

// Load is how many connections a gateway has, and what it does about it.
type Load struct {
	Connections int       `json:"connections"`
	State       LoadState `json:"state"`
	Shedding    int       `json:"shedding,omitempty"` // how many it is closing
}

// LoadState says whether a gateway takes clients.
type LoadState string

// The states.
const (
	LoadServing  LoadState = "serving"
	LoadShedding LoadState = "shedding" // serving, and closing what is above the others
	LoadDraining LoadState = "draining" // told to, by an operator: it closes what it has
	LoadDrained  LoadState = "drained"  // has nobody left, and takes nobody
	LoadStopping LoadState = "stopping" // the process is about to end
)
