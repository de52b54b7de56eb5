package keyspace

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed lua/*.lua
var fragments embed.FS

// Script completes a script's source for the layout: a line `--#include name`
// becomes the fragment lua/name.lua, and PUBLISH names the command that reaches
// a gateway's channel. On Cluster the source is declared with #!lua, which makes
// Redis refuse a key of a foreign slot even where the node happens to hold it.
//
// It panics on an unknown fragment: sources are embedded, so that is a
// programming error every test meets.
func (l Layout) Script(source string) string {
	var b strings.Builder
	if l.Sharded {
		b.WriteString("#!lua\nlocal PUBLISH = 'SPUBLISH'\n")
	} else {
		b.WriteString("local PUBLISH = 'PUBLISH'\n")
	}
	for line := range strings.Lines(source) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "--#include ")
		if !ok {
			b.WriteString(line)
			continue
		}
		text, err := fragments.ReadFile("lua/" + name + ".lua")
		if err != nil {
			panic(fmt.Sprintf("keyspace: no Lua fragment %q", name))
		}
		b.Write(text)
	}
	return b.String()
}
