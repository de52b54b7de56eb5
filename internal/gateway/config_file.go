package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// loadFile puts the settings of a YAML file into s.values. Keys are the settings' names, nested (limits: connect-rate: 5) or
// dotted (limits.connect-rate: 5).
func (s *Sources) loadFile(path string, settings []setting) []error {
	data, err := readBounded(path)
	if err != nil {
		return []error{err}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil // empty, or comments only
	} else if err != nil {
		return []error{yamlError(path, err)}
	}
	if err := decoder.Decode(&second); err == nil {
		return []error{fmt.Errorf("%s:%d: a second document; settings go into one", path, second.Line)}
	} else if !errors.Is(err, io.EOF) {
		return []error{yamlError(path, err)}
	}
	f := fileReader{path: path, settings: make(map[string]setting), sections: make(map[string]bool), into: s.values}
	for _, set := range settings {
		f.settings[set.Name] = set
		if section, _, ok := cutLast(set.Name, "."); ok {
			f.sections[section] = true
		}
	}
	f.mapping("", document.Content[0])
	return f.errs
}

// yamlError turns "yaml: line 3: did not find ..." into "path:3: did not find ...".
func yamlError(path string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		return fmt.Errorf("%s:%s", path, rest)
	}
	return fmt.Errorf("%s: %s", path, text)
}

// fileReader walks the nodes of one file and goes on after an error, so that one run shows them all.
type fileReader struct {
	path     string
	settings map[string]setting
	sections map[string]bool
	into     map[string]found
	errs     []error
}

func (f *fileReader) wrong(node *yaml.Node, format string, args ...any) {
	f.errs = append(f.errs, fmt.Errorf("%s:%d: %s", f.path, node.Line, fmt.Sprintf(format, args...)))
}

// mapping reads one level; prefix is "" or ends with a dot. Only known sections are entered, which also ends any recursion
// an alias could build.
func (f *fileReader) mapping(prefix string, node *yaml.Node) {
	node = resolve(node)
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return // everything in it is commented out
	}
	if node.Kind != yaml.MappingNode {
		at := ""
		if prefix != "" {
			at = strings.TrimSuffix(prefix, ".") + ": "
		}
		f.wrong(node, "%swant names with values, not %s", at, kindOf(node))
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		name := prefix + key.Value
		set, known := f.settings[name]
		switch {
		case known:
			f.setting(set, key, value)
		case name == sinksName:
			f.sinks(key, value)
		case name == keysName:
			f.keys(key, value)
		case f.sections[name] && prefix == "":
			f.mapping(name+".", value)
		default:
			f.wrong(key, "%s: unknown setting%s", name, f.suggest(name))
		}
	}
}

func (f *fileReader) setting(set setting, key, value *yaml.Node) {
	if before, twice := f.into[set.Name]; twice {
		f.wrong(key, "%s: set twice, also at %s", set.Name, before.where)
		return
	}
	raw, err := rawValue(set, resolve(value))
	if err == nil {
		err = set.check(raw)
	}
	if err != nil {
		f.wrong(value, "%s: %v", set.Name, err)
		return
	}
	f.into[set.Name] = found{raw, fmt.Sprintf("%s:%d", f.path, key.Line)}
}

// rawValue takes a value as written, if its YAML kind is that of the setting.
func rawValue(set setting, node *yaml.Node) (any, error) {
	if set.IsList() {
		if node.Kind != yaml.SequenceNode {
			return nil, fmt.Errorf("want a list, not %s", kindOf(node))
		}
		list := []any{}
		for _, element := range node.Content {
			if element = resolve(element); element.Kind != yaml.ScalarNode || element.Tag != "!!str" {
				return nil, fmt.Errorf("want a list of texts, not of %s", kindOf(element))
			}
			list = append(list, element.Value)
		}
		return list, nil
	}
	if want, tags := set.kind(); node.Kind != yaml.ScalarNode || !slices.Contains(tags, node.Tag) {
		return nil, fmt.Errorf("want %s, not %s", want, kindOf(node))
	}
	return node.Value, nil
}

// kind says what a setting is called and which YAML tags it takes.
func (s setting) kind() (name string, tags []string) {
	switch v := s.value(); {
	case v.Type() == typeConnectionLimit:
		return "a whole number or auto", []string{"!!int", "!!str"}
	case v.Type() == typeDuration:
		return "a duration such as 30s", []string{"!!str", "!!int"} // 0 needs no unit
	case v.Type() == typeLevel:
		return "a level", []string{"!!str"}
	case v.Kind() == reflect.Bool:
		return "true or false", []string{"!!bool"}
	case v.CanInt():
		return "a whole number", []string{"!!int"}
	}
	return "a text", []string{"!!str"}
}

func resolve(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func kindOf(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.MappingNode:
		return "names with values"
	case node.Kind == yaml.SequenceNode:
		return "a list"
	case node.Tag == "!!null":
		return "nothing"
	case node.Tag == "!!bool":
		return "true or false"
	case node.Tag == "!!int":
		return "a number"
	case node.Tag == "!!float":
		return "a number with a fraction"
	}
	return "a text"
}

// suggest finds the setting a misspelt name was meant to be.
func (f *fileReader) suggest(name string) string {
	return suggestion(name, append(slices.Collect(maps.Keys(f.settings)), sinksName, keysName))
}

func suggestion(name string, names []string) string {
	if len(name) > 64 {
		return ""
	}
	best, least := "", 4 // more than three letters off is another word
	for _, known := range names {
		d := distance(name, known)
		if d < least || d == least && best != "" && known < best {
			best, least = known, d
		}
	}
	if best == "" {
		return ""
	}
	return ", did you mean " + best + "?"
}

// distance is the number of letters to insert, drop or change to turn a into b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
