package gateway

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"chatgate/internal/hook"
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
	raw   any    // string, or []any of strings for a list; the sinks as such
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

// Sinks returns the list of sinks, which is in the file only and no flag: the command puts it into its Config.
func (s *Sources) Sinks() []hook.SinkConfig {
	list, _ := s.values[sinksName].raw.([]hook.SinkConfig)
	return list
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
