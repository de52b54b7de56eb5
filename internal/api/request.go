package api

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"chatgate/internal/protocol"
)

// maxBody bounds a body: a message of 64 KB and a thousand receivers with the longest names, and room to spare.
const maxBody = 1 << 20

// read fills a request of the operation from all that the caller sent.
func (a *API) read(o *operation, w http.ResponseWriter, r *http.Request, path []string, by *key) (any, *Problem) {
	request := reflect.New(o.request.typ)
	v := request.Elem()
	if p := o.request.readPath(v, o.segments, path); p != nil {
		return nil, p
	}
	if p := o.request.readQuery(v, r.URL.RawQuery); p != nil {
		return nil, p
	}
	if p := o.request.readHeader(v, r.Header); p != nil {
		return nil, p
	}
	o.request.setCaller(v, by.name)
	if !o.takesBody() {
		if r.ContentLength != 0 {
			return nil, bad("body", "none is taken")
		}
		return request.Interface(), nil
	}
	if r.ContentLength == 0 && r.Header.Get("Content-Type") == "" && !o.needsBody() {
		return request.Interface(), o.request.missing(v, inBody, nil) // nothing is said, and nothing must be
	}
	data, p := a.readBody(w, r)
	if p == nil {
		p = o.request.readBody(v, data)
	}
	return request.Interface(), p
}

// setCaller tells a request who makes it, if it wants to know.
func (s *shape) setCaller(v reflect.Value, by string) {
	for i := range s.fields {
		if f := &s.fields[i]; f.in == inCaller {
			v.FieldByIndex(f.index).SetString(by)
		}
	}
}

// bad is the commonest problem.
func bad(name, fault string) *Problem { return refuse(CodeBadRequest, name+": "+fault) }

func (s *shape) readPath(v reflect.Value, names, values []string) *Problem {
	n := 0
	for _, name := range names {
		name, ok := strings.CutPrefix(name, "{")
		if !ok {
			continue
		}
		f := s.find(inPath, strings.TrimSuffix(name, "}"))
		text, err := url.PathUnescape(values[n])
		if n++; err != nil {
			return bad(f.name, "invalid percent-encoding")
		}
		if fault := f.setText(v.FieldByIndex(f.index), text); fault != "" {
			return bad(f.name, fault)
		}
	}
	return nil
}

func (s *shape) readQuery(v reflect.Value, raw string) *Problem {
	if raw == "" {
		return s.missing(v, inQuery, nil)
	}
	query, err := url.ParseQuery(raw)
	if err != nil {
		return bad("query", "invalid percent-encoding")
	}
	seen := make(map[string]bool)
	for name, values := range query {
		f := s.find(inQuery, name)
		switch {
		case f == nil:
			return bad("query", "unknown parameter")
		case len(values) > 1:
			return bad(name, "given twice")
		}
		if fault := f.setText(v.FieldByIndex(f.index), values[0]); fault != "" {
			return bad(name, fault)
		}
		seen[name] = true
	}
	return s.missing(v, inQuery, seen)
}

func (s *shape) readHeader(v reflect.Value, header http.Header) *Problem {
	for i := range s.fields {
		f := &s.fields[i]
		if f.in != inHeader {
			continue
		}
		values := header.Values(f.name)
		if len(values) > 1 {
			return bad(f.name, "given twice")
		}
		for _, text := range values {
			if fault := f.setText(v.FieldByIndex(f.index), text); fault != "" {
				return bad(f.name, fault)
			}
		}
	}
	return nil
}

// missing complains about what must be there and isn't, and sets the defaults of what needn't.
func (s *shape) missing(v reflect.Value, in source, seen map[string]bool) *Problem {
	for i := range s.fields {
		f := &s.fields[i]
		switch {
		case !f.isIn(in) || seen[f.name]:
		case f.required:
			return bad(f.name, "missing")
		case f.fallback != "":
			f.setText(v.FieldByIndex(f.index), f.fallback)
		}
	}
	return nil
}

// readBody takes the bytes of a JSON body, all of them and in time.
func (a *API) readBody(w http.ResponseWriter, r *http.Request) ([]byte, *Problem) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, refuse(CodeUnsupportedMedia, "Content-Type: must be application/json")
	}
	for _, coding := range r.Header.Values("Content-Encoding") {
		if !strings.EqualFold(strings.TrimSpace(coding), "identity") {
			return nil, refuse(CodeUnsupportedMedia, "Content-Encoding: none is taken")
		}
	}
	if r.ContentLength > maxBody {
		return nil, tooLong()
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	switch {
	case err == nil:
		r.Body = http.NoBody // it is all there
		// Or the next look at the connection would take the caller for gone.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		return data, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, refuse(CodeTimeout, "body: not complete in "+a.cfg.BodyTime.String())
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLong()
	}
	return nil, bad("body", "cut off")
}

func tooLong() *Problem {
	return refuse(CodeTooLarge, "body: more than "+strconv.Itoa(maxBody)+" bytes")
}

// readBody reads the fields that are in the body.
func (s *shape) readBody(v reflect.Value, data []byte) *Problem {
	if len(data) == 0 {
		return bad("body", "empty")
	}
	return s.readObject(v, inBody, "", data)
}

// readObject reads a JSON object into a struct. Names must match to the letter, once each.
func (s *shape) readObject(v reflect.Value, in source, prefix string, data []byte) *Problem {
	seen := make(map[string]bool, len(s.fields))
	var wrong *Problem
	fault := protocol.ScanObject(data, protocol.MaxDepth, func(name string, raw []byte) string {
		f := s.find(in, name)
		switch {
		case f == nil:
			wrong = bad(prefix+"body", "unknown field")
			if protocol.IDFault(name, protocol.MaxMessageIDBytes) == "" {
				wrong = bad(prefix+name, "unknown field")
			}
		case seen[name]:
			wrong = bad(prefix+name, "given twice")
		default:
			seen[name] = true
			if string(raw) == "null" && f.typ != typeRaw {
				seen[name] = false // absent, in other words
				return ""
			}
			wrong = f.read(v.FieldByIndex(f.index), prefix+name, raw)
		}
		if wrong != nil {
			return "wrong"
		}
		return ""
	})
	switch {
	case wrong != nil:
		return wrong
	case fault != "":
		return bad(prefix+"body", fault)
	}
	return s.missing(v, in, seen)
}

// read reads one JSON value into a field. path is its name in what is told of a fault.
func (f *field) read(v reflect.Value, path string, raw []byte) *Problem {
	switch {
	case f.typ == typeRaw:
		v.SetBytes(raw)
	case v.Kind() == reflect.Slice:
		return f.readList(v, path, raw)
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return f.read1(v.Elem(), path, raw)
	default:
		return f.read1(v, path, raw)
	}
	return nil
}

func (f *field) read1(v reflect.Value, path string, raw []byte) *Problem {
	fault := ""
	switch v.Kind() {
	case reflect.Struct:
		if raw[0] != '{' {
			return bad(path, "must be an object")
		}
		return f.nested.readObject(v, inBody, path+".", raw)
	case reflect.String:
		var text string
		if text, fault = protocol.ScanString(raw); fault == "" {
			fault = f.setText(v, text)
		}
	case reflect.Bool:
		if raw[0] != 't' && raw[0] != 'f' {
			return bad(path, "must be true or false")
		}
		v.SetBool(raw[0] == 't')
	default:
		fault = f.setText(v, string(raw))
	}
	if fault != "" {
		return bad(path, fault)
	}
	return nil
}

func (f *field) readList(v reflect.Value, path string, raw []byte) (wrong *Problem) {
	fault := protocol.ScanArray(raw, func(element []byte) string {
		n := v.Len()
		if f.max > 0 && int64(n) == f.max {
			wrong = refuse(CodeTooLarge, path+": more than "+strconv.FormatInt(f.max, 10))
			return "wrong"
		}
		v.Grow(1)
		v.SetLen(n + 1)
		if wrong = f.read1(v.Index(n), path+"["+strconv.Itoa(n)+"]", element); wrong != nil {
			return "wrong"
		}
		return ""
	})
	if wrong == nil && fault != "" {
		wrong = bad(path, fault)
	}
	return wrong
}

// setText sets a text, a number or a truth value that is written as text; it returns why it can't be.
func (f *field) setText(v reflect.Value, text string) (fault string) {
	switch v.Kind() {
	case reflect.String:
		if most, ok := idBytes[v.Type()]; ok {
			fault = protocol.IDFault(text, most)
		} else if f.max > 0 && int64(len(text)) > f.max {
			fault = "more than " + strconv.FormatInt(f.max, 10) + " bytes"
		}
		v.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return "must be true or false"
		}
		v.SetBool(text == "true")
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < f.min || f.max > 0 && n > f.max {
			return "must be a whole number" + f.bounds()
		}
		v.SetInt(n)
	case reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return "must be a whole number from 0"
		}
		v.SetUint(n)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return f.setText(v.Elem(), text)
	default:
		return "is not read"
	}
	return fault
}

func (f *field) bounds() string {
	if f.max > 0 {
		return fmt.Sprintf(" from %d to %d", f.min, f.max)
	}
	return fmt.Sprintf(" from %d", f.min)
}
