//go:build !secondpass

package api

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The tables in docs/api.md are made from those that the code has.
func TestTheTablesInTheDocsAreCurrent(t *testing.T) {
	const path = "../../docs/api.md"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := string(page)
	for name, table := range map[string]string{"scopes": scopesTable(), "calls": callsTable(), "problems": problemsTable()} {
		begin, end := "<!-- begin "+name+": made by go test ./internal/api -update -->\n", "<!-- end "+name+" -->"
		before, rest, ok := strings.Cut(want, begin)
		_, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s lacks the lines %q and %q", path, begin, end)
		}
		want = before + begin + table + end + after
	}
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(string(page), want); diff != "" {
		t.Errorf("%s (-is +should be), rewrite it with -update:\n%s", path, diff)
	}
}

func scopesTable() string {
	var out strings.Builder
	out.WriteString("| scope | allows to |\n|---|---|\n")
	for _, s := range Scopes {
		fmt.Fprintf(&out, "| `%s` | %s%s |\n", s.Scope, strings.ToLower(s.Meaning[:1]), strings.TrimSuffix(s.Meaning[1:], "."))
	}
	return out.String()
}

func callsTable() string {
	var out strings.Builder
	out.WriteString("| call | scope | |\n|---|---|---|\n")
	for _, o := range operations {
		page := "" // this one
		if o.Scope == ScopeControl || o.Scope == ScopeTrace || o == getConnection {
			page = "api-control.md"
		}
		anchor := strings.ToLower(strings.NewReplacer(" ", "-", "'", "").Replace(o.Summary))
		fmt.Fprintf(&out, "| `%s %s` | `%s` | [%s](%s#%s) |\n", o.Method, o.Path, o.Scope, o.Summary, page, anchor)
	}
	return out.String()
}

func problemsTable() string {
	var out strings.Builder
	out.WriteString("| code | status | again? | |\n|---|---|---|---|\n")
	for _, c := range Codes {
		again := "no"
		if c.Retry {
			again = "yes"
		}
		fmt.Fprintf(&out, "| `%s` | %d | %s | %s |\n", c.Code, c.Status, again, c.Meaning)
	}
	return out.String()
}
