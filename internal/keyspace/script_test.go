package keyspace

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Fragments are included where they are named, and PUBLISH is what reaches a channel of the layout.
func TestScriptIncludesItsFragments(t *testing.T) {
	const source = "-- test\n--#include clock\n  --#include life\nreturn now\n"
	alone, sharded := Layout{}.Script(source), Layout{Sharded: true}.Script(source)
	for name, script := range map[string]string{"alone": alone, "sharded": sharded} {
		for _, want := range []string{"redis.call('TIME')", "local function quietTime", "return now"} {
			if !strings.Contains(script, want) {
				t.Errorf("%s: no %q in the script", name, want)
			}
		}
		if strings.Contains(script, "--#include") {
			t.Errorf("%s: an include is left", name)
		}
	}
	if !strings.HasPrefix(alone, "local PUBLISH = 'PUBLISH'\n") {
		t.Errorf("alone begins with %.40q", alone)
	}
	// Redis reads #! only at the very beginning.
	if !strings.HasPrefix(sharded, "#!lua\nlocal PUBLISH = 'SPUBLISH'\n") {
		t.Errorf("sharded begins with %.40q", sharded)
	}
}

func TestAnUnknownFragmentPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an unknown fragment is ignored")
		}
	}()
	Layout{}.Script("--#include nothing\n")
}

// Whoever changes a script must know what it may rely on: keys, arguments, answer, what is atomic, why it may run twice.
func TestEveryScriptTellsItsContract(t *testing.T) {
	files, err := filepath.Glob("../*/lua/*.lua")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 7 {
		t.Fatalf("only %d scripts found: %v", len(files), files)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(file, "keyspace") {
			// A fragment is no script: it says what it is.
			if !strings.HasPrefix(string(text), "-- ") {
				t.Errorf("%s doesn't say what it is", file)
			}
			continue
		}
		for _, want := range []string{`-- KEYS `, `-- ARGV `, `-- Returns `, `(?s)-- .*Atomic\b`, `(?s)-- .*Runs\s+(--\s+)?twice`} {
			if !regexp.MustCompile(want).Match(text) {
				t.Errorf("%s: its header lacks %s", file, want)
			}
		}
		Layout{}.Script(string(text))
	}
}

// PUBLISH inside a script goes through pcall, an error counting as nobody reached: a missing permission must not undo
// half of a change. And nothing is published by a fixed command, or Cluster would broadcast it.
func TestScriptsPublishWithoutRisk(t *testing.T) {
	files, _ := filepath.Glob("../*/lua/*.lua")
	published := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "--") {
				continue
			}
			if strings.Contains(line, "'PUBLISH'") || strings.Contains(line, "'SPUBLISH'") || strings.Contains(line, "call(PUBLISH") && !strings.Contains(line, "redis.pcall(PUBLISH") {
				t.Errorf("%s: %s", file, line)
			}
			published += strings.Count(line, "redis.pcall(PUBLISH")
		}
	}
	if published < 4 {
		t.Errorf("only %d publishes found", published)
	}
}
