package main

import (
	"fmt"
	"io"
	"strings"

	"chatgate/internal/api"
)

// keyCommand makes a key. The gateway keeps only a hash of it, so this is the one time that it is seen.
type keyCommand struct {
	Name   string   `arg:"" help:"What the key is called in the configuration and in the log."`
	Scopes []string `required:"" placeholder:"SCOPE" help:"What it may do: send, presence, connections, rooms, history, stats, control, revoke."`
	Rate   int      `default:"0" help:"Calls a second that it may make. 0: no limit."`
}

func (k *keyCommand) run(stdout, stderr io.Writer) int {
	secret, hash := api.NewKey()
	entry := api.Key{Name: k.Name, Hash: hash, Scopes: k.Scopes, Rate: k.Rate}
	if err := entry.Validate(); err != nil {
		return complain(stderr, exitUsage, err)
	}
	fmt.Fprintf(stdout, "# The key, which is kept nowhere: give it to whoever calls.\n%s\n\n", secret)
	fmt.Fprintf(stdout, "# Its entry for the configuration file of every gateway:\napi:\n  keys:\n    - name: %s\n      hash: %s\n      scopes: [%s]\n",
		entry.Name, entry.Hash, strings.Join(entry.Scopes, ", "))
	if entry.Rate > 0 {
		fmt.Fprintf(stdout, "      rate: %d\n", entry.Rate)
	}
	return exitOK
}
