//go:build !secondpass

package hook

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStatements(t *testing.T) {
	for name, tc := range map[string]struct {
		sql, text string
		names     []string
	}{
		"the proctor's": {
			"UPDATE contest_partner SET is_disabled = 1 WHERE user_id = :user AND contest_id = :meta.contestId;",
			"UPDATE contest_partner SET is_disabled = 1 WHERE user_id = ? AND contest_id = ?",
			[]string{"user", "meta.contestId"},
		},
		"one name twice":       {"SELECT :user, :user", "SELECT ?, ?", []string{"user", "user"}},
		"close together":       {"VALUES(:id,:n,:meta)", "VALUES(?,?,?)", []string{"id", "n", "meta"}},
		"text is left alone":   {`SELECT 'a :b', "c :d", ` + "`e :f`" + `, :user`, `SELECT 'a :b', "c :d", ` + "`e :f`" + `, ?`, []string{"user"}},
		"quotes in quotes":     {`SELECT 'it''s :x', 'it\'s :y', :user`, `SELECT 'it''s :x', 'it\'s :y', ?`, []string{"user"}},
		"marks in text":        {`SELECT '?;', :user`, `SELECT '?;', ?`, []string{"user"}},
		"comments":             {"SELECT /* :x ? */ 1 -- :y ;\n, :user # :z", "SELECT /* :x ? */ 1 -- :y ;\n, ? # :z", []string{"user"}},
		"an assignment":        {"SET @x := 1", "SET @x := 1", nil},
		"two minus signs":      {"SELECT 1--:n", "SELECT 1--?", []string{"n"}},
		"a time in a text":     {"SELECT '12:30', :ms", "SELECT '12:30', ?", []string{"ms"}},
		"a place deep in meta": {"SELECT :meta.a.b_c.d1", "SELECT ?", []string{"meta.a.b_c.d1"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parseStatement(tc.sql)
			if err != nil {
				t.Fatal(err)
			}
			if s.text != tc.text || !cmp.Equal(s.names, tc.names) {
				t.Errorf("%s with %q, want %s with %q", s.text, s.names, tc.text, tc.names)
			}
		})
	}
}

// A key that is there already says of an UPDATE that it did nothing, and of an INSERT that it was done before.
func TestAnUpdateIsOneBehindItsComments(t *testing.T) {
	for sql, want := range map[string]bool{
		"UPDATE a SET b = 1":                                    true,
		"update\ta SET b = 1":                                   true,
		"/* the seat */ -- of :user\n# \nUPDATE a SET b=1":      true,
		"UPDATED(1)":                                            false,
		"INSERT INTO a VALUES (1)":                              false,
		"INSERT INTO a(b) SELECT 1 ON DUPLICATE KEY UPDATE b=1": false,
		"/* UPDATE */ DELETE FROM a":                            false,
		"(SELECT 1)":                                            false,
	} {
		s, err := parseStatement(sql)
		if err != nil || s.updates != want {
			t.Errorf("%s: %v, %v", sql, s != nil && s.updates, err)
		}
	}
}

func TestStatementsThatAreRefused(t *testing.T) {
	for sql, word := range map[string]string{
		" ; ":                              "empty",
		"SELECT :nobody":                   ":nobody",
		"SELECT :meta.":                    ":meta.",
		"SELECT :meta..x":                  ":meta..x",
		"SELECT ?":                         ":name",
		"DELETE FROM a; DELETE FROM b":     "more than one",
		"SELECT 'x":                        "not closed",
		"SELECT /* x":                      "not closed",
		"UPDATE a SET b = ':user'":         "without quotes",
		`UPDATE a SET b = ":meta.contest"`: "without quotes",
	} {
		if _, err := parseStatement(sql); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v, want something about %s", sql, err, word)
		}
	}
}

func TestValuesOfAStatement(t *testing.T) {
	s, err := parseStatement("SELECT :user, :room, :code, :dur, :time, :meta.s, :meta.i, :meta.big, :meta.f, :meta.t, :meta.f0, :meta.null, :meta.o, :meta.o.x, :meta.s.x, :meta.none, :meta.a")
	if err != nil {
		t.Fatal(err)
	}
	dur := int64(0)
	e := &Event{
		User: "o'hara; DROP TABLE x", Dur: &dur, Ms: 1795310105531,
		Meta: json.RawMessage(`{"s":"a'b","i":42,"big":123456789012345678901234567890,"f":1.50,"t":true,"f0":false,"null":null,"o":{"x":"y"},"a":[1, 2]}`),
	}
	want := []any{
		"o'hara; DROP TABLE x", nil, nil, int64(0), "2026-11-22 01:15:05.531", "a'b", int64(42), "123456789012345678901234567890", "1.50",
		int64(1), int64(0), nil, `{"x":"y"}`, "y", nil, nil, "[1, 2]",
	}
	if diff := cmp.Diff(want, s.args(e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, meta := range []string{"", "null", "5", `"x"`, "[]"} {
		if v := inside(json.RawMessage(meta), []string{"contestId"}); v != nil {
			t.Errorf("%s has %v", meta, v)
		}
	}
}

func TestFilters(t *testing.T) {
	e := &Event{Type: "disconnect", Kind: "drop", Cause: "network", User: "student:17"}
	for name, tc := range map[string]struct {
		filter Filter
		passes bool
	}{
		"nothing asked":      {Filter{}, true},
		"the type":           {Filter{Types: []string{"connect", "disconnect"}}, true},
		"another type":       {Filter{Types: []string{"connect"}}, false},
		"the kind":           {Filter{Kinds: []string{"drop"}}, true},
		"another kind":       {Filter{Kinds: []string{"goodbye"}}, false},
		"the cause":          {Filter{Causes: []string{"network"}}, true},
		"another cause":      {Filter{Causes: []string{"net"}}, false},
		"the user's begin":   {Filter{Users: []string{"teacher:", "student:"}}, true},
		"another's":          {Filter{Users: []string{"teacher:"}}, false},
		"a room":             {Filter{Rooms: []string{""}}, false},
		"all of it":          {Filter{Types: []string{"disconnect"}, Kinds: []string{"drop"}, Users: []string{"student:17"}}, true},
		"all of it but one":  {Filter{Types: []string{"disconnect"}, Kinds: []string{"moved"}, Users: []string{"student:17"}}, false},
		"longer than the id": {Filter{Users: []string{"student:17x"}}, false},
	} {
		if tc.filter.passes(e) != tc.passes {
			t.Errorf("%s: passes is %v", name, !tc.passes)
		}
	}
}
