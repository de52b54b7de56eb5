package api

import (
	"encoding/json"
	"iter"
	"reflect"
	"strconv"
	"strings"

	"chatgate/internal/protocol"
)

// source is where a field of a request comes from.
type source uint8

const (
	inBody   source = iota // `json:"to"`
	inPath                 // `path:"user"`
	inQuery                // `query:"limit"`
	inHeader               // `header:"Idempotency-Key"`
	inCaller               // `caller:""`: the name of the key

	inAny source = 255 // body, path or query: all that a command has in one object
)

// A shape is what is known of a struct that is read from a request, or written as an answer. Tags beside the name:
//
//	doc       what it is, for people
//	example   one value
//	required  it must be there; of an answer: it always is, unless omitempty says otherwise
//	default   what an absent number means
//	min, max  of a number; max of a list: how many; max of a text: bytes
//	type      the name of a type that a json.RawMessage, or a list of them, is to be described as
type shape struct {
	typ    reflect.Type
	fields []field
}

type field struct {
	name     string
	in       source
	index    []int
	typ      reflect.Type
	required bool
	optional bool // omitempty
	doc      string
	example  string
	fallback string // default
	min, max int64  // max 0: none
	as       string // tag type
	nested   *shape // of a struct, or of the elements of a list
}

var typeRaw = reflect.TypeFor[json.RawMessage]()

// idBytes are the types of text that are ids, and how long each may be.
var idBytes = map[reflect.Type]int{
	reflect.TypeFor[protocol.UserID]():    protocol.MaxIDBytes,
	reflect.TypeFor[protocol.RoomID]():    protocol.MaxIDBytes,
	reflect.TypeFor[protocol.DeviceID]():  protocol.MaxIDBytes,
	reflect.TypeFor[protocol.ClassID]():   protocol.MaxIDBytes,
	reflect.TypeFor[protocol.ConnID]():    protocol.MaxIDBytes,
	reflect.TypeFor[protocol.GatewayID](): protocol.MaxIDBytes,
	reflect.TypeFor[protocol.MessageID](): protocol.MaxMessageIDBytes,
}

// shapeOf reads the tags of a struct. A wrong tag is a mistake of ours, which every test sees.
func shapeOf(t reflect.Type) *shape {
	s := &shape{typ: t}
	for sf := range fieldsOf(t) {
		f := field{
			index: sf.Index, typ: sf.Type, doc: sf.Tag.Get("doc"), example: sf.Tag.Get("example"), fallback: sf.Tag.Get("default"), as: sf.Tag.Get("type"),
			min: number(sf.Tag.Get("min")), max: number(sf.Tag.Get("max")),
		}
		_, f.required = sf.Tag.Lookup("required")
		if !f.place(sf.Tag) {
			panic("api: " + t.Name() + "." + sf.Name + ": no name")
		}
		element := f.typ
		for element.Kind() == reflect.Pointer || element.Kind() == reflect.Slice && element != typeRaw || element.Kind() == reflect.Map {
			element = element.Elem()
		}
		if element.Kind() == reflect.Struct {
			f.nested = shapeOf(element)
		}
		s.fields = append(s.fields, f)
	}
	return s
}

// fieldsOf are the exported fields, with those of embedded structs. As for encoding/json their place in the JSON counts and not their name
// in Go, by which reflect.VisibleFields has the embedded Missing hide its own field Missing.
func fieldsOf(t reflect.Type) iter.Seq[reflect.StructField] {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			sf := t.Field(i)
			if !sf.Anonymous {
				if sf.IsExported() && !yield(sf) {
					return
				}
				continue
			}
			for inner := range fieldsOf(sf.Type) {
				inner.Index = append([]int{i}, inner.Index...)
				if !yield(inner) {
					return
				}
			}
		}
	}
}

// place finds where a field comes from, and its name there.
func (f *field) place(tag reflect.StructTag) bool {
	for in, key := range map[source]string{inPath: "path", inQuery: "query", inHeader: "header", inCaller: "caller"} {
		if name, ok := tag.Lookup(key); ok {
			f.name, f.in = name, in
			f.required = f.required || in == inPath
			return true
		}
	}
	name, options, _ := strings.Cut(tag.Get("json"), ",")
	f.name, f.optional = name, strings.Contains(options, "omit")
	return name != "" && name != "-"
}

func number(s string) int64 {
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic("api: a tag: " + err.Error())
	}
	return n
}

func (f *field) isIn(in source) bool {
	return f.in == in || in == inAny && f.in != inHeader && f.in != inCaller
}

// find returns the field of this name from this source.
func (s *shape) find(in source, name string) *field {
	for i := range s.fields {
		if f := &s.fields[i]; f.isIn(in) && f.name == name {
			return f
		}
	}
	return nil
}
