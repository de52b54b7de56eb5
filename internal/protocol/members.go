package protocol

import (
	"strconv"
	"strings"
)

// Members answers members.
type Members struct {
	ID    []byte // nil: the question had none
	Room  RoomID
	Count int      // users in the room
	Users []UserID // ascending, each once
	Next  UserID   // what after has to be for the next page; empty: there is none
}

// AppendMembers encodes the answer to a members frame.
func AppendMembers(dst []byte, m *Members) []byte {
	dst = append(dst, `{"type":"members"`...)
	if len(m.ID) > 0 {
		dst = append(dst, `,"id":`...)
		dst = appendString(dst, m.ID)
	}
	dst = appendMembersHead(dst, m.Room, m.Count)
	dst = appendNames(append(dst, `,"users":`...), m.Users)
	if m.Next != "" {
		dst = append(dst, `,"next":`...)
		dst = appendString(dst, m.Next)
	}
	return append(dst, '}')
}

// MembersPush tells of who joined and left a room.
type MembersPush struct {
	Room  RoomID
	Count int // users in the room now
	// Named: Joined and Left are all who did, each in one of them, ascending. Else
	// they were too many.
	Named        bool
	Joined, Left []UserID
}

// AppendMembersPush encodes a members frame that nobody asked for.
func AppendMembersPush(dst []byte, m *MembersPush) []byte {
	dst = appendMembersHead(append(dst, `{"type":"members"`...), m.Room, m.Count)
	if m.Named {
		dst = appendNames(append(dst, `,"joined":`...), m.Joined)
		dst = appendNames(append(dst, `,"left":`...), m.Left)
	}
	return append(dst, '}')
}

func appendMembersHead(dst []byte, room RoomID, count int) []byte {
	dst = append(dst, `,"room":`...)
	dst = appendString(dst, room)
	dst = append(dst, `,"count":`...)
	return strconv.AppendInt(dst, int64(count), 10)
}

func appendNames[ID UserID | RoomID](dst []byte, names []ID) []byte {
	dst = append(dst, '[')
	for i, name := range names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, name)
	}
	return append(dst, ']')
}

// MembersChange is the body of a members envelope.
type MembersChange struct {
	Room  RoomID
	Count int
	// Changes is LF and +user or -user for each who joined or left, in order, "" when
	// they were too many to be named. NextChange takes it apart.
	Changes string
}

// OpenMembers reads the body of a members envelope; nothing is allocated.
func OpenMembers(body string) (MembersChange, error) {
	room, rest, ok := strings.Cut(body, "\n")
	if !ok || room == "" {
		return MembersChange{}, ErrEnvelope
	}
	head, changes := rest, ""
	if i := strings.IndexByte(rest, '\n'); i >= 0 {
		head, changes = rest[:i], rest[i:]
	}
	n, err := strconv.ParseUint(head, 10, 31)
	if err != nil {
		return MembersChange{}, ErrEnvelope
	}
	for rest := changes; rest != ""; {
		if _, _, rest, ok = NextChange(rest); !ok {
			return MembersChange{}, ErrEnvelope
		}
	}
	return MembersChange{Room: RoomID(room), Count: int(n), Changes: changes}, nil
}

// NextChange takes the first of a MembersChange's changes; false at the end.
func NextChange(changes string) (user UserID, joined bool, rest string, ok bool) {
	if len(changes) < 3 || changes[0] != '\n' || changes[1] != '+' && changes[1] != '-' {
		return "", false, "", false
	}
	name := changes[2:]
	if i := strings.IndexByte(name, '\n'); i >= 0 {
		name, rest = name[:i], name[i:]
	}
	return UserID(name), changes[1] == '+', rest, name != ""
}
