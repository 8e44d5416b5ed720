// Package sqldbtest opens databases for tests: a SQLite file of the test's own,
// or, where CARILLON_TEST_POSTGRES holds a connection string, a PostgreSQL
// schema of its own.
package sqldbtest

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Open returns an empty database that is closed and removed with the test.
func Open(t testing.TB) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// DSN returns the connection string of an empty database, for tests that open
// it more than once.
func DSN(t testing.TB) string {
	t.Helper()
	pg := os.Getenv("CARILLON_TEST_POSTGRES")
	if pg == "" {
		return filepath.Join(t.TempDir(), "test.db")
	}
	u, err := url.Parse(pg)
	if err != nil {
		t.Fatal(err)
	}
	schema := "t" + hex(matrix.RandomString(16))
	if err := sqldb.CreateSchema(context.Background(), pg, schema); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sqldb.DropSchema(context.Background(), pg, schema); err != nil {
			t.Log(err)
		}
	})
	q := u.Query()
	q.Set("search_path", schema)
	u.RawQuery = q.Encode()
	return u.String()
}

// hex keeps a schema's name to letters and digits.
func hex(s string) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 0, 2*len(s))
	for i := 0; i < len(s); i++ {
		b = append(b, digits[s[i]>>4], digits[s[i]&15])
	}
	return string(b)
}
