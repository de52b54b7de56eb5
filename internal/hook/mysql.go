package hook

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
)

// database executes statements for events, one event after the other.
type database struct {
	// Immutable.
	db         *sql.DB
	statements []*statement
	log        *slog.Logger

	mu       sync.Mutex // guards prepared: groups are delivered side by side
	prepared []*sql.Stmt
}

func newMySQL(s *SinkConfig, log *slog.Logger) (*database, error) {
	statements, err := s.MySQL.parse()
	if err != nil {
		return nil, err
	}
	cfg, err := s.MySQL.driver(s.Timeout)
	if err != nil {
		return nil, err
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, errors.New("mysql.dsn: is not valid")
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(s.Parallel)
	db.SetMaxIdleConns(s.Parallel)
	db.SetConnMaxIdleTime(time.Minute) // well below the server's wait_timeout
	return &database{db: db, statements: statements, log: log.With("sink", s.Name), prepared: make([]*sql.Stmt, len(statements))}, nil
}

// parse reads the statements. Every error names its key.
func (c *MySQLConfig) parse() ([]*statement, error) {
	if (c.Statement == "") == (len(c.Statements) == 0) {
		return nil, errors.New("mysql: needs either statement or statements")
	}
	list := c.Statements
	if c.Statement != "" {
		list = []StatementConfig{{SQL: c.Statement}}
	}
	var all []*statement
	for i, one := range list {
		s, err := parseStatement(one.SQL)
		if err != nil {
			return nil, fmt.Errorf("mysql: statement %d: %w", i+1, err)
		}
		s.filter = one.Filter
		all = append(all, s)
	}
	return all, nil
}

// driver reads the DSN, and sees to it that values are parameters and nothing hangs.
func (c *MySQLConfig) driver(timeout time.Duration) (*mysql.Config, error) {
	if c.DSN == "" { // the driver would take it for a server on this machine
		return nil, errors.New("mysql.dsn: is needed")
	}
	cfg, err := mysql.ParseDSN(c.DSN)
	if err != nil {
		return nil, errors.New("mysql.dsn: must be like user:password@tcp(host:3306)/database") // the reason could quote it
	}
	if cfg.MultiStatements || cfg.InterpolateParams {
		return nil, errors.New("mysql.dsn: multiStatements and interpolateParams are not for this")
	}
	for _, d := range []*time.Duration{&cfg.Timeout, &cfg.ReadTimeout, &cfg.WriteTimeout} {
		if *d == 0 {
			*d = timeout
		}
	}
	cfg.Logger = &mysql.NopLogger{} // what it would say comes back as an error
	return cfg, nil
}

func (d *database) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.prepared {
		if s != nil {
			_ = s.Close()
		}
	}
	return d.db.Close()
}

// deliver stops when half of its time is over: a database that is far away or busy takes less at a time, and that is no failure.
func (d *database) deliver(ctx context.Context, events []*Event) (taken, refused int, err error) {
	began := time.Now()
	deadline, bounded := ctx.Deadline()
	for _, e := range events {
		if now := time.Now(); taken > 0 && bounded && now.Sub(began) > deadline.Sub(now) {
			return taken, refused, nil
		}
		err := d.execute(ctx, e)
		if number, state, ok := refusal(err); ok {
			// Nothing the database can be sent again would change its mind, and all behind it wait.
			d.log.Error("the database refuses an event", "event", e.ID, "type", e.Type, "error", number, "sqlstate", state)
			refused++
		} else if err != nil {
			return taken, refused, err
		}
		taken++
	}
	return taken, refused, nil
}

// execute does what the statements say about one event: all of it or nothing.
func (d *database) execute(ctx context.Context, e *Event) error {
	var meant []int
	var prepared []*sql.Stmt
	for i, s := range d.statements {
		if !s.filter.passes(e) {
			continue
		}
		// Before the transaction has a connection: who holds one and waits for another may wait for himself.
		p, err := d.prepare(ctx, i)
		if err != nil {
			return err
		}
		meant, prepared = append(meant, i), append(prepared, p)
	}
	switch len(meant) {
	case 0:
		return nil
	case 1:
		return d.exec(ctx, prepared[0], meant[0], e)
	}
	tx, err := d.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for k, i := range meant {
		s := tx.StmtContext(ctx, prepared[k])
		err := d.exec(ctx, s, i, e)
		_ = s.Close()
		if err != nil {
			_ = tx.Rollback() // the first error is the one that matters
			return err
		}
	}
	return tx.Commit()
}

func (d *database) exec(ctx context.Context, prepared *sql.Stmt, i int, e *Event) error {
	_, err := prepared.ExecContext(ctx, d.statements[i].args(e)...)
	if m, ok := errors.AsType[*mysql.MySQLError](err); ok {
		switch m.Number {
		case errDuplicateKey:
			if !d.statements[i].updates {
				return nil // it is there already, which is what a second delivery finds
			}
		case errUnknownStatement, errPrepareAgain:
			d.forget(i) // what stands between forgot it, or the server did
		}
	}
	return err
}

// forget has a statement prepared anew. The old one may be in use: it goes with its connection.
func (d *database) forget(i int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.prepared[i] = nil
}

// prepare returns a statement as the server has it. Until the server can be
// reached, and knows the tables, there is none.
func (d *database) prepare(ctx context.Context, i int) (*sql.Stmt, error) {
	d.mu.Lock()
	s := d.prepared[i]
	d.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := d.db.PrepareContext(ctx, d.statements[i].text)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.prepared[i]; other != nil {
		_ = s.Close()
		return other, nil
	}
	d.prepared[i] = s
	return s, nil
}

const (
	errDuplicateKey     = 1062
	errUnknownStatement = 1243
	errPrepareAgain     = 1615
)

// aboutValues are errors about a value whose SQLSTATE doesn't say so: MySQL has HY000
// for many of them where MariaDB has 22 or 23.
var aboutValues = []uint16{
	1139,             // no regular expression; MySQL has 3685 to 3700
	1265,             // data truncated
	1267, 1270, 1271, // a text that the column's character set can't be compared with
	1300, 1366, 1977, 3854, 3988, // or does not have
	1301,       // what a function makes of it is too large
	1411, 1525, // no such number, date or time
	3819, // a CHECK constraint
	4078, // a number where a UUID or an address is meant, MariaDB
}

// refusal reports whether an error is the database's last word on the values of an
// event: a value that doesn't fit its column, or that a constraint or a trigger (45,
// SIGNAL) forbids. All else is tried again: deadlocks and timeouts pass, and a
// missing table, a wrong statement or a forbidden one is the operator's to mend.
func refusal(err error) (number uint16, state string, ok bool) {
	m, is := errors.AsType[*mysql.MySQLError](err)
	if !is || errors.Is(err, driver.ErrBadConn) {
		return 0, "", false
	}
	state = string(m.SQLState[:])
	class := state[:2]
	return m.Number, state, class == "22" || class == "23" || class == "45" || m.Number >= 3685 && m.Number <= 3700 || slices.Contains(aboutValues, m.Number)
}
