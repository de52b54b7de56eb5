package protocol

import (
	"bytes"
	"strconv"
)

// field is a field of the envelope of any client frame.
type field uint8

const (
	fieldType field = iota
	fieldID
	fieldUserID
	fieldToken
	fieldDeviceID
	fieldDeviceClass
	fieldMeta
	fieldResume
	fieldRooms
	fieldTo
	fieldRoom
	fieldContent
	fieldEphemeral
	fieldCopy
	fieldUsers
	fieldEpoch
	fieldOffset
	fieldAfter
	fieldBefore
	fieldLimit
	fieldCount
	fieldNone = fieldCount // an unknown field, or outside of any
)

var fieldNames = [fieldCount + 1]string{
	"type", "id", "userId", "token", "deviceId", "deviceClass", "meta", "resume", "rooms", "to", "room", "content", "ephemeral", "copy", "users",
	"epoch", "offset", "after", "before", "limit",
	"frame", // what a fault outside the known fields is about
}

func fieldOf(name []byte) field {
	switch string(name) {
	case "type":
		return fieldType
	case "id":
		return fieldID
	case "userId":
		return fieldUserID
	case "token":
		return fieldToken
	case "deviceId":
		return fieldDeviceID
	case "deviceClass":
		return fieldDeviceClass
	case "meta":
		return fieldMeta
	case "resume":
		return fieldResume
	case "rooms":
		return fieldRooms
	case "to":
		return fieldTo
	case "room":
		return fieldRoom
	case "content":
		return fieldContent
	case "ephemeral":
		return fieldEphemeral
	case "copy":
		return fieldCopy
	case "users":
		return fieldUsers
	case "epoch":
		return fieldEpoch
	case "offset":
		return fieldOffset
	case "after":
		return fieldAfter
	case "before":
		return fieldBefore
	case "limit":
		return fieldLimit
	}
	return fieldNone
}

// Why a field is refused. The texts stand behind its name in an error frame.
const (
	faultMissing   = "missing"
	faultTwice     = "given twice"
	faultUnknown   = "unknown"
	faultNotString = "must be a string"
	faultNotBool   = "must be true or false"
	faultNotObject = "must be an object"
	faultNotArray  = "must be an array"
	faultNotOffset = "must be an integer from 0 to 18446744073709551615"
	faultNotLimit  = "must be an integer from 1"
	faultToOrRoom  = "exactly one of to and room"
	faultOneSide   = "not together with after"
	faultNoCopy    = "not together with ephemeral"
	faultMetaSize  = "more than 1024 bytes"
	faultUsers     = "more than 10000"
	faultBOM       = "byte order mark"
	faultTrailing  = "data after the object"
)

// given returns the value of a field; null is absent.
func (d *decoder) given(n field, required bool) (value, bool) {
	v := d.fields[n]
	if v.kind == kindAbsent || v.kind == kindNull {
		if required {
			d.refuse(fieldNames[n], faultMissing)
		}
		return value{}, false
	}
	return v, true
}

// text returns what a JSON string means: part of the data, or of the scratch buffer when it has escapes.
func (d *decoder) text(v value) []byte {
	inner := v.raw[1 : len(v.raw)-1]
	if !v.escaped {
		return inner[:len(inner):len(inner)]
	}
	start := len(d.f.scratch)
	// Earlier strings keep the old buffer alive when this one grows it.
	d.f.scratch = unescape(d.f.scratch, inner)
	return d.f.scratch[start:len(d.f.scratch):len(d.f.scratch)]
}

// string reads a non-empty string of any length.
func (d *decoder) string(n field, required bool) []byte {
	v, ok := d.given(n, required)
	if !ok {
		return nil
	}
	if v.kind != kindString {
		d.refuse(fieldNames[n], faultNotString)
		return nil
	}
	b := d.text(v)
	if len(b) == 0 {
		d.refuse(fieldNames[n], faultEmpty)
		return nil
	}
	return b
}

// ident reads a string that is an id.
func (d *decoder) ident(n field, most int, required bool) []byte {
	v, ok := d.given(n, required)
	if !ok {
		return nil
	}
	return d.identOf(fieldNames[n], v, most)
}

func (d *decoder) identOf(path string, v value, most int) []byte {
	if v.kind != kindString {
		d.refuse(path, faultNotString)
		return nil
	}
	b := d.text(v)
	if why := faultOfID(b, most); why != "" {
		d.refuse(path, why)
		return nil
	}
	return b
}

// content is the one field whose null is a value.
func (d *decoder) content() []byte {
	v := d.fields[fieldContent]
	if v.kind == kindAbsent {
		d.refuse("content", faultMissing)
	}
	return v.raw
}

func (d *decoder) bool(n field) bool {
	v, ok := d.given(n, false)
	if ok && v.kind != kindBool {
		d.refuse(fieldNames[n], faultNotBool)
	}
	return ok && v.raw[0] == 't'
}

func (d *decoder) meta() []byte {
	v, ok := d.given(fieldMeta, false)
	switch {
	case !ok:
		return nil
	case v.kind != kindObject:
		d.refuse("meta", faultNotObject)
	case len(v.raw) > MaxMetaBytes:
		d.tooLarge(LimitMeta, faultMetaSize)
	}
	return v.raw
}

// offset reads an integer written in digits alone: a fraction, an exponent or a sign is refused even where the value is whole, so that
// a position has one spelling.
func (d *decoder) offset(path string, v value) uint64 {
	if v.kind == kindAbsent || v.kind == kindNull {
		d.refuse(path, faultMissing)
		return 0
	}
	n, ok := integer(v)
	if !ok {
		d.refuse(path, faultNotOffset)
	}
	return n
}

func (d *decoder) limit() int {
	v, ok := d.given(fieldLimit, false)
	if !ok {
		return DefaultLimit
	}
	n, ok := integer(v)
	if !ok || n == 0 {
		d.refuse("limit", faultNotLimit)
		return 0
	}
	return int(min(n, MaxLimit))
}

// integer reads a number of 0 to 2^64-1 in plain digits.
func integer(v value) (uint64, bool) {
	if v.kind != kindNumber {
		return 0, false
	}
	n, err := strconv.ParseUint(string(v.raw), 10, 64)
	return n, err == nil
}

// page reads after and before of history.
func (d *decoder) page() {
	f := d.f
	if v, ok := d.given(fieldAfter, false); ok {
		f.After, f.HasAfter = d.offset("after", v), true
	}
	if v, ok := d.given(fieldBefore, false); ok {
		f.Before, f.HasBefore = d.offset("before", v), true
		if f.HasAfter {
			d.refuse("before", faultOneSide)
		}
	}
}

// resume reads {epoch?, offset}; null or no value at all asks for nothing.
func (d *decoder) resume(path string, v value) Resume {
	switch v.kind {
	case kindAbsent, kindNull:
		return Resume{}
	case kindObject:
	default:
		d.refuse(path, faultNotObject)
		return Resume{}
	}
	var epoch, offset value
	s := scanner{data: v.raw, pos: 1} // was scanned before: it can't fail
	for first := true; s.more('}', first); first = false {
		var known *value
		key := d.text(s.key())
		switch string(key) {
		case "epoch":
			known = &epoch
		case "offset":
			known = &offset
		}
		v := s.value(MaxDepth)
		if known == nil {
			continue
		}
		if known.kind != kindAbsent {
			d.refuse(path+"."+string(key), faultTwice)
		}
		*known = v
	}
	r := Resume{Set: true, Offset: d.offset(path+".offset", offset)}
	if epoch.kind != kindAbsent && epoch.kind != kindNull {
		r.Epoch = d.identOf(path+".epoch", epoch, MaxIDBytes)
		r.HasEpoch = true
	}
	return r
}

// rooms reads {name: {epoch?, offset} or null}. A room named twice is refused: which of the two positions would hold?
func (d *decoder) rooms() {
	v, ok := d.given(fieldRooms, false)
	if !ok {
		return
	}
	if v.kind != kindObject {
		d.refuse("rooms", faultNotObject)
		return
	}
	var seen names
	s := scanner{data: v.raw, pos: 1}
	for first := true; s.more('}', first) && d.err == nil; first = false {
		room := d.identOf("rooms", s.key(), MaxIDBytes)
		resume := d.resume("rooms", s.value(MaxDepth))
		if seen.add(room) {
			d.refuse("rooms", faultTwice)
		}
		d.f.Rooms = append(d.f.Rooms, RoomResume{Room: room, Resume: resume})
	}
}

// users reads an array of names. One named twice is asked about once.
func (d *decoder) users() {
	v, ok := d.given(fieldUsers, true)
	if !ok {
		return
	}
	if v.kind != kindArray {
		d.refuse("users", faultNotArray)
		return
	}
	var seen names
	s := scanner{data: v.raw, pos: 1}
	for first := true; s.more(']', first) && d.err == nil; first = false {
		user := d.identOf("users", s.value(MaxDepth), MaxIDBytes)
		if len(d.f.Users) == MaxUsers {
			d.tooLarge(LimitUsers, faultUsers)
		} else if !seen.add(user) {
			d.f.Users = append(d.f.Users, user)
		}
	}
	if len(d.f.Users) == 0 {
		d.refuse("users", faultEmpty)
	}
}

// names is a set that compares while it is small, so that the usual request makes no map.
type names struct {
	few  [][]byte
	many map[string]struct{}
}

const fewNames = 16

// add reports whether name was there already.
func (s *names) add(name []byte) bool {
	if s.many == nil {
		for _, other := range s.few {
			if bytes.Equal(other, name) {
				return true
			}
		}
		if len(s.few) < fewNames {
			s.few = append(s.few, name)
			return false
		}
		s.many = make(map[string]struct{}, 4*fewNames)
		for _, other := range s.few {
			s.many[string(other)] = struct{}{}
		}
	}
	if _, ok := s.many[string(name)]; ok {
		return true
	}
	s.many[string(name)] = struct{}{}
	return false
}
