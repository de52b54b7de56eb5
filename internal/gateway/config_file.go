package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// maxConfigFile bounds what is read as configuration: more was not meant to be one.
const maxConfigFile = 1 << 20

// Sources finds the values of settings that the command line doesn't give, and remembers where each was found. In order:
//
//  1. GATEWAY_LIMITS_CONNECT_RATE; for a secret also GATEWAY_REDIS_URL_FILE, a file that holds it
//  2. what hosting platforms set: PORT (listen on all interfaces) and REDIS_URL
//  3. the YAML file of --config or GATEWAY_CONFIG
//
// An environment variable that is set but empty counts as not set.
//
// Sources is a kong.Option, which makes a parser of a struct with an embedded Config ask it. The command calls Load before
// flags are resolved. It belongs to the goroutine that parses.
type Sources struct {
	env    map[string]string
	values map[string]found // by setting name
}

type found struct {
	raw   any    // string, or []any of strings for a list
	where string // "GATEWAY_NAME", "gateway.yaml:7"
}

// NewSources takes the environment as os.Environ gives it.
func NewSources(environ []string) *Sources {
	s := &Sources{env: make(map[string]string, len(environ)), values: make(map[string]found)}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && value != "" {
			s.env[name] = value
		}
	}
	return s
}

// Load reads file (GATEWAY_CONFIG when it is "") and the environment, and checks every value in them, whether the command
// line overrides it or not. The error names each place that is wrong: gateway.yaml:7, or the variable.
func (s *Sources) Load(file string) error {
	var errs []error
	settings := settingsOf(new(Config))
	if file == "" {
		file = s.env[envPrefix+"CONFIG"]
	}
	if file != "" {
		errs = append(errs, s.loadFile(file, settings)...)
	}
	for _, set := range settings {
		value, where, err := s.lookup(set)
		if err == nil && where != "" {
			err = set.check(value)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
		} else if where != "" {
			s.values[set.Name] = found{value, where}
		}
	}
	return errors.Join(errs...)
}

// lookup finds a setting in the environment; where is "" when it isn't there.
func (s *Sources) lookup(set setting) (value, where string, err error) {
	value, ok := s.env[set.Env()]
	if set.Secret() {
		name := set.Env() + "_FILE"
		if path := s.env[name]; path != "" {
			if ok {
				return "", name, fmt.Errorf("%s is set too", set.Env())
			}
			value, err = readSecret(path)
			return value, name, err
		}
	}
	if ok {
		return value, set.Env(), nil
	}
	switch set.Name {
	case "listen":
		if port := s.env["PORT"]; port != "" {
			if err := checkAddress(":" + port); err != nil {
				return "", "PORT", err
			}
			return ":" + port, "PORT", nil
		}
	case "redis.url":
		if value := s.env["REDIS_URL"]; value != "" {
			return value, "REDIS_URL", nil
		}
	}
	return "", "", nil
}

func readSecret(path string) (string, error) {
	data, err := readBounded(path)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(data), "\r\n"), nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err == nil && len(data) > maxConfigFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxConfigFile)
	}
	return data, err
}

// Apply makes k ask s for every flag that the command line doesn't give, and show the variables in the help.
func (s *Sources) Apply(k *kong.Kong) error {
	env := make(map[string]string)
	for _, set := range settingsOf(new(Config)) {
		env[set.Name] = set.Env()
	}
	return errors.Join(
		kong.Vars{"hostname": defaultName()}.Apply(k),
		kong.Resolvers(s).Apply(k),
		kong.ValueFormatter(func(v *kong.Value) string {
			if name := env[v.Name]; name != "" && v.Flag != nil {
				return v.Help + " ($" + name + ")"
			}
			return v.Help
		}).Apply(k),
	)
}

// Validate is part of kong.Resolver. It has nothing to add: Load has checked everything.
func (s *Sources) Validate(*kong.Application) error { return nil }

// Resolve is part of kong.Resolver: the value found for a flag, or nil.
func (s *Sources) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	return s.values[flag.Name].raw, nil
}

// Where names the place a setting's value comes from; "" = neither environment nor file.
func (s *Sources) Where(name string) string { return s.values[name].where }

// serviceLink matches what Kubernetes sets in every pod for a Service that is called gateway or gateway-something.
var serviceLink = regexp.MustCompile(`^GATEWAY_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// UnknownEnv lists the GATEWAY_ variables that name no setting, sorted. They can't be errors, because other software sets
// such names too; but mostly they are misspelt.
func (s *Sources) UnknownEnv() []string {
	known := map[string]bool{envPrefix + "CONFIG": true}
	for _, set := range settingsOf(new(Config)) {
		known[set.Env()] = true
		known[set.Env()+"_FILE"] = set.Secret()
	}
	var unknown []string
	for name := range s.env {
		if strings.HasPrefix(name, envPrefix) && !known[name] && !serviceLink.MatchString(name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return unknown
}

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
	if len(name) > 64 {
		return ""
	}
	best, least := "", 4 // more than three letters off is another word
	for known := range f.settings {
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
