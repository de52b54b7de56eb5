package api

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"chatgate/internal/protocol"
)

// documentPath is where the OpenAPI document is, below Base. Any key may read it.
const documentPath = "openapi.json"

// Document is the OpenAPI 3.1 document of the table of operations.
var Document = sync.OnceValue(func() []byte {
	d := documenter{schemas: object{}, responses: object{}}
	paths := object{}
	for _, o := range operations {
		item, _ := paths[o.Path].(object)
		if item == nil {
			item = object{}
			paths[o.Path] = item
		}
		item[strings.ToLower(o.Method)] = d.operation(o)
	}
	scopes := make([]string, 0, len(Scopes))
	tags := make([]object, 0, len(Scopes))
	for _, s := range Scopes {
		scopes = append(scopes, "`"+string(s.Scope)+"`: "+s.Meaning)
		if slices.ContainsFunc(operations, func(o *operation) bool { return o.Scope == s.Scope }) {
			tags = append(tags, object{"name": s.Scope, "description": s.Meaning})
		}
	}
	d.schema(reflect.TypeFor[Problem]())
	d.schema(reflect.TypeFor[Message]())
	whole := object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Chatgate server API", "version": "1.0.0", "summary": "What a backend asks and orders.",
			"description": "On the internal listener of every gateway; each speaks for the whole cluster. The length of a text is that of its UTF-8, in bytes; ids hold no control characters.",
			"license":     object{"name": "Apache License 2.0", "identifier": "Apache-2.0"},
			"contact":     object{"name": "The operator of this gateway"},
		},
		"servers":  []object{{"url": Base, "description": "The gateway that serves this document."}},
		"tags":     tags,
		"security": []object{{"key": []string{}}},
		"paths":    paths,
		"components": object{
			"schemas":   d.schemas,
			"responses": d.responses,
			"securitySchemes": object{"key": object{
				"type": "http", "scheme": "bearer",
				"description": "A key of the setting api.keys. Each has scopes, and each operation names the one it needs in x-scope:\n\n- " + strings.Join(scopes, "\n- "),
			}},
		},
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(whole); err != nil {
		panic("api: the document: " + err.Error())
	}
	return out.Bytes()
})

type object map[string]any

func reference(name string) object { return object{"$ref": "#/components/schemas/" + name} }

// documenter collects what operations refer to.
type documenter struct{ schemas, responses object }

// everyCall are the problems that any call may have.
var everyCall = []Code{CodeBadRequest, CodeUnauthorized, CodeForbidden, CodeDisabled, CodeLimited, CodeInternal, CodeOverloaded}

// problems lists the statuses an operation may fail with, and the codes behind each.
func (o *operation) problems() map[int][]Code {
	out := make(map[int][]Code)
	for _, c := range Codes {
		extra := o.takesBody() && (c.Code == CodeUnsupportedMedia || c.Code == CodeTimeout || c.Code == CodeTooLarge)
		if extra || slices.Contains(everyCall, c.Code) || slices.Contains(o.Codes, c.Code) {
			out[c.Status] = append(out[c.Status], c.Code)
		}
	}
	return out
}

func (d *documenter) operation(o *operation) object {
	answer := object{
		"description": "Done.",
		"content":     object{"application/json": object{"schema": d.schema(o.answer)}},
	}
	if o.lines != nil {
		answer = object{
			"description": "One such object a line, as it comes.",
			"content":     object{"application/x-ndjson": object{"schema": d.schema(o.lines)}},
		}
	}
	responses := object{"200": answer}
	if o.partial {
		responses["207"] = object{"description": "Done in part: the answer says what not.", "content": answer["content"]}
	}
	for status, codes := range o.problems() {
		responses[strconv.Itoa(status)] = d.problem(codes)
	}
	out := object{
		"operationId": o.Name, "summary": o.Summary, "description": o.Description, "tags": []Scope{o.Scope}, "x-scope": o.Scope,
		"responses": responses,
	}
	var parameters []object
	for i := range o.request.fields {
		f := &o.request.fields[i]
		where := map[source]string{inPath: "path", inQuery: "query", inHeader: "header"}[f.in]
		if where == "" {
			continue
		}
		p := object{"name": f.name, "in": where, "description": f.doc, "schema": d.field(f)}
		if f.required {
			p["required"] = true
		}
		parameters = append(parameters, p)
	}
	if len(parameters) > 0 {
		out["parameters"] = parameters
	}
	if o.takesBody() {
		description := "One JSON object; unknown fields are refused."
		if !o.needsBody() {
			description += " Without a body all are absent."
		}
		out["requestBody"] = object{
			"required":    o.needsBody(),
			"description": description,
			"content":     object{"application/json": object{"schema": d.schema(o.request.typ)}},
		}
	}
	return out
}

// problem enters the answer for any of these codes among the components, and returns a reference to it.
func (d *documenter) problem(codes []Code) object {
	var name string
	texts := make([]string, len(codes))
	for i, c := range codes {
		if i > 0 {
			name += "-or-"
		}
		name += strings.ReplaceAll(string(c), "_", "-")
		texts[i] = "`" + string(c) + "`: " + infoOf(c).Meaning
	}
	d.responses[name] = object{
		"description": strings.Join(texts, "\n\n"),
		"content":     object{"application/problem+json": object{"schema": reference("Problem")}},
	}
	return object{"$ref": "#/components/responses/" + name}
}

// schema enters a struct among the components, and returns a reference to it.
func (d *documenter) schema(t reflect.Type) object {
	if _, known := d.schemas[t.Name()]; known {
		return reference(t.Name())
	}
	s := object{"type": "object"}
	d.schemas[t.Name()] = s // before its fields, which may come back to it
	properties, required := object{}, []string{}
	shape := shapeOf(t)
	reading := false
	for i := range shape.fields {
		f := &shape.fields[i]
		if f.in != inBody {
			reading = true
			continue
		}
		property := d.field(f)
		if f.doc != "" {
			property["description"] = f.doc
		}
		properties[f.name] = property
		if f.required || !f.optional {
			required = append(required, f.name)
		}
	}
	if strings.HasSuffix(t.Name(), "Request") || reading {
		s["additionalProperties"] = false
	}
	s["properties"] = properties
	if len(required) > 0 {
		s["required"] = required
	}
	return reference(t.Name())
}

// field is the schema of one field or parameter.
func (d *documenter) field(f *field) object {
	s := d.kind(f, f.typ)
	if f.fallback != "" {
		s["default"], _ = strconv.ParseInt(f.fallback, 10, 64)
	}
	if f.example != "" {
		var example any
		if json.Unmarshal([]byte(f.example), &example) != nil || s["type"] == "string" {
			example = f.example
		}
		s["examples"] = []any{example}
	}
	return s
}

func (d *documenter) kind(f *field, t reflect.Type) object {
	switch {
	case t == typeRaw && f.as == "object":
		return object{"type": "object"}
	case t == typeRaw && f.as != "":
		return reference(f.as)
	case t == typeRaw:
		return object{} // anything
	case t == reflect.TypeFor[Code]():
		return object{"type": "string", "enum": codeNames()}
	case t == reflect.TypeFor[protocol.Status]():
		return object{"type": "string", "enum": []protocol.Status{protocol.StatusRouted, protocol.StatusStored, protocol.StatusDropped}}
	case t == reflect.TypeFor[protocol.PresenceState]():
		return object{"type": "string", "enum": []protocol.PresenceState{protocol.StateOnline, protocol.StateOffline, protocol.StateUnknown}}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return d.kind(f, t.Elem())
	case reflect.Struct:
		return d.schema(t)
	case reflect.Slice:
		s := object{"type": "array", "items": d.kind(&field{as: f.as}, t.Elem())}
		if f.max > 0 {
			s["maxItems"] = f.max
		}
		return s
	case reflect.Map:
		return object{"type": "object", "additionalProperties": d.kind(&field{}, t.Elem())}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		s := object{"type": "string"}
		if most, ok := idBytes[t]; ok {
			s["minLength"], s["maxLength"] = 1, most
		} else if f.max > 0 {
			s["maxLength"] = f.max
		}
		return s
	}
	s := object{"type": "integer"}
	if f.min != 0 || t.Kind() == reflect.Uint64 {
		s["minimum"] = f.min
	}
	if f.max != 0 {
		s["maximum"] = f.max
	}
	return s
}

func codeNames() []Code {
	names := make([]Code, len(Codes))
	for i := range Codes {
		names[i] = Codes[i].Code
	}
	return names
}
