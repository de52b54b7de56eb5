//go:build !secondpass

package gatewaytest

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents returns the text of every Markdown file of the module, by its path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	root := moduleRoot(t)
	texts := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == "testdata"):
			return fs.SkipDir
		case filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		texts[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(texts) < 5 {
		t.Fatalf("found only %d documents", len(texts))
	}
	return texts
}

// The README's smallest client, as it stands there, against a gateway as it starts without any setting.
func TestTheFramesOfTheReadmeAreAnswered(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	frames := blocks(string(text), "json")
	answers := []string{"registered", "heartbeat", "ack"}
	if len(frames) != len(answers) {
		t.Fatalf("the README has %d frames, want %d", len(frames), len(answers))
	}
	client := Open(t, StartGateway(t, nil, Options{}).WS())
	for i, frame := range frames {
		if err := client.WriteFrame(1, []byte(frame)); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Next(answers[i], Deadline); err != nil {
			t.Errorf("%s: %v", frame, err)
		}
	}
}

// Every flag of the gateway that a document names is one, on a command line or between backquotes.
func TestTheFlagsInTheDocumentsExist(t *testing.T) {
	t.Parallel()
	known := make(map[string]bool)
	flag := regexp.MustCompile(`--[a-z][a-z0-9.-]*`)
	for _, command := range []string{"serve", "dev", "token gen", "token revoke", "key gen"} { // some have flags of their own
		help, err := exec.Command(Build(t), append(strings.Fields(command), "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s --help: %v\n%s", command, err, help)
		}
		for _, f := range flag.FindAllString(strings.ReplaceAll(string(help), "[no-]", ""), -1) {
			known[strings.TrimSuffix(f, ".")] = true
		}
	}
	command := regexp.MustCompile(`^(bin/)?gateway |^go run ./cmd/gateway`)
	quoted := regexp.MustCompile("`(--[a-z][a-z0-9.-]*)[^`]*`")
	checked := 0
	check := func(path, name string) {
		checked++
		if !known[name] {
			t.Errorf("%s: the gateway has no flag %s", path, name)
		}
	}
	for path, text := range documents(t) {
		for _, line := range blocks(text, "sh") {
			if command.MatchString(line) {
				for _, name := range flag.FindAllString(line, -1) {
					check(path, name)
				}
			}
		}
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			check(path, m[1])
		}
	}
	if checked < 30 {
		t.Errorf("only %d flags found in the documents", checked)
	}
}

// A link between documents leads to a file, and its fragment to a heading there.
func TestTheLinksOfTheDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for path, text := range texts {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			to := path
			if target != "" {
				to = filepath.Join(filepath.Dir(path), target)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %s: %v", path, m[1], err)
				continue
			}
			if fragment != "" && !anchors(texts[to])[fragment] {
				t.Errorf("%s: %s: no such heading", path, m[1])
			}
		}
	}
}

// anchors are the fragments of a document's headings, as code hosts make them.
func anchors(text string) map[string]bool {
	found := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		name = strings.ReplaceAll(strings.TrimSpace(name), " ", "-")
		for n := 0; ; n++ {
			unique := name
			if n > 0 {
				unique = fmt.Sprintf("%s-%d", name, n)
			}
			if !found[unique] {
				found[unique] = true
				break
			}
		}
	}
	return found
}
