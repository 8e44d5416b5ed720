package sqldb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/lib/pq"
	sqlite3 "modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"
)

// dialect is all that differs between the two databases. This file is the only
// one that knows which is which.
type dialect interface {
	open(ctx context.Context, dsn string) (pool *sql.DB, unlock func(), err error)
	setup(writer bool) []string
	singleWriter() bool
	beginRead() string
	beginWrite() string
	translate(q string) string
	args(args []any) []any
	mapError(err error) error
	retryable(err error) bool
	broken(err error) bool
}

type sqlite struct{}

func (sqlite) open(_ context.Context, path string) (*sql.DB, func(), error) {
	if dir := filepath.Dir(path); dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, nil, err
		}
	}
	unlock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, nil, err
	}
	// The path is escaped: a "?" in it would begin the options.
	pool, err := sql.Open("sqlite", "file:"+strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path))
	if err != nil {
		unlock()
		return nil, nil, err
	}
	pool.SetMaxOpenConns(sqliteReaders + 1)
	pool.SetMaxIdleConns(sqliteReaders + 1)
	return pool, unlock, nil
}

func (sqlite) setup(writer bool) []string {
	s := []string{
		"PRAGMA busy_timeout = 10000", "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL",
		"PRAGMA foreign_keys = ON", "PRAGMA temp_store = MEMORY", "PRAGMA mmap_size = 268435456",
	}
	if writer {
		// A larger log between checkpoints: pages written often are copied back once.
		// A small cache: SQLite walks it at each commit, and the files are mapped.
		return append(s, "PRAGMA cache_size = -8192", "PRAGMA wal_autocheckpoint = 8000", "PRAGMA journal_size_limit = 67108864")
	}
	return append(s, "PRAGMA cache_size = -4096", "PRAGMA query_only = ON")
}

func (sqlite) singleWriter() bool   { return true }
func (sqlite) beginRead() string    { return "BEGIN" }
func (sqlite) beginWrite() string   { return "BEGIN IMMEDIATE" }
func (sqlite) broken(error) bool    { return false }
func (sqlite) retryable(error) bool { return false }

var (
	anyOf     = regexp.MustCompile(`=\s*ANY\s*\(\s*\$(\d+)\s*\)`)
	allOf     = regexp.MustCompile(`<>\s*ALL\s*\(\s*\$(\d+)\s*\)`)
	dollar    = regexp.MustCompile(`\$(\d+)`)
	bigserial = regexp.MustCompile(`(?i)\bBIGSERIAL PRIMARY KEY\b`)
	bytea     = regexp.MustCompile(`(?i)\bBYTEA\b`)
)

func (sqlite) translate(q string) string {
	q = anyOf.ReplaceAllString(q, "IN (SELECT value FROM json_each(?$1))")
	q = allOf.ReplaceAllString(q, "NOT IN (SELECT value FROM json_each(?$1))")
	q = dollar.ReplaceAllString(q, "?$1")
	q = bigserial.ReplaceAllString(q, "INTEGER PRIMARY KEY AUTOINCREMENT")
	return bytea.ReplaceAllString(q, "BLOB")
}

// args turns lists into JSON for json_each.
func (sqlite) args(args []any) []any {
	for i, a := range args {
		switch list := a.(type) {
		case []string:
			args[i] = jsonList(list)
		case []int64:
			args[i] = jsonList(list)
		}
	}
	return args
}

func jsonList[T any](list []T) string {
	if len(list) == 0 {
		return "[]"
	}
	b, err := json.Marshal(list)
	if err != nil { // strings and integers always encode
		return "[]"
	}
	return string(b)
}

func (sqlite) mapError(err error) error {
	var e *sqlite3.Error
	if errors.As(err, &e) {
		switch e.Code() {
		case sqlitelib.SQLITE_CONSTRAINT_UNIQUE, sqlitelib.SQLITE_CONSTRAINT_PRIMARYKEY, sqlitelib.SQLITE_CONSTRAINT_ROWID:
			return fmt.Errorf("%w: %w", ErrExists, err)
		}
	}
	return err
}

type postgres struct{}

// postgresLock is the advisory lock that the owning process holds; the key is
// taken with the schema so that several servers can share one database.
const postgresLock = "SELECT pg_try_advisory_lock(hashtext('carillon:' || current_schema()), 1)"

func (postgres) open(ctx context.Context, dsn string) (*sql.DB, func(), error) {
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		return nil, nil, err
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(postgresConns + 2)
	pool.SetMaxIdleConns(postgresConns + 2)
	guard, err := pool.Conn(ctx)
	if err != nil {
		pool.Close()
		return nil, nil, err
	}
	if err := takeLock(ctx, guard); err != nil {
		guard.Close()
		pool.Close()
		return nil, nil, err
	}
	return pool, func() { guard.Close() }, nil
}

// lockPatience is how long the session of an owner that has just ended, or was
// killed, may take to end in the database.
const lockPatience = 3 * time.Second

func takeLock(ctx context.Context, guard *sql.Conn) error {
	for deadline := time.Now().Add(lockPatience); ; {
		var got bool
		if err := guard.QueryRowContext(ctx, postgresLock).Scan(&got); err != nil || got {
			return err
		}
		if time.Now().After(deadline) {
			return ErrInUse
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// setup: statements are prepared once, often while the tables are still small;
// a plan that walks a small table whole would be kept when it is large. Such a plan
// that has no index to walk counts as immensely dear from then on, and the database
// would compile it to machine code for a tenth of a second to read three rows: so
// nothing is compiled.
func (postgres) setup(bool) []string {
	return []string{"SET enable_seqscan = off; SET jit = off"}
}

func (postgres) singleWriter() bool        { return false }
func (postgres) beginRead() string         { return "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" }
func (postgres) beginWrite() string        { return "BEGIN" }
func (postgres) translate(q string) string { return q }

func (postgres) args(args []any) []any {
	for i, a := range args {
		switch list := a.(type) {
		case []string:
			args[i] = pq.StringArray(list)
		case []int64:
			args[i] = pq.Int64Array(list)
		}
	}
	return args
}

func (postgres) mapError(err error) error {
	var e *pq.Error
	if errors.As(err, &e) && e.Code == "23505" {
		return fmt.Errorf("%w: %w", ErrExists, err)
	}
	return err
}

func (postgres) retryable(err error) bool {
	var e *pq.Error
	return errors.As(err, &e) && (e.Code == "40001" || e.Code == "40P01")
}

// broken reports whether the connection is gone: anything that the server did
// not itself say about a statement.
func (postgres) broken(err error) bool {
	var e *pq.Error
	if errors.As(err, &e) {
		return e.Code.Class() == "57" || e.Code.Class() == "08"
	}
	return errors.Is(err, sql.ErrConnDone) || strings.Contains(err.Error(), "bad connection") ||
		strings.Contains(err.Error(), "broken pipe") || strings.Contains(err.Error(), "EOF")
}
