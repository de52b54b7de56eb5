package hook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// statement is SQL whose :names became question marks, and the names in their order.
// Values go to the server as parameters of a prepared statement, never into the text.
type statement struct {
	filter  Filter
	text    string
	names   []string
	updates bool // a key that is there already is another row's, and nothing was done
}

// fields of an event that a statement may name.
var fields = map[string]func(*Event) any{
	"id":      func(e *Event) any { return e.ID },
	"n":       func(e *Event) any { return int64(e.N) },
	"type":    func(e *Event) any { return e.Type },
	"user":    func(e *Event) any { return orNull(e.User) },
	"room":    func(e *Event) any { return orNull(e.Room) },
	"conn":    func(e *Event) any { return orNull(e.Conn) },
	"device":  func(e *Event) any { return orNull(e.Device) },
	"gateway": func(e *Event) any { return orNull(e.Gateway) },
	"since":   func(e *Event) any { return orNull(e.Since) },
	"fence":   func(e *Event) any { return orNull(int64(e.Fence)) },
	"cause":   func(e *Event) any { return orNull(e.Cause) },
	"kind":    func(e *Event) any { return orNull(e.Kind) },
	"code":    func(e *Event) any { return orNull(int64(e.Code)) },
	"reason":  func(e *Event) any { return orNull(e.Reason) },
	"by":      func(e *Event) any { return orNull(e.By) },
	"dur":     func(e *Event) any { return orNullPointer(e.Dur) },
	"version": func(e *Event) any { return orNull(e.Version) },
	"members": func(e *Event) any { return orNullPointer(e.Members) },
	"to":      func(e *Event) any { return orNull(e.To) },
	"message": func(e *Event) any { return orNull(e.Message) },
	"status":  func(e *Event) any { return orNull(e.Status) },
	"epoch":   func(e *Event) any { return orNull(e.Epoch) },
	"offset":  func(e *Event) any { return orNull(int64(e.Offset)) },
	"devices": func(e *Event) any { return orNullPointer(e.Devices) },
	"ts":      func(e *Event) any { return orNull(e.Ts) },
	"content": func(e *Event) any { return orNull(string(e.Content)) }, // as JSON, like meta
	"ms":      func(e *Event) any { return e.Ms },
	// As a DATETIME(3), in UTC whatever the server's zone.
	"time": func(e *Event) any { return time.UnixMilli(e.Ms).UTC().Format("2006-01-02 15:04:05.000") },
	"meta": func(e *Event) any { return orNull(string(e.Meta)) },
}

func orNull[T comparable](v T) any {
	var none T
	if v == none {
		return nil
	}
	return v
}

func orNullPointer(v *int64) any {
	if v == nil {
		return nil
	}
	return *v
}

// parseStatement finds the :names outside of quotes and comments.
func parseStatement(sql string) (*statement, error) {
	sql = strings.TrimRight(strings.TrimSpace(sql), "; \t\r\n")
	if sql == "" {
		return nil, errors.New("is empty")
	}
	s := &statement{updates: strings.EqualFold(firstWord(sql), "UPDATE")}
	var text strings.Builder
	for i := 0; i < len(sql); {
		if end := quoted(sql[i:]); end != 0 {
			if end < 0 {
				return nil, fmt.Errorf("a %c or a comment that begins with it is not closed", sql[i])
			}
			if inside := sql[i : i+end]; inside[0] != '/' && inside[0] != '-' && inside[0] != '#' && len(inside) > 2 && inside[1] == ':' && known(inside[2:len(inside)-1]) {
				return nil, fmt.Errorf("%s: a parameter stands without quotes", inside)
			}
			text.WriteString(sql[i : i+end])
			i += end
			continue
		}
		switch c := sql[i]; {
		case c == '?':
			return nil, errors.New("has a ?; parameters are written :name")
		case c == ';':
			return nil, errors.New("is more than one statement; list them under statements")
		case c == ':' && i+1 < len(sql) && letter(sql[i+1]):
			end := i + 1
			for end < len(sql) && (letter(sql[end]) || sql[end] >= '0' && sql[end] <= '9' || sql[end] == '.') {
				end++
			}
			name := sql[i+1 : end]
			if !known(name) {
				return nil, fmt.Errorf("names :%s, which no event has", name)
			}
			s.names = append(s.names, name)
			text.WriteByte('?')
			i = end
		default:
			text.WriteByte(c)
			i++
		}
	}
	s.text = text.String()
	return s, nil
}

// firstWord is the first of a statement, behind its comments.
func firstWord(sql string) string {
	for {
		sql = strings.TrimLeft(sql, " \t\r\n")
		end := 0
		for end < len(sql) && letter(sql[end]) {
			end++
		}
		if end > 0 || sql == "" || sql[0] != '/' && sql[0] != '-' && sql[0] != '#' {
			return sql[:end]
		}
		skip := quoted(sql)
		if skip <= 0 {
			return ""
		}
		sql = sql[skip:]
	}
}

func letter(c byte) bool { return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// documents are the fields that are JSON: what is in them has a name too.
var documents = map[string]func(*Event) json.RawMessage{
	"meta":    func(e *Event) json.RawMessage { return e.Meta },
	"content": func(e *Event) json.RawMessage { return e.Content },
}

func known(name string) bool {
	document, path, inside := strings.Cut(name, ".")
	if !inside {
		return fields[name] != nil
	}
	return documents[document] != nil && !slices.Contains(strings.Split(path, "."), "")
}

// quoted returns the length of the quoted text or comment that s begins with; 0 when
// it begins with none, -1 when it has no end.
func quoted(s string) int {
	switch c := s[0]; {
	case c == '\'' || c == '"' || c == '`':
		for i := 1; i < len(s); i++ {
			switch {
			case s[i] == '\\' && c != '`':
				i++
			case s[i] == c && i+1 < len(s) && s[i+1] == c:
				i++
			case s[i] == c:
				return i + 1
			}
		}
		return -1
	case strings.HasPrefix(s, "/*"):
		if end := strings.Index(s[2:], "*/"); end >= 0 {
			return end + 4
		}
		return -1
	case c == '#' || strings.HasPrefix(s, "--") && (len(s) == 2 || s[2] <= ' '):
		if end := strings.IndexByte(s, '\n'); end >= 0 {
			return end + 1
		}
		return len(s)
	}
	return 0
}

// args are the values of the names for one event.
func (s *statement) args(e *Event) []any {
	list := make([]any, len(s.names))
	for i, name := range s.names {
		if value := fields[name]; value != nil {
			list[i] = value(e)
		} else {
			document, path, _ := strings.Cut(name, ".")
			list[i] = inside(documents[document](e), strings.Split(path, "."))
		}
	}
	return list
}

// inside finds a value in a document: NULL when it isn't there, text and numbers as
// such, true and false as 1 and 0, anything else as JSON.
func inside(document json.RawMessage, path []string) any {
	for _, key := range path {
		var object map[string]json.RawMessage
		if json.Unmarshal(document, &object) != nil {
			return nil
		}
		document = object[key]
	}
	if len(document) == 0 {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber()
	var v any
	if decoder.Decode(&v) != nil {
		return nil
	}
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return v
	case bool:
		if v {
			return int64(1)
		}
		return int64(0)
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		return v.String() // exact, and the server makes of it what the column is
	}
	return string(document)
}
