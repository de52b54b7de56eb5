//go:build !secondpass

package api

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docs/openapi.json is what the gateway serves.
func TestTheDocumentInTheDocsIsCurrent(t *testing.T) {
	const path = "../../docs/openapi.json"
	if *update {
		if err := os.WriteFile(path, Document(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(Document())); diff != "" {
		t.Errorf("%s (-want +got), rewrite it with -update:\n%s", path, diff)
	}
}

// document is what the tests look at.
type document struct {
	Paths map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Scope       string `json:"x-scope"`
		Summary     string
		Description string
		Tags        []string
		Parameters  []struct {
			Name, In, Description string
			Required              bool
		}
		Responses map[string]struct {
			Description string
			Ref         string `json:"$ref"`
		}
	}
	Components struct {
		Schemas map[string]struct {
			Properties map[string]map[string]any
			Required   []string
		}
		Responses map[string]struct{ Description string }
	}
}

func parsed(t *testing.T) (d document) {
	t.Helper()
	if err := json.Unmarshal(Document(), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// What a linter of style would ask for: names that are one of a kind, words for everything, and references that lead somewhere.
func TestTheDocumentExplainsEverything(t *testing.T) {
	d := parsed(t)
	ids := make(map[string]bool)
	for path, item := range d.Paths {
		for method, o := range item {
			at := method + " " + path
			if o.OperationID == "" || ids[o.OperationID] {
				t.Errorf("%s: operationId %q is missing or twice", at, o.OperationID)
			}
			ids[o.OperationID] = true
			if o.Summary == "" || o.Description == "" || strings.HasSuffix(o.Summary, ".") || !strings.HasSuffix(o.Description, ".") {
				t.Errorf("%s: summary %q, description %q", at, o.Summary, o.Description)
			}
			if !knownScope(Scope(o.Scope)) || len(o.Tags) != 1 || o.Tags[0] != o.Scope {
				t.Errorf("%s: scope %q, tags %q", at, o.Scope, o.Tags)
			}
			named := make(map[string]bool)
			for _, p := range o.Parameters {
				if p.Description == "" || p.Required != (p.In == "path") {
					t.Errorf("%s: parameter %+v", at, p)
				}
				named["{"+p.Name+"}"] = p.In == "path"
			}
			for _, name := range regexp.MustCompile(`\{[^}]*\}`).FindAllString(path, -1) {
				if !named[name] {
					t.Errorf("%s: %s is not described", at, name)
				}
			}
			for _, status := range []string{"200", "400", "401", "403", "429", "500", "503"} {
				if r := o.Responses[status]; (r.Description == "") == (r.Ref == "") {
					t.Errorf("%s: no answer %s", at, status)
				}
			}
		}
	}
	if len(ids) != len(operations) {
		t.Errorf("%d operations are described, of %d", len(ids), len(operations))
	}
	for name, schema := range d.Components.Schemas {
		for property, p := range schema.Properties {
			if p["description"] == nil {
				t.Errorf("%s.%s: no description", name, property)
			}
		}
		for _, property := range schema.Required {
			if schema.Properties[property] == nil {
				t.Errorf("%s: requires %s, which it has not", name, property)
			}
		}
	}
	for _, m := range regexp.MustCompile(`"#/components/([a-z]*)/([^"]*)"`).FindAllStringSubmatch(string(Document()), -1) {
		_, ok := d.Components.Schemas[m[2]]
		if m[1] == "responses" {
			ok = d.Components.Responses[m[2]].Description != ""
		}
		if !ok {
			t.Errorf("%s leads nowhere", m[0])
		}
	}
}
