package gatewaytest

import (
	"slices"
	"testing"
)

func TestSplitKeepsStringsAndBracesWhole(t *testing.T) {
	for name, tc := range map[string]struct {
		line string
		want []string
	}{
		"words":               {`kill  a`, []string{"kill", "a"}},
		"a comment":           {`kill a # send bob "x"`, []string{"kill", "a"}},
		"only a comment":      {`  # nothing`, nil},
		"a string":            {`send a b "x y # z"`, []string{"send", "a", "b", `"x y # z"`}},
		"an escaped quote":    {`send a b "x \" y"`, []string{"send", "a", "b", `"x \" y"`}},
		"an escaped escape":   {`send a b "x \\" id=m`, []string{"send", "a", "b", `"x \\"`, "id=m"}},
		"an object":           {`raw a {"x": {"y": 1}} `, []string{"raw", "a", `{"x": {"y": 1}}`}},
		"an object in option": {`connect a b meta={"x": "}"}`, []string{"connect", "a", "b", `meta={"x": "}"}`}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := split(tc.line)
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("%q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func TestParseRefusesWhatItCannotPlay(t *testing.T) {
	for name, source := range map[string]string{
		"an unknown step":  "gateway a\ndance a",
		"an open string":   `send a b "x`,
		"an open brace":    `raw a {"x":1`,
		"an unknown Redis": "redis: keydb\ngateway a",
		"a bad count":      "repeat x: kill a",
		"nothing at all":   "# only a story",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseTranscript("x", source); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestParseRepeatsAndChoosesKinds(t *testing.T) {
	tr, err := parseTranscript("x", "redis: standalone cluster\nrepeat 3: kill a\nkill b")
	if err != nil {
		t.Fatal(err)
	}
	if want := []Kind{Standalone, Cluster}; !slices.Equal(tr.kinds, want) {
		t.Errorf("kinds %v, want %v", tr.kinds, want)
	}
	if len(tr.steps) != 4 || tr.steps[2].line != 2 || tr.steps[3].line != 3 {
		t.Errorf("steps %+v", tr.steps)
	}
}

// A condition that is misspelt must not be one that always holds.
func TestStepsRefuseWordsTheyDoNotKnow(t *testing.T) {
	for name, take := range map[string]func(*args){
		"nothing taken":     func(a *args) {},
		"an option":         func(a *args) { a.option("id") },
		"a duration":        func(a *args) { _, _ = a.duration("within", 0) },
		"a following value": func(a *args) { a.after("devices") },
	} {
		t.Run(name, func(t *testing.T) {
			a := &args{rest: []string{"id=m1", "within", "3s", "devices", "2", "offfset", "1"}}
			take(a)
			if a.done() == nil {
				t.Error("accepted")
			}
		})
	}
	a := &args{rest: []string{"id=m1", "within", "3s", "devices", "2"}}
	a.option("id")
	a.after("devices")
	if d, err := a.duration("within", 0); err != nil || d.Seconds() != 3 || a.done() != nil {
		t.Errorf("%v, %v, %v", d, err, a.done())
	}
}
