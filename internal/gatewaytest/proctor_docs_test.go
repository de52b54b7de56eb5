//go:build !race

package gatewaytest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// What docs/proctor.md has a newcomer type is typed here, word by word but for the places on this machine.
func TestTheCommandsOfTheProctorWork(t *testing.T) {
	t.Parallel()
	root, dir := moduleRoot(t), t.TempDir()
	db, database := SharedMariaDB(t)
	host, port, _ := net.SplitHostPort(db.Addr)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write(".my.cnf", fmt.Sprintf("[client]\nuser=root\nhost=%s\nport=%s\nprotocol=tcp\n", host, port))
	read := func(path string) string {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	here := strings.NewReplacer(
		"/run/secrets", dir, "/tmp/exam-key", filepath.Join(dir, "exam-key"), "127.0.0.1:3306", db.Addr, "bin/gateway", Build(t),
		"CREATE DATABASE exam;", "CREATE DATABASE "+database+"_exam;", "exam.*", database+"_exam.*", ")/exam", ")/"+database+"_exam", "mariadb exam", "mariadb "+database+"_exam",
	)
	config := write("gateway.yaml", here.Replace(read("deploy/proctor/gateway.yaml")))
	t.Cleanup(func() {
		for _, q := range []string{"DROP USER IF EXISTS chatgate", "DROP DATABASE IF EXISTS " + database + "_exam"} {
			if err := db.Exec(q); err != nil {
				t.Error(err)
			}
		}
	})
	run := func(line string) string {
		t.Helper()
		c := exec.Command("bash", "-ec", here.Replace(line))
		c.Dir, c.Env = root, append(os.Environ(), "HOME="+dir)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		return strings.TrimSpace(string(out))
	}

	var flags []string
	var token, look string
	for _, line := range blocks(read("docs/proctor.md"), "sh") {
		switch {
		case strings.HasPrefix(line, "go build "): // that is done already
		case strings.HasPrefix(line, "bin/gateway --"):
			flags = strings.Fields(here.Replace(strings.Replace(line, "deploy/proctor/gateway.yaml", config, 1)))[1:]
		case strings.HasPrefix(line, "bin/gateway token"):
			token = run(line)
		case strings.Contains(line, "SELECT *"):
			look = line
		default:
			run(line)
		}
	}
	if flags == nil || token == "" || look == "" {
		t.Fatal("a command is missing")
	}
	g := StartGateway(t, nil, Options{Flags: append(slices.Clone(swift), flags...)})
	sits := func() *Client { return Connect(t, g.WS(), "alice", "token", token) }
	wantDisabled := func(is string) {
		t.Helper()
		wantWithin(t, 4*Deadline, func() bool {
			lines := strings.Split(run(look), "\n")
			return strings.HasPrefix(lines[len(lines)-1], "alice\t42\t"+is+"\t")
		})
	}
	tab := sits()
	if err := tab.WriteFrame(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, "")); err != nil {
		t.Fatal(err)
	}
	wantDisabled("1")
	sits()
	wantDisabled("0")
}
