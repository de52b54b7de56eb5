package gatewaytest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
)

// Transcripts runs every transcript of a directory on every kind of Redis it is meant for, side by side.
//
// The language, a step a line, is told in testdata/transcripts/README.md; the steps are in the table steps.
func Transcripts(t *testing.T, pattern string) {
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no transcripts at %s (%v)", pattern, err)
	}
	var all []*transcript
	for _, path := range paths {
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := parseTranscript(strings.TrimSuffix(filepath.Base(path), ".txt"), string(source))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, tr)
	}
	for _, kind := range Kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			for _, tr := range all {
				if slices.Contains(tr.kinds, kind) {
					t.Run(tr.name, func(t *testing.T) {
						t.Parallel() // most of it is waiting
						tr.run(t, Shared(t, kind))
					})
				}
			}
		})
	}
}

// transcript is a parsed file.
type transcript struct {
	name  string
	kinds []Kind
	steps []step
}

// step is one line that does something.
type step struct {
	line   int
	source string
	name   string
	do     func(*scene, *args) error
	words  []string
}

func parseTranscript(name, source string) (*transcript, error) {
	tr := &transcript{name: name, kinds: Kinds}
	for i, line := range strings.Split(source, "\n") {
		words, err := split(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		if len(words) == 0 {
			continue
		}
		if words[0] == "redis:" {
			tr.kinds = nil
			for _, word := range words[1:] {
				if !slices.Contains(Kinds, Kind(word)) {
					return nil, fmt.Errorf("line %d: no kind of Redis is called %q", i+1, word)
				}
				tr.kinds = append(tr.kinds, Kind(word))
			}
			continue
		}
		times := 1
		if words[0] == "repeat" && len(words) > 2 {
			if times, err = strconv.Atoi(strings.TrimSuffix(words[1], ":")); err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			words = words[2:]
		}
		do, known := steps[words[0]]
		if !known {
			return nil, fmt.Errorf("line %d: no step is called %q", i+1, words[0])
		}
		for range times {
			tr.steps = append(tr.steps, step{line: i + 1, source: strings.TrimSpace(line), name: words[0], do: do, words: words[1:]})
		}
	}
	if len(tr.steps) == 0 {
		return nil, errors.New("there is no step in it")
	}
	return tr, nil
}

// split cuts a line into words at spaces outside of strings and braces, up to a comment.
func split(line string) (words []string, err error) {
	var word strings.Builder
	depth, inString, escaped := 0, false, false
	flush := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
			word.Reset()
		}
	}
	for _, c := range line {
		switch {
		case inString:
			inString = escaped || c != '"'
			escaped = !escaped && c == '\\'
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		case depth == 0 && c == '#':
			flush()
			return words, nil
		case depth == 0 && unicode.IsSpace(c):
			flush()
			continue
		}
		word.WriteRune(c)
	}
	flush()
	if inString || depth != 0 {
		return nil, errors.New("a string or a brace is not closed")
	}
	return words, nil
}

// run plays the transcript.
func (tr *transcript) run(t *testing.T, r *Redis) {
	t.Helper()
	s := &scene{
		t: t, redis: r, gateways: make(map[string]*Gateway), clients: make(map[string]*Client),
		versions: make(map[string]string), ignored: make(map[*Client]bool),
		taken: make(map[*Client]map[string]int),
	}
	var told strings.Builder
	for _, step := range tr.steps {
		began := time.Now()
		err := step.do(s, &args{rest: slices.Clone(step.words)})
		fmt.Fprintf(&told, "  %3d  %7.3fs  %s\n", step.line, time.Since(began).Seconds(), step.source)
		if err != nil {
			t.Fatalf("%s.txt:%d: %v\n%s%s", tr.name, step.line, err, told.String(), s.story())
		}
	}
	if err := s.nothingLeft(); err != nil {
		t.Fatalf("%s.txt, at its end: %v\n%s%s", tr.name, err, told.String(), s.story())
	}
	for name, g := range s.gateways {
		if err := g.check(); err != nil {
			t.Errorf("gateway %s, at the end: %v", name, err)
		}
	}
}

// args are the words of a step after its name, taken one by one.
type args struct{ rest []string }

// next takes the next word.
func (a *args) next(what string) (string, error) {
	if len(a.rest) == 0 {
		return "", fmt.Errorf("%s is missing", what)
	}
	word := a.rest[0]
	a.rest = a.rest[1:]
	return word, nil
}

// two takes two words.
func (a *args) two(first, second string) (string, string, error) {
	one, err := a.next(first)
	if err != nil {
		return "", "", err
	}
	two, err := a.next(second)
	return one, two, err
}

// word takes a word if it is the next one.
func (a *args) word(word string) bool {
	if len(a.rest) == 0 || a.rest[0] != word {
		return false
	}
	a.rest = a.rest[1:]
	return true
}

// after takes the value that follows a word anywhere in the rest: "within 3s", "devices 2". Empty: the word isn't there.
func (a *args) after(word string) string {
	i := slices.Index(a.rest, word)
	if i < 0 || i+1 >= len(a.rest) {
		return ""
	}
	value := a.rest[i+1]
	a.rest = slices.Delete(a.rest, i, i+2)
	return value
}

// duration takes the duration that follows a word.
func (a *args) duration(word string, otherwise time.Duration) (time.Duration, error) {
	value := a.after(word)
	if value == "" {
		return otherwise, nil
	}
	return time.ParseDuration(value)
}

// option takes the value of name=value anywhere in the rest.
func (a *args) option(name string) (string, bool) {
	for i, word := range a.rest {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			a.rest = slices.Delete(a.rest, i, i+1)
			return value, true
		}
	}
	return "", false
}

// flags takes every --flag of the rest.
func (a *args) flags() (flags []string) {
	a.rest = slices.DeleteFunc(a.rest, func(word string) bool {
		if strings.HasPrefix(word, "--") {
			flags = append(flags, word)
			return true
		}
		return false
	})
	return flags
}

// done complains about words that no one took: a misspelt condition must not be one that always holds.
func (a *args) done() error {
	if len(a.rest) > 0 {
		return fmt.Errorf("not understood: %s", strings.Join(a.rest, " "))
	}
	return nil
}
