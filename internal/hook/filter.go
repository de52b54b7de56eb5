package hook

import (
	"slices"
	"strings"
)

// Filter says which events are meant. An event passes when each list that is not
// empty has it; an event without a value never passes a list of such values.
type Filter struct {
	Types  []string `yaml:"types"`
	Kinds  []string `yaml:"kinds"`
	Causes []string `yaml:"causes"`
	Users  []string `yaml:"users"` // beginnings of user ids
	Rooms  []string `yaml:"rooms"` // beginnings of room names
}

// passes reports whether e is meant.
func (f *Filter) passes(e *Event) bool {
	return among(f.Types, e.Type) && among(f.Kinds, e.Kind) && among(f.Causes, e.Cause) &&
		begins(f.Users, e.User) && begins(f.Rooms, e.Room)
}

// Takes reports whether events of a type may pass.
func (f *Filter) Takes(name string) bool { return among(f.Types, name) }

// takesOthers reports whether events may pass that are not of messages.
func (f *Filter) takesOthers() bool {
	return slices.ContainsFunc(knownTypes, func(t string) bool { return t != typeMessage && f.Takes(t) })
}

func among(list []string, value string) bool {
	return len(list) == 0 || slices.Contains(list, value)
}

func begins(list []string, value string) bool {
	return len(list) == 0 || value != "" && slices.ContainsFunc(list, func(p string) bool { return strings.HasPrefix(value, p) })
}
