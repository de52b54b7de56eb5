package gateway

import (
	"reflect"
	"time"

	"go.yaml.in/yaml/v3"

	"chatgate/internal/api"
	"chatgate/internal/protocol"
)

// APIConfig says who may call the server API, on the internal listener. docs/api.md has the calls.
type APIConfig struct {
	From     string        `default:"system" help:"Who messages of the API are from that name no sender."`
	Deadline time.Duration `default:"5s" help:"Time for one call. What isn't known by then is answered as unknown."`

	Commands []string      `zero:"none are taken" placeholder:"SCOPE" help:"Scopes of what commands from the stream cg:{cmd}:in of Redis may do, or all. Whoever may write to that stream has them."`
	Takeover time.Duration `default:"15s" help:"How long a command may be in the hand of one gateway before another takes it over; at least three times the deadline."`

	Keys []api.Key `kong:"-"` // in the file only
}

// keysName is the setting that is a list of keys.
const keysName = "api.keys"

// keys reads the list of keys. Each is checked where it stands, so that the error names its line.
func (f *fileReader) keys(key, value *yaml.Node) {
	readList(f, keysName, key, value, "key", (*api.Key).Validate, func(k *api.Key) string { return k.Name })
}

// Keys returns the keys of the API, which are in the file only and no flag: the command puts them into its Config.
func (s *Sources) Keys() []api.Key {
	list, _ := s.values[keysName].raw.([]api.Key)
	return list
}

func (c Config) validateAPI(wrong func(name, format string, args ...any)) {
	if !protocol.ValidID([]byte(c.API.From), protocol.MaxIDBytes) {
		wrong("api.from", "must be 1 to %d bytes of UTF-8 without control characters", protocol.MaxIDBytes)
	}
	if c.API.Deadline < time.Second {
		wrong("api.deadline", "must be at least 1s")
	}
	if _, err := api.ParseScopes(c.API.Commands); err != nil {
		wrong("api.commands", "%v", err)
	}
	if c.API.Takeover < 3*c.API.Deadline {
		wrong("api.takeover", "must be at least three times api.deadline")
	}
	for _, err := range linesOf(api.ValidateKeys(c.API.Keys)) {
		wrong(keysName, "%s", err)
	}
}

// listNode is a list of structures in the form of the file.
func listNode[T any](list []T) *yaml.Node {
	node := &yaml.Node{Kind: yaml.SequenceNode}
	for i := range list {
		node.Content = append(node.Content, structureNode(reflect.ValueOf(&list[i]).Elem()))
	}
	return node
}
