package protocol

// MessageOrigin is what the event of a message says of whom it is from, for whom, and where it came in. Absent are empty.
type MessageOrigin struct {
	ID       []byte // the sender's, or made
	From     UserID
	To, Room []byte // one of them

	Gateway GatewayID
	Conn    ConnID
	Device  DeviceID
	Meta    string // a JSON object
	By      string // the API key that sent it
}

// AppendMessageOrigin encodes an origin as the beginning of the event's JSON: an object whose fields are those of docs/events.md.
func AppendMessageOrigin(dst []byte, o *MessageOrigin) []byte {
	dst = append(dst, `{"message":`...)
	dst = appendString(dst, o.ID)
	dst = append(dst, `,"user":`...)
	dst = appendString(dst, o.From)
	if o.To != nil {
		dst = append(dst, `,"to":`...)
		dst = appendString(dst, o.To)
	} else {
		dst = append(dst, `,"room":`...)
		dst = appendString(dst, o.Room)
	}
	dst = append(dst, `,"gateway":`...)
	dst = appendString(dst, o.Gateway)
	if o.Conn != "" {
		dst = append(dst, `,"conn":`...)
		dst = appendString(dst, o.Conn)
	}
	if o.Device != "" {
		dst = append(dst, `,"device":`...)
		dst = appendString(dst, o.Device)
	}
	if o.Meta != "" {
		dst = append(dst, `,"meta":`...)
		dst = append(dst, o.Meta...)
	}
	if o.By != "" {
		dst = append(dst, `,"by":`...)
		dst = appendString(dst, o.By)
	}
	return append(dst, '}')
}
