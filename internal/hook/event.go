package hook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Event is one thing that happened, as docs/events.md has it. Its JSON is what
// every sink but MySQL gets.
type Event struct {
	ID      string          `json:"id"` // group and stream id; the same whenever it is delivered
	N       uint64          `json:"n"`  // counts the events of its stream
	Type    string          `json:"type"`
	User    string          `json:"user,omitempty"`
	Room    string          `json:"room,omitempty"`
	Conn    string          `json:"conn,omitempty"`
	Device  string          `json:"device,omitempty"`
	Gateway string          `json:"gateway,omitempty"`
	Meta    json.RawMessage `json:"meta,omitempty"`
	Since   int64           `json:"since,omitempty"` // ms since 1970
	Fence   uint64          `json:"fence,omitempty"`
	Cause   string          `json:"cause,omitempty"`
	Kind    string          `json:"kind,omitempty"`
	Code    int             `json:"code,omitempty"`
	Reason  string          `json:"reason,omitempty"`
	By      string          `json:"by,omitempty"`
	Dur     *int64          `json:"dur,omitempty"` // ms
	Version string          `json:"version,omitempty"`
	Members *int64          `json:"members,omitempty"`
	To      string          `json:"to,omitempty"`
	Message string          `json:"message,omitempty"` // its id
	Status  string          `json:"status,omitempty"`
	Epoch   string          `json:"epoch,omitempty"`
	Offset  uint64          `json:"offset,omitempty"`
	Devices *int64          `json:"devices,omitempty"`
	Ts      int64           `json:"ts,omitempty"` // ms since 1970, as in the message
	Content json.RawMessage `json:"content,omitempty"`
	Ms      int64           `json:"ms"` // Redis' clock, since 1970

	entry string // the stream id
}

// typeMessage is the type of events that the send script writes.
const typeMessage = "message"

// parseEvent reads an entry of one of a group's streams: its id, and field and value
// in turn. Fields it doesn't know are a newer gateway's, and left out.
func parseEvent(g keyspace.Group, from source, entry any) (*Event, error) {
	pair, ok := entry.([]any)
	if !ok || len(pair) != 2 {
		return nil, fmt.Errorf("hook: unexpected entry %T", entry)
	}
	id, ok1 := pair[0].(string)
	fields, ok2 := pair[1].([]any)
	if !ok1 || !ok2 {
		return nil, fmt.Errorf("hook: unexpected entry of %T and %T", pair[0], pair[1])
	}
	e := &Event{ID: string(g) + "-" + id, entry: id}
	if from == fromMessages { // the other stream may have the same id
		e.ID = string(g) + "-m" + id
	}
	for i := 0; i+1 < len(fields); i += 2 {
		name, _ := fields[i].(string)
		value, _ := fields[i+1].(string)
		e.set(name, value)
	}
	if e.Room != "" {
		e.Devices = nil // what holds a room are gateways
	}
	return e, nil
}

func (e *Event) set(name, value string) {
	whole := func() int64 { n, _ := strconv.ParseInt(value, 10, 64); return n }
	switch name {
	case "n":
		e.N = uint64(whole())
	case "type":
		e.Type = value
	case "user":
		e.User = value
	case "room":
		e.Room = value
	case "conn":
		e.Conn = value
	case "device":
		e.Device = value
	case "gateway":
		e.Gateway = value
	case "meta":
		// It was checked when it came from the client; what isn't JSON would spoil the batch.
		if value != "" && json.Valid([]byte(value)) {
			e.Meta = json.RawMessage(value)
		}
	case "since":
		e.Since = whole()
	case "fence":
		e.Fence = uint64(whole())
	case "cause":
		e.Cause = value
	case "kind":
		e.Kind = value
	case "code":
		e.Code = int(whole())
	case "mark":
		// "code reason by": the connection was told to go, whatever ended it then.
		if _, rest, ok := strings.Cut(value, " "); ok {
			reason, by, _ := strings.Cut(rest, " ")
			e.Reason, e.By = protocol.UnpackReason(reason), by
		}
	case "dur":
		n := whole()
		e.Dur = &n
	case "version":
		e.Version = value
	case "members":
		n := whole()
		e.Members = &n
	case "sent":
		e.setSent(value)
	case "origin":
		// A gateway wrote it, but one that writes something else some day must not
		// spoil the batch.
		var o Event
		if json.Unmarshal([]byte(value), &o) == nil {
			e.User, e.To, e.Room, e.Message = o.User, o.To, o.Room, o.Message
			e.Conn, e.Device, e.Gateway, e.Meta, e.By = o.Conn, o.Device, o.Gateway, o.Meta, o.By
		}
	case "frame":
		var frame struct {
			Content json.RawMessage `json:"content"`
		}
		var compact bytes.Buffer // SQL gets what the others get
		if json.Unmarshal(protocol.AppendMessageTail([]byte(value), "", 0), &frame) == nil && json.Compact(&compact, frame.Content) == nil {
			e.Content = compact.Bytes()
		}
	case "ms":
		e.Ms = whole()
	}
}

// setSent reads what the send script answered: "status epoch offset devices ms".
func (e *Event) setSent(value string) {
	var status, epoch string
	var offset uint64
	var devices, ts int64
	if n, _ := fmt.Sscan(value, &status, &epoch, &offset, &devices, &ts); n != 5 {
		return
	}
	e.Status = string(protocol.StatusStored)
	if status == "r" {
		e.Status = string(protocol.StatusRouted)
	}
	e.Epoch, e.Offset, e.Devices, e.Ts = epoch, offset, &devices, ts
}

// appendJSON appends the event as one line without its end. Ids come out as they
// went in: < > and & need no escape outside of HTML.
func (e *Event) appendJSON(b []byte) []byte {
	buf := bytes.NewBuffer(b)
	encoder := json.NewEncoder(buf)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil {
		panic("hook: an event that is no JSON: " + err.Error()) // meta was checked, the rest is text and numbers
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}
