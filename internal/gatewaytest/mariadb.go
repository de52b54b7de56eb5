package gatewaytest

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-sql-driver/mysql"
)

// MariaDB is one database server, restartable on its port and directory.
type MariaDB struct {
	// Immutable after start.
	Addr    string
	owner   owner
	command Command
	root    *sql.DB

	// Owned by the test.
	*Process
}

// sharedMariaDB is one server for the test binary: making its directory takes seconds.
var sharedMariaDB struct {
	use sync.Mutex // held by the test that uses it; guards the rest
	m   *MariaDB
}

// SharedMariaDB returns a server that is started once for the test binary, and an empty database of it that ends with the
// test. It is the caller's alone until then, who may pause, kill and restart it.
func SharedMariaDB(t testing.TB) (m *MariaDB, database string) {
	t.Helper()
	testBinary.require(t)
	program := Need(t, "mariadb")
	sharedMariaDB.use.Lock()
	t.Cleanup(sharedMariaDB.use.Unlock)
	if sharedMariaDB.m == nil {
		started, err := startMariaDB(&testBinary, program)
		if err != nil {
			t.Fatal(err)
		}
		sharedMariaDB.m = started
	}
	m = sharedMariaDB.m
	t.Cleanup(func() {
		m.Resume()
		if !m.Running() {
			if err := m.Restart(); err != nil {
				sharedMariaDB.m = nil // its process ends with the test binary
			}
		}
	})
	database = "test_" + strconv.Itoa(m.Pid)
	for _, q := range []string{"DROP DATABASE IF EXISTS " + database, "CREATE DATABASE " + database} {
		if err := m.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	return m, database
}

func startMariaDB(o owner, program string) (*MariaDB, error) {
	install, err := lookup("mariadb-install-db")
	if err != nil {
		return nil, err
	}
	port, err := freePort(o)
	if err != nil {
		return nil, err
	}
	dir := o.TempDir()
	data := filepath.Join(dir, "data")
	// A server that is root refuses to be, unless it is told to.
	user := []string{}
	if os.Getuid() == 0 {
		user = append(user, "--user=root")
	}
	args := append([]string{"--no-defaults", "--datadir=" + data, "--auth-root-authentication-method=normal", "--skip-test-db"}, user...)
	if out, err := exec.Command(install, args...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mariadb-install-db: %w\n%s", err, out)
	}
	m := &MariaDB{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), owner: o}
	m.command = Command{
		Name: "mariadb " + m.Addr, Path: program, Dir: dir,
		Args: append([]string{
			"--no-defaults", "--datadir=" + data, "--bind-address=127.0.0.1", "--port=" + strconv.Itoa(port), "--socket=s.sock",
			"--pid-file=pid", "--skip-name-resolve", "--innodb-buffer-pool-size=16M", "--innodb-lock-wait-timeout=2",
		}, user...),
	}
	connector, err := mysql.NewConnector(&mysql.Config{
		User: "root", Net: "tcp", Addr: m.Addr, AllowNativePasswords: true, Timeout: callDeadline, ReadTimeout: 5 * callDeadline,
		WriteTimeout: callDeadline, Logger: &mysql.NopLogger{}, Collation: "utf8mb4_general_ci",
	})
	if err != nil {
		return nil, err
	}
	m.root = sql.OpenDB(connector)
	o.Cleanup(func() { m.root.Close() })
	return m, m.Restart()
}

// Restart starts the server again on its port and directory, after Kill, and waits for its answer.
func (m *MariaDB) Restart() error {
	if m.Process != nil && m.Running() {
		m.Kill()
	}
	p, err := start(m.owner, m.command)
	if err != nil {
		return err
	}
	m.Process = p
	return Poll(2*startDeadline, func() error {
		if !p.Running() {
			return stop{fmt.Errorf("%s ended: %s", p.Name, p.LogTail(20))}
		}
		return m.Exec("DO 1")
	})
}

// DSN is how a gateway reaches a database of this server.
func (m *MariaDB) DSN(database string) string {
	return "root@tcp(" + m.Addr + ")/" + database
}

// DB returns a pool of connections to the server as a whole: a table is named with its database.
func (m *MariaDB) DB() *sql.DB { return m.root }

// Exec executes one statement.
func (m *MariaDB) Exec(query string, args ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*callDeadline)
	defer cancel()
	_, err := m.root.ExecContext(ctx, query, args...)
	return err
}

// Rows returns what a query finds: a line for each row, values separated by spaces, NULL for none.
func (m *MariaDB) Rows(query string, args ...any) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*callDeadline)
	defer cancel()
	rows, err := m.root.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	var lines []string
	for rows.Next() {
		values := make([]sql.NullString, len(columns))
		into := make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		words := make([]string, len(columns))
		for i, v := range values {
			if words[i] = v.String; !v.Valid {
				words[i] = "NULL"
			}
		}
		lines = append(lines, strings.Join(words, " "))
	}
	return lines, rows.Err()
}
