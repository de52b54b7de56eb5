package gatewaytest

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// Frame is any frame of a gateway, as a stranger reads it who has only the table of the wire protocol.
type Frame struct {
	Type      string          `json:"type"`
	ID        string          `json:"id"`
	UserID    string          `json:"userId"`
	ConnID    string          `json:"connId"`
	GatewayID string          `json:"gatewayId"`
	Epoch     string          `json:"epoch"`
	Offset    uint64          `json:"offset"`
	First     uint64          `json:"first"`
	Top       uint64          `json:"top"`
	Recovered bool            `json:"recovered"`
	Status    string          `json:"status"`
	Devices   *int            `json:"devices"` // nil: absent
	Ts        int64           `json:"ts"`
	From      json.RawMessage `json:"from"` // a user in a message, an offset in a gap
	To        json.RawMessage `json:"to"`
	Room      string          `json:"room"`
	Content   json.RawMessage `json:"content"`
	Ephemeral bool            `json:"ephemeral"`
	Own       bool            `json:"own"`
	Degraded  bool            `json:"degraded"`
	Users     json.RawMessage `json:"users"` // a map in presence, a list in members
	Code      json.RawMessage `json:"code"`  // a word in error, a number in closing
	Message   string          `json:"message"`
	Limit     string          `json:"limit"`
	Rooms     json.RawMessage `json:"rooms"` // of an error: which it is about
	Retry     int64           `json:"retryAfterMs"`
	Reason    string          `json:"reason"`
	Reconnect bool            `json:"reconnect"`
	AfterMs   int64           `json:"afterMs"`
	WindowMs  int64           `json:"windowMs"`
	By        string          `json:"by"`
	Since     int64           `json:"at"` // of a closing

	Next   json.RawMessage `json:"next"` // a position in a gap, a word in members
	Count  int             `json:"count"`
	Joined []string        `json:"joined"` // nil: not said
	Left   []string        `json:"left"`

	HeartbeatIntervalMs int64 `json:"heartbeatIntervalMs"`
	PresenceTTLMs       int64 `json:"presenceTtlMs"`
	MaxFrameBytes       int64 `json:"maxFrameBytes"`
	ServerTime          int64 `json:"serverTime"`

	Raw []byte    `json:"-"` // the bytes that came
	At  time.Time `json:"-"` // when they came
}

// UserState is what a presence frame says of one user.
type UserState struct {
	State    string `json:"state"`
	Version  string `json:"version"`
	Devices  int    `json:"devices"`
	LastSeen int64  `json:"lastSeen"`
}

func parseFrame(raw []byte) (Frame, error) {
	f := Frame{At: time.Now()}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, err
	}
	f.Raw = raw
	return f, nil
}

// text returns a JSON string without its quotes, and anything else as it stands.
func text(raw json.RawMessage) string {
	if s, err := strconv.Unquote(string(raw)); err == nil && strings.HasPrefix(string(raw), `"`) {
		return s
	}
	return string(raw)
}

// Sender is the user a message is from.
func (f Frame) Sender() string { return text(f.From) }

// CodeText is an error's word or a closing's number.
func (f Frame) CodeText() string { return text(f.Code) }

// RoomNames are the rooms an error is about.
func (f Frame) RoomNames() (names []string) {
	_ = json.Unmarshal(f.Rooms, &names) // a register has an object there
	return names
}

// DeviceCount is the number of devices an ack or a presence tells; absent counts as 0.
func (f Frame) DeviceCount() int {
	if f.Devices == nil {
		return 0
	}
	return *f.Devices
}

// States returns what a presence frame says of each user.
func (f Frame) States() map[string]UserState {
	states := make(map[string]UserState)
	_ = json.Unmarshal(f.Users, &states) // another frame's users are a list: then there are none
	return states
}

// Names returns the users of a members frame.
func (f Frame) Names() []string {
	var names []string
	_ = json.Unmarshal(f.Users, &names) // another frame's users are a map: then there are none
	return names
}

func (f Frame) String() string { return string(f.Raw) }
