package hook

import (
	"encoding/json"
	"strings"
	"unicode"

	"chatgate/internal/protocol"
)

// Decision is what a backend answers; names has the fields as they stand there.
type Decision struct {
	Allow  *bool
	Denial // when it is false

	// At register all of it, else what is merged into it.
	Meta json.RawMessage

	// At register. Numbers are as in a token, and so are the lists; docs/security.md.
	User      *string
	Join      []string
	Rooms     json.RawMessage
	Watch     json.RawMessage
	Limits    json.RawMessage
	ExpiresAt int64 // ms since 1970; 0: not said

	Deny map[string]Denial // at join: rooms that are denied, where others are allowed

	Content json.RawMessage // before a message: what is sent instead

	// Assumed: nobody answered, and what nobody decides is allowed.
	Assumed bool
}

// Changes reports whether something else is sent than what came. null says nothing: so do backends write what they don't set.
func (d *Decision) Changes() bool { return d.Content != nil && string(d.Content) != "null" }

// Denial is why something is not allowed.
type Denial struct {
	Code         protocol.ErrorCode `json:"code"`
	Reason       string             `json:"reason"`
	RetryAfterMs int64              `json:"retryAfterMs"`
}

// deniable are the codes a backend may deny with. Those that say a client is broken are not for it to give.
var deniable = map[protocol.ErrorCode]bool{
	protocol.CodeForbidden: true, protocol.CodeUnauthorized: true, protocol.CodeConflict: true, protocol.CodeLimited: true,
	protocol.CodeUnavailable: true,
}

// maxReason bounds what a client is told, bytes.
const maxReason = 256

// ReplyError is the denial as the client is told it.
func (d Denial) ReplyError(id []byte) *protocol.ReplyError {
	e := &protocol.ReplyError{ID: string(id), Code: d.Code, RetryAfterMs: max(0, d.RetryAfterMs)}
	if !deniable[e.Code] {
		e.Code = protocol.CodeForbidden
	}
	reason := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, d.Reason)
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	if e.Message = reason; reason == "" {
		e.Message = "the backend does not allow it"
	}
	return e
}

// read takes an answer as strictly as a client's frame: names in exact case and each once, so that no two parsers read two decisions in it,
// and no replacement for a broken character, which would make one user of two. It returns what is wrong, or "".
func (d *Decision) read(answer []byte) (fault string) {
	into := d.names()
	read := make(map[string]bool)
	// A content may be as deep as a client's and what a backend puts around it. It is the client's doing that it is too deep then, and for who asked to
	// refuse: as no answer it would be sent as it came, where nobody has to answer.
	return protocol.ScanObject(answer, 2*protocol.MaxDepth, func(name string, value []byte) string {
		to := into[name]
		switch {
		case name != "content" && protocol.Deep(value):
			return name + ": too deep"
		case to == nil:
			return ""
		case read[name]:
			return name + ": there twice"
		case json.Unmarshal(value, to) != nil:
			return name + ": of the wrong kind"
		}
		read[name] = true
		return ""
	})
}

// names are the fields as an answer has them.
func (d *Decision) names() map[string]any {
	return map[string]any{
		"allow": &d.Allow, "code": &d.Code, "reason": &d.Reason, "retryAfterMs": &d.RetryAfterMs, "userId": &d.User, "meta": &d.Meta, "join": &d.Join,
		"rooms": &d.Rooms, "watch": &d.Watch, "limits": &d.Limits, "expiresAt": &d.ExpiresAt, "deny": &d.Deny, "content": &d.Content,
	}
}
