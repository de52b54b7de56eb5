package protocol

import (
	"bytes"
	"math/bits"
	"unicode/utf8"
)

// Decode reads one client frame and checks it fully: afterwards f holds every field of its type, valid, or the error says which
// field is wrong, and of f only Type means anything. The error carries the frame's id when one could be read, also when the id comes
// after the mistake; broken JSON ends the search for it.
//
// Codes: unknown_type for a type that has no FrameType, too_large for meta and users, bad_request for all the rest. The size of the
// frame itself is the connection's affair.
func (f *Frame) Decode(data []byte) *ReplyError {
	f.reset()
	d := decoder{f: f}
	d.envelope(data)
	if d.err == nil {
		d.frame()
		f.HasID = f.ID != nil
	}
	if d.err != nil {
		d.err.ID = string(d.echo())
	}
	return d.err
}

// decoder is one Decode. It lives on the stack.
type decoder struct {
	f      *Frame
	fields [fieldCount]value // kindAbsent where the frame has none
	twice  uint32            // a bit for each field given more than once
	err    *ReplyError       // the first
}

// refuse notes the first mistake; path is the name of a field.
func (d *decoder) refuse(path, why string) {
	if d.err == nil {
		d.err = &ReplyError{Code: CodeBadRequest, Message: path + ": " + why}
	}
}

func (d *decoder) tooLarge(name, why string) {
	if d.err == nil {
		d.err = &ReplyError{Code: CodeTooLarge, Message: name + ": " + why, Limit: name}
	}
}

// envelope walks the whole frame and notes its known fields.
func (d *decoder) envelope(data []byte) {
	if !utf8.Valid(data) {
		d.refuse("frame", faultNotUTF8)
		return
	}
	if bytes.HasPrefix(data, []byte("\ufeff")) {
		d.refuse("frame", faultBOM)
		return
	}
	s := scanner{data: data}
	if s.peek() != '{' {
		if s.fault == "" {
			s.fault = faultNotObject
		}
		d.refuse("frame", s.fault)
		return
	}
	s.pos++
	at := fieldNone
	for first := true; s.more('}', first); first = false {
		at = fieldNone
		key := s.key()
		if s.fault != "" {
			break
		}
		at = fieldOf(d.text(key))
		v := s.value(MaxDepth)
		if at == fieldNone || s.fault != "" {
			continue
		}
		if d.fields[at].kind != kindAbsent {
			d.twice |= 1 << at
		} else {
			d.fields[at] = v
		}
		at = fieldNone
	}
	switch {
	case s.fault != "":
		d.refuse(fieldNames[at], s.fault)
	case !s.atEnd():
		d.refuse("frame", faultTrailing)
	case d.twice != 0:
		d.refuse(fieldNames[bits.TrailingZeros32(d.twice)], faultTwice)
	}
}

// echo is the id an error carries back: empty when there is none, or no one can say which.
func (d *decoder) echo() []byte {
	v := d.fields[fieldID]
	if v.kind != kindString || d.twice&(1<<fieldID) != 0 {
		return nil
	}
	id := d.text(v)
	if !ValidID(id, MaxMessageIDBytes) {
		return nil
	}
	return id
}

// frame reads the fields of the frame's type.
func (d *decoder) frame() {
	f := d.f
	name := d.string(fieldType, true)
	if d.err != nil {
		return
	}
	f.Type = typeOf(name)
	switch f.Type {
	case TypeRegister:
		f.ID = d.echo()
		f.Token = d.string(fieldToken, false)
		f.UserID = d.ident(fieldUserID, MaxIDBytes, false) // who has neither may be known by a cookie
		f.DeviceID = d.ident(fieldDeviceID, MaxIDBytes, false)
		f.Class = d.ident(fieldDeviceClass, MaxIDBytes, false)
		f.Meta = d.meta()
		f.Resume = d.resume("resume", d.fields[fieldResume])
		d.rooms()
	case TypeHeartbeat:
		f.ID = d.echo()
	case TypeMessage:
		f.ID = d.ident(fieldID, MaxMessageIDBytes, false)
		f.To = d.ident(fieldTo, MaxIDBytes, false)
		f.Room = d.ident(fieldRoom, MaxIDBytes, false)
		if (f.To == nil) == (f.Room == nil) {
			d.refuse("to", faultToOrRoom)
		}
		f.Content = d.content()
		f.Ephemeral = d.bool(fieldEphemeral)
		f.Copy = d.bool(fieldCopy)
		if f.Copy && f.Ephemeral {
			d.refuse("copy", faultNoCopy)
		}
	case TypeReceived:
		f.ID = d.echo()
		f.Room = d.ident(fieldRoom, MaxIDBytes, false)
		f.Epoch = d.ident(fieldEpoch, MaxIDBytes, true)
		f.Offset = d.offset("offset", d.fields[fieldOffset])
	case TypeJoin:
		f.ID = d.ident(fieldID, MaxMessageIDBytes, false)
		f.Room = d.ident(fieldRoom, MaxIDBytes, true)
		f.Resume = d.resume("resume", d.fields[fieldResume])
	case TypeLeave:
		f.ID = d.ident(fieldID, MaxMessageIDBytes, false)
		f.Room = d.ident(fieldRoom, MaxIDBytes, true)
	case TypeHistory:
		f.ID = d.ident(fieldID, MaxMessageIDBytes, false)
		f.Room = d.ident(fieldRoom, MaxIDBytes, false)
		f.Epoch = d.ident(fieldEpoch, MaxIDBytes, false)
		d.page()
		f.Limit = d.limit()
	case TypePresence, TypeWatch, TypeUnwatch:
		f.ID = d.ident(fieldID, MaxMessageIDBytes, false)
		d.users()
	case TypeMembers:
		f.ID = d.ident(fieldID, MaxMessageIDBytes, false)
		f.Room = d.ident(fieldRoom, MaxIDBytes, true)
		f.Cursor = d.string(fieldAfter, false)
		f.Limit = d.limit()
	case TypeRefresh:
		f.ID = d.ident(fieldID, MaxMessageIDBytes, false)
		f.Token = d.string(fieldToken, true)
	default:
		d.err = &ReplyError{Code: CodeUnknownType, Message: "type: " + faultUnknown}
	}
}
