//go:build !secondpass

package hook

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"chatgate/internal/gatewaytest"
)

// into is a sink that writes to a database.
func into(m *gatewaytest.MariaDB, database string, statements ...StatementConfig) SinkConfig {
	s := sinkNamed("web", Filter{})
	s.Timeout = 2 * time.Second
	s.MySQL = &MySQLConfig{DSN: m.DSN(database), Statements: statements}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantRows waits until a query finds these lines.
func (w *world) wantRows(m *gatewaytest.MariaDB, query string, want ...string) {
	w.Helper()
	w.eventually(func() error {
		got, err := m.Rows(query)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("%s: %q, want %q", query, got, want)
		}
		return err
	})
}

// Values are parameters: whatever a client puts into its ids and its meta, it changes its own row and nothing else.
func TestValuesNeverBecomeSQL(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	must(t, m.Exec("CREATE TABLE "+db+".p (user_id VARCHAR(128), contest_id VARCHAR(128), off INT DEFAULT 0) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"))
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	nasty := []string{`' OR '1'='1`, `x'; DROP TABLE p; -- `, `\`, `%`, `_`, "a\x00b", `"`, "😀", `:user`, `?`}
	for _, user := range append([]string{"innocent"}, nasty...) {
		must(t, m.Exec("INSERT INTO "+db+".p (user_id, contest_id) VALUES (?, ?)", user, user))
	}
	w.gateway("a", into(m, db, StatementConfig{SQL: "UPDATE p SET off = off + 1 WHERE user_id = :user AND contest_id = :meta.contestId"}))
	for _, user := range nasty {
		w.happen(user, "meta", `{"contestId":`+quotedJSON(user)+`}`)
	}
	w.happen("innocent")                                // no contest: NULL equals nothing
	w.happen("innocent", "meta", `{"contestId":null}`)  // nor does this
	w.happen("innocent", "meta", `{"contestId":["x"]}`) // nor this
	w.wantRows(m, "SELECT off, COUNT(*) FROM "+db+".p GROUP BY off ORDER BY off", "0 1", "1 "+strconv.Itoa(len(nasty)))
}

// A name in meta that no parameter can have is found as docs/events.md says.
func TestANameWithADashIsFoundToo(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	must(t, m.Exec("CREATE TABLE "+db+".seen (contest VARCHAR(16))"))
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	w.gateway("a", into(m, db, StatementConfig{SQL: `INSERT INTO seen VALUES (JSON_VALUE(:meta, '$."contest-id"'))`}))
	w.happen("alice", "meta", `{"contest-id":"42"}`)
	w.happen("bob")
	w.wantRows(m, "SELECT contest FROM "+db+".seen ORDER BY 1", "NULL", "42")
}

// The database is down, then comes back: everything is executed, in order. It is killed in the middle of it, too.
func TestTheDatabaseComesBack(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	must(t, m.Exec("CREATE TABLE "+db+".log (i INT PRIMARY KEY AUTO_INCREMENT, id VARCHAR(64) UNIQUE, user VARCHAR(64), n INT)"))
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	a := w.gateway("a", into(m, db, StatementConfig{SQL: "INSERT INTO log (id, user, n) VALUES (:id, :user, :meta)"}))
	w.happenEach(2, 0, 10)
	w.wantRows(m, "SELECT COUNT(*) FROM "+db+".log", "20")
	m.Kill()
	w.happenEach(2, 10, 60)
	w.eventually(func() error {
		if a.hooks.Stats()[0].Failing < 2 {
			return fmt.Errorf("no failure is seen")
		}
		return nil
	})
	must(t, m.Restart())
	w.wantRows(m, "SELECT COUNT(*) FROM "+db+".log", "120")
	m.Pause() // it hangs
	w.happenEach(2, 60, 80)
	w.eventually(func() error {
		if a.hooks.Stats()[0].Failing < 1 {
			return fmt.Errorf("no failure is seen")
		}
		return nil
	})
	m.Resume()
	w.wantRows(m, "SELECT COUNT(*) FROM "+db+".log", "160")
	// An order that was broken shows as a smaller number behind a larger one of the same user.
	w.wantRows(m, "SELECT COUNT(*) FROM "+db+".log a JOIN "+db+".log b ON a.user = b.user AND a.i < b.i AND a.n > b.n", "0")
	if s := w.wantSettled(a); s.Refused != 0 || s.Lost != 0 {
		t.Errorf("counted %+v", s)
	}
}

// A value that does not fit is refused, logged, and passed over: the events behind it are not held up. A table that isn't there is an
// operator's mistake, and is waited for.
func TestWhatTheDatabaseRefusesHoldsNothingUp(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := w.gateway("a", into(m, db, StatementConfig{SQL: "INSERT INTO narrow (user, seat) VALUES (:user, :meta.seat)"}))
	w.happen("alice", "meta", `{"seat":1}`)
	w.eventually(func() error {
		if a.hooks.Stats()[0].Failing < 2 {
			return fmt.Errorf("no failure is seen")
		}
		return nil
	})
	must(t, m.Exec("CREATE TABLE "+db+".narrow (user VARCHAR(5) PRIMARY KEY, seat INT NOT NULL)"))
	must(t, m.Exec("CREATE TRIGGER "+db+".unlucky BEFORE INSERT ON "+db+".narrow FOR EACH ROW "+
		"IF NEW.seat = 13 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'unlucky'; END IF"))
	w.happen("erin", "meta", `{"seat":13}`)
	w.happen("a name that is too long", "meta", `{"seat":2}`)
	w.happen("bob", "meta", `{"seat":"front"}`)
	w.happen("carol") // no seat
	w.happen("alice", "meta", `{"seat":9}`)
	w.happen("dave", "meta", `{"seat":3}`)
	w.wantRows(m, "SELECT user, seat FROM "+db+".narrow ORDER BY user", "alice 1", "dave 3")
	if s := w.wantSettled(a); s.Refused != 4 || s.Delivered != 3 {
		t.Errorf("counted %+v", s)
	}
}

// A name that the character set of the column lacks can't even be compared with it. That is the name's fault.
func TestANameTheColumnCanNotHoldHoldsNothingUp(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	must(t, m.Exec("CREATE TABLE "+db+".old (user VARCHAR(64) PRIMARY KEY, n INT DEFAULT 0) CHARACTER SET latin1"))
	must(t, m.Exec("INSERT INTO "+db+".old (user) VALUES ('alice')"))
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := w.gateway("a", into(m, db, StatementConfig{SQL: "UPDATE old SET n = n + 1 WHERE user = :user"}))
	w.happen("😀")
	w.happen("alice")
	w.wantRows(m, "SELECT n FROM "+db+".old", "1")
	w.wantSettled(a)
}

// A client says in its meta what it likes: a number where the column is a UUID, half a regular expression, a letter that a conversion lacks. Each event is its own, and the next one
// comes.
func TestAValueOfAnotherKindHoldsNothingUp(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	must(t, m.Exec("CREATE TABLE "+db+".kinds (u UUID, v VARCHAR(64), n INT DEFAULT 0)"))
	must(t, m.Exec("INSERT INTO "+db+".kinds (u, v) VALUES ('019ab8e4-0000-7000-8000-000000000001', 'alice')"))
	for name, tc := range map[string]struct{ condition, bad, good string }{
		"a number for a UUID":      {"u = :meta.v", `-1`, `"019ab8e4-0000-7000-8000-000000000001"`},
		"half a pattern":           {"v REGEXP :meta.v", `"[ab"`, `"^al"`},
		"a letter that is missing": {"v = CONVERT(:meta.v USING latin1)", `"😀"`, `"alice"`},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, m.Exec("UPDATE "+db+".kinds SET n = 0"))
			w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
			a := w.gateway("a", into(m, db, StatementConfig{SQL: "UPDATE kinds SET n = n + 1 WHERE " + tc.condition}))
			w.happen("mallory", "meta", `{"v":`+tc.bad+`}`)
			w.happen("alice", "meta", `{"v":`+tc.good+`}`)
			w.wantRows(m, "SELECT n FROM "+db+".kinds", "1")
			if s := w.wantSettled(a); s.Refused != 1 || s.Delivered != 1 {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

// A row that is there already is what a second delivery finds. An update that would give a row the key of another was not done, and says so.
func TestAKeyThatIsThereAlready(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	must(t, m.Exec("CREATE TABLE "+db+".keyed (user VARCHAR(64) PRIMARY KEY, seat INT UNIQUE)"))
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := w.gateway("a", into(m, db,
		StatementConfig{Filter: Filter{Types: []string{"connect"}}, SQL: "INSERT INTO keyed (user) VALUES (:user)"},
		StatementConfig{Filter: Filter{Types: []string{"disconnect"}}, SQL: "update keyed SET seat = :meta.seat WHERE user = :user"}))
	for _, user := range []string{"alice", "bob", "alice"} {
		w.happen(user)
	}
	for _, user := range []string{"alice", "bob"} {
		w.happen(user, "type", "disconnect", "meta", `{"seat":1}`)
	}
	w.happen("carol")
	w.wantRows(m, "SELECT user, seat FROM "+db+".keyed WHERE user <> 'bob' ORDER BY user", "alice 1", "carol NULL")
	if s := w.wantSettled(a); s.Refused != 1 || s.Delivered != 5 {
		t.Errorf("counted %+v", s)
	}
}

// What MySQL says of a value, in numbers that MariaDB has other states for.
func TestWhatIsTheLastWordOfADatabase(t *testing.T) {
	for name, tc := range map[string]struct {
		number uint16
		state  string
		last   bool
	}{
		"too long": {1406, "22001", true}, "null": {1048, "23000", true}, "no number, MySQL": {1366, "HY000", true},
		"no number, MariaDB": {1366, "22007", true}, "collations": {1267, "HY000", true}, "check, MySQL": {3819, "HY000", true},
		"signal": {1644, "45000", true}, "truncated": {1265, "01000", true}, "bracket, MySQL": {3696, "HY000", true}, "over a packet": {1301, "HY000", true},
		"deadlock": {1213, "40001", false}, "lock timeout": {1205, "HY000", false}, "no table": {1146, "42S02", false},
		"no right": {1142, "42000", false}, "read only": {1290, "HY000", false}, "shutdown": {1053, "08S01", false},
		"full": {1114, "HY000", false},
	} {
		err := &mysql.MySQLError{Number: tc.number}
		copy(err.SQLState[:], tc.state)
		if _, _, last := refusal(fmt.Errorf("executing: %w", err)); last != tc.last {
			t.Errorf("%s: %v", name, last)
		}
	}
}

// A database that needs longer for a batch than an attempt may take gets it in parts, without a pause in between: it does not fail.
func TestASlowDatabaseIsNoFailure(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	must(t, m.Exec("CREATE TABLE "+db+".slow (n INT PRIMARY KEY)"))
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	s := into(m, db, StatementConfig{SQL: "INSERT INTO slow SELECT :n FROM DUAL WHERE SLEEP(0.25) = 0"})
	s.Timeout = 3 * time.Second // a dozen of 20
	w.happenEach(1, 0, 20)
	a := w.gateway("a", s)
	w.wantRows(m, "SELECT COUNT(*) FROM "+db+".slow", "20")
	if got := w.wantSettled(a); got.Failures != 0 || got.Delivered != 20 {
		t.Errorf("counted %+v", got)
	}
}

// One connection is enough for several statements.
func TestOneConnectionIsEnough(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	must(t, m.Exec("CREATE TABLE "+db+".one (user VARCHAR(64) PRIMARY KEY, n INT)"))
	must(t, m.Exec("INSERT INTO "+db+".one VALUES ('user0', 0)"))
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	s := into(m, db, StatementConfig{SQL: "UPDATE one SET n = n + 1 WHERE user = :user"}, StatementConfig{SQL: "UPDATE one SET n = n + 10 WHERE user = :user"})
	s.Parallel, s.Timeout = 1, 10*time.Second
	w.gateway("a", s)
	w.happenEach(1, 0, 10)
	w.wantRows(m, "SELECT n FROM "+db+".one", "110")
}

// Two statements for one event are one transaction: both or none, also when a lock is waited for in vain and when there is a deadlock.
func TestTheStatementsOfAnEventAreOne(t *testing.T) {
	m, db := gatewaytest.SharedMariaDB(t)
	must(t, m.Exec("CREATE TABLE "+db+".a (user VARCHAR(64) PRIMARY KEY, n INT)"))
	must(t, m.Exec("CREATE TABLE "+db+".b (user VARCHAR(64) PRIMARY KEY, n INT)"))
	must(t, m.Exec("INSERT INTO "+db+".a VALUES ('user0', 0)"))
	must(t, m.Exec("INSERT INTO "+db+".b VALUES ('user0', 0)"))
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	s := into(m, db, StatementConfig{SQL: "UPDATE a SET n = n + 1 WHERE user = :user"}, StatementConfig{SQL: "UPDATE b SET n = n + 1 WHERE user = :user"})
	s.Timeout = 10 * time.Second
	g := w.gateway("a", s)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The second statement waits for a lock longer than the server lets it (1205), and then meets a deadlock (1213).
	tx, err := m.DB().BeginTx(ctx, nil)
	must(t, err)
	_, err = tx.ExecContext(ctx, "UPDATE "+db+".b SET n = n WHERE user = 'user0'")
	must(t, err)
	w.happenEach(1, 0, 10)
	w.eventually(func() error {
		if g.hooks.Stats()[0].Failures == 0 {
			return fmt.Errorf("no failure is seen")
		}
		return nil
	})
	w.wantRows(m, "SELECT n FROM "+db+".a", "0")
	must(t, tx.Rollback())
	w.wantRows(m, "SELECT a.n, b.n FROM "+db+".a, "+db+".b", "10 10")

	// Each waits for what the other has. The server ends the one that changed less: the gateway.
	must(t, m.Exec("CREATE TABLE "+db+".weight (n INT)"))
	for i := range 50 {
		before := g.hooks.Stats()[0].Failures
		tx, err := m.DB().BeginTx(ctx, nil)
		must(t, err)
		_, err = tx.ExecContext(ctx, "INSERT INTO "+db+".weight SELECT seq FROM "+db+".seq_1_to_100")
		must(t, err)
		_, err = tx.ExecContext(ctx, "UPDATE "+db+".b SET n = n WHERE user = 'user0'")
		must(t, err)
		w.happenEach(1, 10+i, 11+i)
		w.wantRows(m, "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'", "1")
		_, ours := tx.ExecContext(ctx, "UPDATE "+db+".a SET n = n WHERE user = 'user0'")
		_ = tx.Rollback()
		total := strconv.Itoa(11 + i)
		w.wantRows(m, "SELECT a.n, b.n FROM "+db+".a, "+db+".b", total+" "+total)
		if ours == nil && g.hooks.Stats()[0].Failures > before {
			return
		}
	}
	t.Error("the gateway was never in a deadlock")
}
