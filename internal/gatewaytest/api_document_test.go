//go:build !secondpass

package gatewaytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// described is docs/openapi.json, taken at its word: what it doesn't name may not be in an answer.
var described struct {
	once sync.Once
	doc  *openapi3.T
	err  error
}

func describedAPI() (*openapi3.T, error) {
	described.once.Do(func() {
		var text []byte
		if text, described.err = os.ReadFile(filepath.Join("..", "..", "docs", "openapi.json")); described.err != nil {
			return
		}
		if described.doc, described.err = openapi3.NewLoader().LoadFromData(text); described.err != nil {
			return
		}
		no := false
		for _, s := range described.doc.Components.Schemas {
			if len(s.Value.Properties) > 0 {
				s.Value.AdditionalProperties.Has = &no
			}
		}
	})
	return described.doc, described.err
}

// describedOperation finds the operation that a path, still encoded, leads to; nil: none does, or the API didn't look so far.
func describedOperation(doc *openapi3.T, method, path string) *openapi3.Operation {
	if method == "HEAD" {
		method = "GET"
	}
	path, _, _ = strings.Cut(path, "?")
	segments := strings.Split(path, "/")
	for template, item := range doc.Paths.Map() {
		want := strings.Split(template, "/")
		same := len(want) == len(segments)
		for i := 0; same && i < len(want); i++ {
			same = want[i] == segments[i] || strings.HasPrefix(want[i], "{")
		}
		if o := item.Operations()[method]; same && o != nil {
			return o
		}
	}
	return nil
}

// asDescribed holds an answer against the document: its status, its media type, and each of its fields.
func asDescribed(method, path string, a Answered) error {
	doc, err := describedAPI()
	if err != nil {
		return err
	}
	o := describedOperation(doc, method, path)
	if o == nil || method == "HEAD" {
		return nil
	}
	response := o.Responses.Value(strconv.Itoa(a.Status))
	if response == nil {
		return fmt.Errorf("%s may not answer %d", o.OperationID, a.Status)
	}
	kind, _, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	content := response.Value.Content[kind]
	if content == nil {
		return fmt.Errorf("%s may not answer %d as %s", o.OperationID, a.Status, kind)
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(a.Body))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return err
	}
	if err := doc.ValidateSchemaJSON(content.Schema.Value, v, openapi3.VisitAsResponse(), openapi3.MultiErrors()); err != nil {
		return fmt.Errorf("%s answers other than described: %w", o.OperationID, err)
	}
	return nil
}

// A checker that never failed proves nothing: answers that are wrong in one thing each.
func TestAnswersOtherThanDescribedAreNoticed(t *testing.T) {
	good := Answered{200, map[string][]string{"Content-Type": {"application/json"}}, []byte(`{"id":"a","results":[{"to":"bob","status":"stored","offset":1}]}`)}
	if err := asDescribed("POST", "/messages", good); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		status     int
		kind, body string
	}{
		"a status":          {201, "application/json", `{"id":"a"}`},
		"a media type":      {200, "text/plain", `{"id":"a"}`},
		"no JSON":           {200, "application/json", `{"id":"a"`},
		"a field too many":  {200, "application/json", `{"id":"a","extra":1}`},
		"one deeper inside": {200, "application/json", `{"id":"a","results":[{"to":"bob","state":"stored"}]}`},
		"a field missing":   {200, "application/json", `{}`},
		"a wrong type":      {200, "application/json", `{"id":1}`},
		"no such value":     {200, "application/json", `{"id":"a","results":[{"to":"bob","status":"sent"}]}`},
		"an empty name":     {200, "application/json", `{"id":"a","results":[{"to":""}]}`},
		"no problem":        {503, "application/json", `{"type":"t","title":"t","status":503,"detail":"d","code":"unavailable"}`},
		"no known code":     {503, "application/problem+json", `{"type":"t","title":"t","status":503,"detail":"d","code":"away"}`},
	} {
		t.Run(name, func(t *testing.T) {
			a := Answered{c.status, map[string][]string{"Content-Type": {c.kind}}, []byte(c.body)}
			if err := asDescribed("POST", "/messages", a); err == nil {
				t.Errorf("%v passes", a)
			}
		})
	}
}

// The examples in the document are what it says.
func TestTheExamplesOfTheDocumentFitIt(t *testing.T) {
	doc, err := describedAPI()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	fits := func(at string, s *openapi3.SchemaRef) {
		for _, example := range s.Value.Examples {
			checked++
			if err := doc.ValidateSchemaJSON(s.Value, example); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
	}
	for name, s := range doc.Components.Schemas {
		for property, p := range s.Value.Properties {
			fits(name+"."+property, p)
		}
	}
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			for _, p := range o.Parameters {
				fits(method+" "+path+" "+p.Value.Name, p.Value.Schema)
			}
		}
	}
	if checked < 30 {
		t.Errorf("only %d examples found", checked)
	}
}
