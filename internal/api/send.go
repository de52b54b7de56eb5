package api

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

const (
	// window is how many messages of one call are with the router at a time: a call for a thousand receivers takes its turn with what
	// clients send.
	window = 128
	// windowBytes is how much of it, beside the last.
	windowBytes = 1 << 20
)

// SendRequest is a message and whom it is for.
type SendRequest struct {
	IdempotencyKey protocol.MessageID `header:"Idempotency-Key" doc:"The message's id, in a header; the same as the field id."`
	To             []protocol.UserID  `json:"to,omitempty" max:"1000" doc:"Users. One named twice gets it once." example:"[\"bob\"]"`
	Rooms          []protocol.RoomID  `json:"rooms,omitempty" max:"1000" doc:"Rooms. With to, 1,000 receivers at most." example:"[\"lobby\"]"`
	Everyone       bool               `json:"everyone,omitempty" doc:"Whoever is connected now, at most once; not together with to and rooms. Nothing remembers it: the same call again is the same message again, under its id."`
	Content        json.RawMessage    `json:"content" required:"" doc:"Any JSON value, null too; receivers get it as the bytes that came."`
	From           protocol.UserID    `json:"from,omitempty" doc:"Who it is from, any name. Absent: the setting api.from."`
	ID             protocol.MessageID `json:"id,omitempty" doc:"The idempotency key, unique for from: the same again stores nothing and gets the first answer again, for ten minutes at least. Absent: one is made."`
	By             string             `caller:""`
	Ephemeral      bool               `json:"ephemeral,omitempty" doc:"For those who are there now: stored nowhere, remembered nowhere, at most once."`
}

// SendAnswer says what became of a message.
type SendAnswer struct {
	ID       protocol.MessageID `json:"id" doc:"The message's id, given or made." example:"order-17"`
	Results  []Result           `json:"results,omitempty" doc:"One for each receiver, users first, in the order named."`
	Everyone *Reach             `json:"everyone,omitempty" doc:"How far a message for everyone came."`

	failed int
}

// Result is what became of a message at one receiver: a status, or an error.
type Result struct {
	To      protocol.UserID `json:"to,omitempty" doc:"The user; or room."`
	Room    protocol.RoomID `json:"room,omitempty" doc:"The room; or to."`
	Status  protocol.Status `json:"status,omitempty" doc:"routed: handed to live gateways that hold connections of the receiver. stored: kept, nobody is there now. dropped: ephemeral, and nobody is there."`
	Epoch   string          `json:"epoch,omitempty" doc:"With offset, where it stands in the receiver's log. Absent for ephemeral messages."`
	Offset  uint64          `json:"offset,omitempty" doc:"Counts from 1 inside the epoch."`
	Devices int             `json:"devices,omitempty" doc:"Connections of the user on the gateways it was handed to; not said of rooms."`
	Ts      int64           `json:"ts,omitempty" doc:"When it was taken, ms since 1970."`
	Error   *TargetError    `json:"error,omitempty" doc:"Instead of a status."`
}

// TargetError is why one receiver has not got a message.
type TargetError struct {
	Code         Code   `json:"code" doc:"conflict, overloaded and unavailable: certainly not stored by this call. unknown: repeat with the same key." example:"unknown"`
	Detail       string `json:"detail" doc:"The same for people."`
	RetryAfterMs int64  `json:"retryAfterMs,omitempty" doc:"When to try again."`
}

// Reach is how far a message for everyone came.
type Reach struct {
	Gateways int                  `json:"gateways" doc:"Living gateways that received it, each for all its connections."`
	Missing  []protocol.GatewayID `json:"missing" doc:"Gateways that didn't: dead and not cleaned up after yet, or killed just now."`
}

// httpStatus is 207 when some have it and others not.
func (a *SendAnswer) httpStatus() int {
	if a.failed > 0 || a.Everyone != nil && len(a.Everyone.Missing) > 0 {
		return 207
	}
	return 200
}

var sendMessage = on(operation{
	Name: "sendMessage", Method: "POST", Path: "/messages", Scope: ScopeSend,
	Summary: "Send a message",
	Description: "To users, to rooms, or to everyone. Each receiver has a result of its own, as true as an ack. " +
		"200: all have it. 207: some have it, and the others' results have an error. Where all failed in one way, the answer is that problem, with the results in it. " +
		"Messages of one call to one receiver are stored in the order of the calls, if each waits for the answer of the one before.",
	Codes: []Code{CodeConflict, CodeTooLarge, CodeOverloaded, CodeUnavailable, CodeUnknown},
}, (*API).sendMessage)

func (a *API) sendMessage(ctx context.Context, q *SendRequest) (*SendAnswer, error) {
	if p := q.check(); p != nil {
		return nil, p
	}
	if q.From == "" {
		q.From = a.cfg.From
	}
	if q.ID == "" {
		q.ID = a.makeID()
	}
	if q.Everyone {
		return a.sendEveryone(ctx, q)
	}
	s := sending{request: q, targets: targetsOf(q), at: time.Now().UnixMilli(), gateway: a.cfg.Gateway, events: a.cfg.MessageEvents && !q.Ephemeral}
	for _, to := range s.targets {
		if s.bytes(to)+positionBytes > a.cfg.MaxFrameBytes && len(s.frame(to))+positionBytes > a.cfg.MaxFrameBytes {
			return nil, a.tooLarge()
		}
	}
	return q.answer(s.targets, a.carry(ctx, &s))
}

const (
	// frameOverhead is at least what a frame has beside content and names.
	frameOverhead = 128
	// positionBytes is what a frame gets behind its head: `,"epoch":"…","offset":…}`, both as long as they may be.
	positionBytes = 64
)

// sending is one message on its way to many. A frame is made when it is its turn: a thousand of the largest at once are 64 MB, and a
// caller may make many calls.
type sending struct {
	request *SendRequest
	targets []protocol.Address
	at      int64
	gateway protocol.GatewayID
	events  bool // of messages are written
}

// bytes is how large the frame for a target is at most.
func (s *sending) bytes(to protocol.Address) int {
	// A character may be written as six.
	return len(s.request.Content) + 6*(len(to)+len(s.request.From)+len(s.request.ID)) + frameOverhead
}

// frame is what the receivers get, without its position.
func (s *sending) frame(to protocol.Address) []byte {
	q := s.request
	user, room := named(to)
	head := protocol.MessageHead{ID: []byte(q.ID), From: q.From, To: user, Room: room, Content: q.Content, Ts: s.at, Ephemeral: q.Ephemeral}
	return protocol.AppendMessageHead(make([]byte, 0, len(q.Content)+frameOverhead), &head)
}

// message is what the router gets.
func (s *sending) message(to protocol.Address) *router.Message {
	q := s.request
	m := &router.Message{To: to, From: q.From, ID: []byte(q.ID), Content: q.Content, Ts: s.at, Ephemeral: q.Ephemeral, Frame: s.frame(to)}
	if s.events {
		user, room := named(to)
		m.Origin = protocol.AppendMessageOrigin(nil, &protocol.MessageOrigin{ID: m.ID, From: m.From, To: user, Room: room, Gateway: s.gateway, By: q.By})
	}
	return m
}

// named is the user of an address, or the room.
func named(a protocol.Address) (user, room []byte) {
	if a.Kind() == 'u' {
		return []byte(a.Name()), nil
	}
	return nil, []byte(a.Name())
}

func (a *API) tooLarge() *Problem {
	return refuse(CodeTooLarge, "content: the message would be over the "+strconv.Itoa(a.cfg.MaxFrameBytes)+" bytes that clients expect of a frame")
}

func (q *SendRequest) check() *Problem {
	if q.IdempotencyKey != "" {
		if q.ID != "" && q.ID != q.IdempotencyKey {
			return bad("id", "is not the Idempotency-Key of the header")
		}
		q.ID = q.IdempotencyKey
	}
	switch n := len(q.To) + len(q.Rooms); {
	case q.Everyone && n > 0:
		return bad("everyone", "not together with to and rooms")
	case !q.Everyone && n == 0:
		return bad("to", "one of to, rooms and everyone must name somebody")
	case n > 1000:
		return refuse(CodeTooLarge, "to: with rooms, more than 1000")
	}
	return nil
}

// makeID names a message that came without an id: unique, since the gateway's id is.
func (a *API) makeID() protocol.MessageID {
	n := strconv.FormatUint(a.made.Add(1), 36)
	gateway := string(a.cfg.Gateway)
	if most := protocol.MaxMessageIDBytes - len(n) - 1; len(gateway) > most {
		gateway = gateway[len(gateway)-most:] // its random end
	}
	return protocol.MessageID(gateway + "-" + n)
}

// targetsOf are the addresses, each once.
func targetsOf(q *SendRequest) []protocol.Address {
	targets := make([]protocol.Address, 0, len(q.To)+len(q.Rooms))
	seen := make(map[protocol.Address]struct{}, cap(targets))
	add := func(to protocol.Address) {
		if _, twice := seen[to]; !twice {
			seen[to] = struct{}{}
			targets = append(targets, to)
		}
	}
	for _, u := range q.To {
		add(protocol.UserAddress(u))
	}
	for _, r := range q.Rooms {
		add(protocol.RoomAddress(r))
	}
	return targets
}

// carry sends messages through the lanes, a window at a time, and returns what became of each. A message that the router still has at
// the end of the deadline may be stored or not; one that it never got is certainly not.
func (a *API) carry(ctx context.Context, s *sending) []router.Result {
	ctx, cancel := context.WithTimeout(ctx, remaining(ctx))
	defer cancel()
	type answer struct {
		at int
		m  *router.Message
	}
	results := make([]router.Result, len(s.targets))
	answered := make(chan answer, len(s.targets)) // so that nobody in the router ever waits for us
	var out connection.Batch
	sent, open, bytes := 0, 0, 0
	for sent < len(s.targets) || open > 0 {
		for sent < len(s.targets) && open < window && (open == 0 || bytes < windowBytes) && ctx.Err() == nil {
			i := sent
			m := s.message(s.targets[i])
			results[i].Err = &protocol.ReplyError{Code: protocol.CodeUnknown, Message: "not answered in time, repeat with the same key"}
			m.Done = func(_ *connection.Batch, m *router.Message) { answered <- answer{i, m} }
			if !m.Ephemeral {
				a.cfg.Router.Hold(m.To)
			}
			sent, open, bytes = sent+1, open+1, bytes+len(m.Frame)
			a.cfg.Router.Send(&out, m)
		}
		select {
		case x := <-answered:
			results[x.at] = x.m.Result
			open, bytes = open-1, bytes-len(x.m.Frame)
		case <-ctx.Done():
			for i := sent; i < len(s.targets); i++ {
				results[i].Err = &protocol.ReplyError{Code: protocol.CodeUnavailable, Message: notInTime, RetryAfterMs: awhile.Milliseconds()}
			}
			return results
		}
	}
	return results
}

// answer says what became of a message at each receiver.
func (q *SendRequest) answer(targets []protocol.Address, results []router.Result) (*SendAnswer, error) {
	answer := &SendAnswer{ID: q.ID, Results: make([]Result, len(targets))}
	var first *protocol.ReplyError
	same := true // all failed, in one way
	for i, to := range targets {
		r, result := &results[i], &answer.Results[i]
		user, room := named(to)
		result.To, result.Room = protocol.UserID(user), protocol.RoomID(room)
		if r.Err == nil {
			same = false
			result.Status, result.Epoch, result.Offset, result.Ts = r.Status, r.Epoch, r.Offset, r.Ts
			if user != nil {
				result.Devices = r.Devices
			}
			continue
		}
		answer.failed++
		if first == nil {
			first = r.Err
		}
		same = same && r.Err.Code == first.Code
		result.Error = &TargetError{Code: codeOf(r.Err), Detail: r.Err.Message, RetryAfterMs: r.Err.RetryAfterMs}
	}
	if !same {
		return answer, nil
	}
	p := refuse(codeOf(first), first.Message).after(time.Duration(first.RetryAfterMs) * time.Millisecond)
	p.ID, p.Results = answer.ID, answer.Results
	return nil, p
}

func (a *API) sendEveryone(ctx context.Context, q *SendRequest) (*SendAnswer, error) {
	if !a.cfg.Registry.AnswersOfGateways() {
		return nil, unavailable()
	}
	m := protocol.MessageHead{ID: []byte(q.ID), From: q.From, Content: q.Content, Ts: time.Now().UnixMilli(), Ephemeral: true}
	if len(protocol.AppendMessageHead(nil, &m)) > a.cfg.MaxFrameBytes-positionBytes {
		return nil, a.tooLarge()
	}
	reach, err := a.cfg.Router.Broadcast(ctx, &m)
	switch {
	case err != nil:
		return nil, err
	case len(reach.Unknown) > 0:
		return nil, refuse(CodeUnknown, "of some gateways it is not known whether they received it").after(awhile)
	}
	// Beside those that were just now supposed to live there may be some that are known to be dead, whose clients have not got it either.
	missing := a.missing().Missing
	for _, id := range reach.Missing {
		if !slices.Contains(missing, id) {
			missing = append(missing, id)
		}
	}
	slices.Sort(missing)
	return &SendAnswer{ID: q.ID, Everyone: &Reach{Gateways: reach.Gateways, Missing: missing}}, nil
}

// listed is a list that is written as [] when it is empty.
func listed[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
