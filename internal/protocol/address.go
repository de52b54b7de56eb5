package protocol

import "unicode/utf8"

// Sizes in bytes of what a client may name. MaxFrameBytes is the default of a setting; the others are part of the protocol.
const (
	// Subprotocol is offered and chosen in Sec-WebSocket-Protocol; a client that offers none speaks it too.
	Subprotocol = "chatgate.v1.json"

	MaxFrameBytes     = 64 << 10 // one text frame, in either direction
	MaxIDBytes        = 128      // users, rooms, devices, epochs
	MaxMessageIDBytes = 64       // the field id of any frame
	MaxMetaBytes      = 1 << 10  // meta of register, as written
	MaxDepth          = 64       // levels of arrays and objects inside one field
	MaxUsers          = 10_000   // names in one presence, watch or unwatch

	DefaultLimit = 50  // history and members without limit
	MaxLimit     = 200 // more is answered with this many
)

// Ids are types so that three strings can't be swapped. Those that come from a client have passed ValidID.
type (
	UserID    string // who a person is, chosen by the customer
	RoomID    string // a room, chosen by the customer
	DeviceID  string // one installation of a client, chosen by it
	ClassID   string // a class of devices: phone, desktop
	MessageID string // one message of one sender: its idempotency key
	ConnID    string // one connection, made by the gateway that holds it
	GatewayID string // one process: the configured name and a random boot id
)

// Address is where a message goes or what a gateway holds: "u:alice" is a user, "r:lobby" a room, and "w:alice" whoever watches
// the presence of alice.
type Address string

// UserAddress is the inbox of a user.
func UserAddress(u UserID) Address { return Address("u:" + string(u)) }

// RoomAddress is a room.
func RoomAddress(r RoomID) Address { return Address("r:" + string(r)) }

// WatchAddress is the audience of a user's presence.
func WatchAddress(u UserID) Address { return Address("w:" + string(u)) }

// Kind is 'u', 'r' or 'w', and 0 for what is no address.
func (a Address) Kind() byte {
	if len(a) < 3 || a[1] != ':' {
		return 0
	}
	switch a[0] {
	case 'u', 'r', 'w':
		return a[0]
	}
	return 0
}

// Name is the user or room of the address, without its kind.
func (a Address) Name() string {
	if a.Kind() == 0 {
		return ""
	}
	return string(a[2:])
}

// Position is a place in the log of an address: Offset counts from 1 inside Epoch, 0 is before the first. Epochs are compared
// before offsets: two positions of different epochs have no order.
type Position struct {
	Epoch  string
	Offset uint64
}

// ValidID reports whether b may be an id of at most max bytes: 1 to max bytes of UTF-8 without control characters (C0, DEL, C1).
// Everything else is allowed, spaces, braces, colons and our own prefixes included: what builds keys from ids must not care.
func ValidID(b []byte, max int) bool { return faultOfID(b, max) == "" }

// Why an id is refused. The texts stand behind the name of a field in an error frame.
const (
	faultEmpty   = "empty"
	faultTooLong = "too long"
	faultNotUTF8 = "invalid UTF-8"
	faultControl = "control character"
)

func faultOfID(b []byte, max int) string {
	if len(b) == 0 {
		return faultEmpty
	}
	if len(b) > max {
		return faultTooLong
	}
	for i := 0; i < len(b); {
		c := b[i]
		if c < utf8.RuneSelf {
			if c < ' ' || c == 0x7f {
				return faultControl
			}
			i++
			continue
		}
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return faultNotUTF8
		}
		if r <= 0x9f {
			return faultControl
		}
		i += size
	}
	return ""
}
