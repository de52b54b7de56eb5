package gateway

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"chatgate/internal/hook"
)

// sinksName is the one setting that is a list of structures: it is in the file only.
const sinksName = "events.sinks"

// sinks reads the list of sinks. Each is checked where it stands, so that the error
// names its line.
func (f *fileReader) sinks(key, value *yaml.Node) {
	readList(f, sinksName, key, value, "sink", func(s *hook.SinkConfig) error {
		if err := readSecrets(s); err != nil {
			return err
		}
		return errors.Join(s.Validate(), checkRedisOf(s))
	}, func(s *hook.SinkConfig) string { return s.Name })
}

// readList reads a setting that is a list of structures, each of which has a name of its own.
func readList[T any](f *fileReader, setting string, key, value *yaml.Node, what string, check func(*T) error, nameOf func(*T) string) {
	if before, twice := f.into[setting]; twice {
		f.wrong(key, "%s: set twice, also at %s", setting, before.where)
		return
	}
	var list []T
	value = resolve(value)
	switch {
	case value.Kind == yaml.ScalarNode && value.Tag == "!!null":
	case value.Kind != yaml.SequenceNode:
		f.wrong(value, "%s: want a list, not %s", setting, kindOf(value))
		return
	}
	names := make(map[string]int)
	for i, node := range value.Content {
		at := fmt.Sprintf("%s[%d]", setting, i)
		node = resolve(node)
		before := len(f.errs)
		var one T
		f.structure(at, node, reflect.ValueOf(&one).Elem())
		if len(f.errs) > before {
			continue
		}
		for _, err := range linesOf(check(&one)) {
			f.wrong(node, "%s: %s", at, err)
		}
		name := nameOf(&one)
		if line, twice := names[name]; twice {
			f.wrong(node, "%s: name: %q is that of the %s in line %d", at, name, what, line)
		}
		names[name] = node.Line
		list = append(list, one)
	}
	f.into[setting] = found{list, fmt.Sprintf("%s:%d", f.path, key.Line)}
}

func linesOf(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}

// field is one field of a structure in the file, under its key.
type field struct {
	key   string
	value reflect.Value
	tag   reflect.StructTag
}

// fieldsOf lists the fields of v by their yaml tags, those of inline structures
// among them.
func fieldsOf(v reflect.Value) []field {
	var list []field
	for i := range v.NumField() {
		t := v.Type().Field(i)
		if t.Tag.Get("yaml") == ",inline" {
			list = append(list, fieldsOf(v.Field(i))...)
			continue
		}
		list = append(list, field{t.Tag.Get("yaml"), v.Field(i), t.Tag})
	}
	return list
}

// structure reads names with values into v, defaults first.
func (f *fileReader) structure(at string, node *yaml.Node, v reflect.Value) {
	known := make(map[string]field)
	var names []string
	for _, one := range fieldsOf(v) {
		known[one.key] = one
		names = append(names, one.key)
		if d := one.tag.Get("default"); d != "" {
			if err := setScalar(one.value, d); err != nil {
				panic("gateway: default of " + one.key + ": " + err.Error()) // a wrong tag; every test would see it
			}
		}
	}
	if node.Kind != yaml.MappingNode {
		f.wrong(node, "%s: want names with values, not %s", at, kindOf(node))
		return
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], resolve(node.Content[i+1])
		one, ok := known[key.Value]
		switch {
		case !ok:
			f.wrong(key, "%s: %s: unknown setting%s", at, key.Value, suggestion(key.Value, names))
		case seen[key.Value]:
			f.wrong(key, "%s: %s: set twice", at, key.Value)
		default:
			f.field(at+": "+key.Value, value, one.value)
		}
		seen[key.Value] = true
	}
}

func (f *fileReader) field(at string, node *yaml.Node, v reflect.Value) {
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.structure(at, node, v.Elem())
		return
	case v.Kind() == reflect.Slice && node.Kind != yaml.SequenceNode:
		f.wrong(node, "%s: want a list, not %s", at, kindOf(node))
		return
	case v.Kind() == reflect.Slice:
		for i, element := range node.Content {
			one := reflect.New(v.Type().Elem()).Elem()
			if element = resolve(element); one.Kind() == reflect.Struct {
				f.structure(fmt.Sprintf("%s[%d]", at, i), element, one)
			} else if element.Kind != yaml.ScalarNode || element.Tag != "!!str" {
				f.wrong(element, "%s: want a list of texts, not of %s", at, kindOf(element))
			} else {
				one.SetString(element.Value)
			}
			v.Set(reflect.Append(v, one))
		}
		return
	}
	want, tag := "a text", "!!str"
	switch {
	case v.Type() == typeDuration:
		want = "a duration such as 30s"
	case v.CanInt():
		want, tag = "a whole number", "!!int"
	}
	if node.Kind != yaml.ScalarNode || node.Tag != tag {
		f.wrong(node, "%s: want %s, not %s", at, want, kindOf(node))
	} else if err := setScalar(v, node.Value); err != nil {
		f.wrong(node, "%s: want %s", at, want)
	}
}

func setScalar(v reflect.Value, text string) error {
	switch {
	case v.Type() == typeDuration:
		d, err := time.ParseDuration(text)
		v.SetInt(int64(d))
		return err
	case v.CanInt():
		n, err := strconv.Atoi(text)
		v.SetInt(int64(n))
		return err
	}
	v.SetString(text)
	return nil
}

// readSecrets puts in what a sink keeps in files of their own.
func readSecrets(s *hook.SinkConfig) error {
	read := func(sink, key string, file, into *string) error {
		if *file == "" {
			return nil
		}
		if *into != "" {
			return fmt.Errorf("%s.%s: is set, and %s-file too", sink, key, key)
		}
		text, err := readSecret(*file)
		if err != nil {
			return fmt.Errorf("%s.%s-file: %w", sink, key, err)
		}
		*into = text
		return nil
	}
	switch {
	case s.Webhook != nil:
		return read("webhook", "secret", &s.Webhook.SecretFile, &s.Webhook.Secret)
	case s.MySQL != nil:
		return read("mysql", "dsn", &s.MySQL.DSNFile, &s.MySQL.DSN)
	case s.Redis != nil:
		return read("redis", "url", &s.Redis.URLFile, &s.Redis.URL)
	}
	return nil
}

// checkRedisOf says what is wrong with the address of a sink's own Redis.
func checkRedisOf(s *hook.SinkConfig) error {
	if s.Redis == nil || s.Redis.URL == "" {
		return nil
	}
	_, err := (RedisConfig{URL: s.Redis.URL, Mode: "auto"}).Universal()
	return err
}

// structureNode is a structure in the form of the file, secrets masked and what is
// not set left out.
func structureNode(v reflect.Value) *yaml.Node {
	node := &yaml.Node{Kind: yaml.MappingNode}
	fields := fieldsOf(v)
	inFile := make(map[string]bool)
	for _, f := range fields {
		if name, ok := strings.CutSuffix(f.key, "-file"); ok && f.value.String() != "" {
			inFile[name] = true
		}
	}
	for _, f := range fields {
		if f.value.IsZero() && f.tag.Get("default") == "" || inFile[f.key] {
			continue
		}
		node.Content = append(node.Content, textNode(f.key), fieldNode(f))
	}
	return node
}

func fieldNode(f field) *yaml.Node {
	switch v := f.value; {
	case v.Kind() == reflect.Pointer:
		return structureNode(v.Elem())
	case v.Kind() == reflect.Slice:
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			if one := v.Index(i); one.Kind() == reflect.Struct {
				list.Content = append(list.Content, structureNode(one))
			} else {
				list.Content = append(list.Content, textNode(one.String()))
				list.Style = yaml.FlowStyle
			}
		}
		return list
	case v.Type() != typeDuration && v.CanInt():
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatInt(v.Int(), 10)}
	}
	switch text := fmt.Sprint(f.value); f.tag.Get("secret") {
	case "all":
		return textNode(mask)
	case "url":
		return textNode(maskURL(text))
	default:
		return textNode(text)
	}
}
