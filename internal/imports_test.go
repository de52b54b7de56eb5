// Package internal_test holds the rule of who may import whom.
package internal_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "chatgate"

// level orders the packages: imports go strictly downward, never sideways. A new package is entered here on purpose.
var level = map[string]int{
	"internal/protocol":   0,
	"internal/keyspace":   0,
	"internal/problem":    0,
	"internal/connection": 1,
	"internal/presence":   1,
	"internal/history":    1,
	"internal/auth":       1,
	"internal/hook":       1,
	"internal/router":     2,
	"internal/handler":    3,
	"internal/api":        3,
	"internal/console":    3,
	"internal/gateway":    4,
	"cmd/gateway":         5,
	// The harness knows a gateway only from outside, so that any package's tests may use it. Nobody else may.
	"internal/gatewaytest": -1,
	// The rule's own test, and the module's root should it ever hold a file.
	"internal": -1,
}

// sideways are the imports within a level that were decided on: keyspace names its keys by the typed ids of protocol.
var sideways = map[string]string{"internal/keyspace": "internal/protocol"}

// pure packages do no input or output: they import no library and none of these.
var (
	pure      = []string{"internal/protocol", "internal/keyspace"}
	forbidden = []string{"context", "net", "net/http", "os", "os/exec", "os/signal", "syscall", "time", "log", "log/slog"}
)

// reserved libraries and the only packages that may import them.
var reserved = map[string][]string{
	"github.com/gorilla/websocket": {"internal/connection", "internal/handler", "client", "internal/gatewaytest"},
	"github.com/redis/go-redis": {
		"internal/presence", "internal/history", "internal/auth", "internal/hook", "internal/router", "internal/api",
		"internal/gateway", "internal/gatewaytest",
	},
	"golang.org/x/time/rate": {"internal/handler", "internal/api"},
	// What a token is worth is decided in one place.
	"github.com/go-jose/go-jose":     {"internal/auth"},
	"github.com/go-sql-driver/mysql": {"internal/hook", "internal/gatewaytest"},
	// What answers should be is for tests to know.
	"github.com/getkin/kin-openapi": {"internal/gatewaytest"},
	// Whose word about an address counts is decided where the listeners are.
	"github.com/pires/go-proxyproto": {"internal/gateway"},
	// The command line is read where the configuration is, and given a main.
	"github.com/alecthomas/kong": {"internal/gateway", "cmd/gateway"},
}

// A listed package, as go list prints it.
type listed struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func (p listed) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

func TestImportsGoDownward(t *testing.T) {
	packages := list(t)
	for _, p := range packages {
		for _, problem := range check(p) {
			t.Error(problem)
		}
	}
	if len(packages) < 5 {
		t.Errorf("go list found only %d packages", len(packages))
	}
}

// A checker that never failed proves nothing: each rule is broken once.
func TestTheCheckSeesEachBrokenRule(t *testing.T) {
	for name, p := range map[string]listed{
		"sideways":            {ImportPath: "chatgate/internal/presence", Imports: []string{"chatgate/internal/connection"}},
		"upward":              {ImportPath: "chatgate/internal/router", Imports: []string{"chatgate/internal/handler"}},
		"a pure package":      {ImportPath: "chatgate/internal/protocol", Imports: []string{"net/http"}},
		"a pure one's lib":    {ImportPath: "chatgate/internal/keyspace", Imports: []string{"github.com/google/uuid"}},
		"websocket elsewhere": {ImportPath: "chatgate/internal/router", Imports: []string{"github.com/gorilla/websocket"}},
		"redis elsewhere":     {ImportPath: "chatgate/internal/handler", Imports: []string{"github.com/redis/go-redis/v9"}},
		"limits elsewhere":    {ImportPath: "chatgate/internal/router", Imports: []string{"golang.org/x/time/rate"}},
		"tokens elsewhere":    {ImportPath: "chatgate/internal/handler", Imports: []string{"github.com/go-jose/go-jose/v4/jwt"}},
		"database elsewhere":  {ImportPath: "chatgate/internal/router", Imports: []string{"github.com/go-sql-driver/mysql"}},
		"harness in product":  {ImportPath: "chatgate/internal/router", Imports: []string{"chatgate/internal/gatewaytest"}},
		"harness with inside": {ImportPath: "chatgate/internal/gatewaytest", Imports: []string{"chatgate/internal/protocol"}},
		"a test goes upward":  {ImportPath: "chatgate/internal/presence", TestImports: []string{"chatgate/internal/router"}},
		"unknown package":     {ImportPath: "chatgate/internal/utils"},
	} {
		t.Run(name, func(t *testing.T) {
			if len(check(p)) == 0 {
				t.Errorf("%+v passes", p)
			}
		})
	}
	fine := listed{
		ImportPath: "chatgate/internal/handler",
		Imports:    []string{"chatgate/internal/router", "chatgate/internal/protocol", "golang.org/x/time/rate", "net/http"},
		// Tests may look at Redis directly, and may use the harness.
		XTestImports: []string{"chatgate/internal/gatewaytest", "github.com/redis/go-redis/v9"},
	}
	if problems := check(fine); len(problems) != 0 {
		t.Errorf("what is allowed is refused: %v", problems)
	}
}

// check returns what is wrong with the imports of one package.
func check(p listed) (problems []string) {
	complain := func(format string, args ...any) {
		problems = append(problems, p.name()+": "+fmt.Sprintf(format, args...))
	}
	own, known := level[p.name()]
	if !known {
		complain("is not in the import table: enter it, with its level")
		return problems
	}
	for _, path := range p.Imports {
		if inside, ok := strings.CutPrefix(path, module+"/"); ok {
			switch other, known := level[inside]; {
			case inside == "internal/gatewaytest":
				complain("imports gatewaytest, which is for tests only")
			case p.name() == "internal/gatewaytest":
				complain("imports %s: it should know a gateway only from outside", inside)
			case known && other >= own && sideways[p.name()] != inside:
				complain("imports %s, which is not below it", inside)
			}
			continue
		}
		for library, allowed := range reserved {
			if (path == library || strings.HasPrefix(path, library+"/")) && !slices.Contains(allowed, p.name()) {
				complain("imports %s, which only %s may", path, strings.Join(allowed, ", "))
			}
		}
		if slices.Contains(pure, p.name()) && (strings.Contains(path, ".") || slices.Contains(forbidden, path)) {
			complain("is pure, but imports %s", path)
		}
	}
	for _, path := range slices.Concat(p.TestImports, p.XTestImports) {
		inside, ok := strings.CutPrefix(path, module+"/")
		if other, known := level[inside]; ok && known && other > own && own >= 0 {
			complain("its tests import %s, which is above it", inside)
		}
	}
	return problems
}

func list(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var packages []listed
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
