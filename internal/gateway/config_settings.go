package gateway

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// envPrefix begins the environment variable of every setting.
const envPrefix = "GATEWAY_"

// setting is one field of a Config, under its one name.
type setting struct {
	Name  string // "limits.connect-rate"
	Group string // "" at the top
	Help  string
	Zero  string // what 0 or empty means; "" = must not be 0

	flag *kong.Flag // of a model of one Config, which its Target points into
}

// settingsOf lists the settings of c in the order of its fields, read from the same tags kong parses the command line by.
func settingsOf(c *Config) []setting { return settingsWith(c, defaultName()) }

func settingsWith(c *Config, hostname string) []setting {
	k, err := kong.New(c, kong.NoDefaultHelp(), kong.Vars{"hostname": hostname})
	if err != nil {
		panic("gateway: the tags of Config: " + err.Error())
	}
	var list []setting
	for _, f := range k.Model.Flags {
		s := setting{Name: f.Name, Help: f.Help, Zero: f.Tag.Get("zero"), flag: f}
		if f.Group != nil {
			s.Group = f.Group.Title
		}
		list = append(list, s)
	}
	return list
}

// Env is the setting's environment variable.
func (s setting) Env() string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(s.Name))
}

func (s setting) Default() string { return s.flag.Default }
func (s setting) Secret() bool    { return s.flag.Tag.Has("secret") }
func (s setting) IsList() bool    { return s.flag.IsSlice() }

// Reloads reports whether a gateway that runs takes a new value.
func (s setting) Reloads() bool { return s.flag.Tag.Has("reload") }

func (s setting) Enum() []string {
	if s.flag.Enum == "" {
		return nil
	}
	return s.flag.EnumSlice()
}

// value is the field itself, in the Config that settingsOf was given.
func (s setting) value() reflect.Value { return s.flag.Target }

func (s setting) setDefault() error {
	if !s.flag.HasDefault {
		return nil
	}
	return s.decode(s.flag.Default, s.value())
}

// check reports why raw can't be a value of this setting. raw is a string, or a []any of strings for a list.
func (s setting) check(raw any) error {
	target := reflect.New(s.value().Type()).Elem()
	if err := s.decode(raw, target); err != nil {
		return err
	}
	return s.checkEnum(fmt.Sprint(target))
}

func (s setting) decode(raw any, target reflect.Value) error {
	scan := kong.Scan().PushTyped(raw, kong.FlagValueToken)
	if err := s.flag.Mapper.Decode(&kong.DecodeContext{Value: s.flag.Value, Scan: scan}, target); err != nil {
		if s.Secret() {
			return errors.New("not a valid value") // the reason could quote it
		}
		return err
	}
	return nil
}

func (s setting) checkEnum(value string) error {
	if enum := s.Enum(); enum != nil && !slices.Contains(enum, value) {
		return fmt.Errorf("must be one of %s, not %q", strings.Join(enum, ", "), value)
	}
	return nil
}

// validate checks what the tags alone say: the enum, and the sign of numbers.
func (s setting) validate() error {
	v := s.value()
	switch {
	case v.Type() == typeConnectionLimit && v.Int() == int64(AutoConnections), v.Type() == typeLevel:
		return nil
	case v.CanInt() && v.Int() < 0 && s.Zero != "":
		return errors.New("must be >= 0")
	case v.CanInt() && v.Int() <= 0 && s.Zero == "":
		return errors.New("must be > 0")
	}
	return s.checkEnum(fmt.Sprint(v))
}
