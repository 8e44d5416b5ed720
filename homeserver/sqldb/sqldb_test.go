package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	qAdd   = `INSERT INTO things (id, name, data, ok) VALUES ($1, $2, $3, $4)`
	qNames = `SELECT name FROM things WHERE id = ANY($1) ORDER BY id`
	qRest  = `SELECT id FROM things WHERE name <> ALL($1) ORDER BY id`
	qCount = `SELECT count(*) FROM things`
	qFlip  = `UPDATE things SET ok = NOT ok WHERE id = $2 AND name = $1`
	qOne   = `SELECT name, data, ok FROM things WHERE id = $1`
	qAuto  = `INSERT INTO numbered (name) VALUES ($1) RETURNING id`
)

func schema(extra ...string) fstest.MapFS {
	m := fstest.MapFS{"schema/0001_things.sql": {Data: []byte(`
-- things have names; a comment; with semicolons;
CREATE TABLE things (id BIGINT PRIMARY KEY, name TEXT NOT NULL UNIQUE, data BYTEA, ok BOOLEAN NOT NULL);
CREATE TABLE numbered (id BIGSERIAL PRIMARY KEY, name TEXT NOT NULL);
`)}}
	for i, text := range extra {
		m[fmt.Sprintf("schema/%04d_more.sql", i+2)] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

func open(t testing.TB) *sqldb.DB {
	t.Helper()
	db := sqldbtest.Open(t)
	if err := db.Migrate(t.Context(), "things", schema()); err != nil {
		t.Fatal(err)
	}
	return db
}

func count(t testing.TB, db *sqldb.DB) (n int) {
	t.Helper()
	if err := db.Read(t.Context(), func(tx *sqldb.Tx) error { return tx.QueryRow(qCount).Scan(&n) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// One text must mean the same to both databases.
func TestOneTextForBoth(t *testing.T) {
	db := open(t)
	ctx := t.Context()
	err := db.Write(ctx, func(tx *sqldb.Tx) error {
		for i, name := range []string{"一", "b'\"", "c"} {
			if _, err := tx.Exec(qAdd, i, name, []byte{0, byte(i)}, i == 1); err != nil {
				return err
			}
		}
		if n, err := tx.Exec(qFlip, "c", 2); err != nil || n != 1 { // $2 stands before $1
			return fmt.Errorf("flipped %d: %w", n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Read(ctx, func(tx *sqldb.Tx) error {
		names, err := sqldb.Select(tx, func(r *sqldb.Rows) (s string, err error) { err = r.Scan(&s); return s, err }, qNames, []int64{2, 0, 7})
		if err != nil || fmt.Sprint(names) != "[一 c]" {
			t.Errorf("names %v, %v", names, err)
		}
		for want, list := range map[string][]string{"[0 2]": {"b'\""}, "[0 1 2]": {}, "[1]": {"一", "c"}} {
			ids, err := sqldb.Select(tx, func(r *sqldb.Rows) (n int, err error) { err = r.Scan(&n); return n, err }, qRest, list)
			if err != nil || fmt.Sprint(ids) != want {
				t.Errorf("not in %q: %v, %v; want %s", list, ids, err, want)
			}
		}
		var name string
		var data []byte
		var ok bool
		if err := tx.QueryRow(qOne, 2).Scan(&name, &data, &ok); err != nil || name != "c" || len(data) != 2 || data[1] != 2 || !ok {
			t.Errorf("row 2: %q %v %v %v", name, data, ok, err)
		}
		if err := tx.QueryRow(qOne, 9).Scan(&name, &data, &ok); !errors.Is(err, sqldb.ErrNoRows) {
			t.Errorf("no row: %v", err)
		}
		if _, err := tx.Exec(qAdd, 9, "x", nil, true); err == nil {
			t.Error("a read has written")
		}
		return nil
	})
	if err != nil && !db.IsPostgres() { // PostgreSQL ends the transaction that tried to write
		t.Error(err)
	}
	if n := count(t, db); n != 3 {
		t.Errorf("%d rows", n)
	}
	var first, second int64
	err = db.Write(ctx, func(tx *sqldb.Tx) error {
		if err := tx.QueryRow(qAuto, "a").Scan(&first); err != nil {
			return err
		}
		return tx.QueryRow(qAuto, "b").Scan(&second)
	})
	if err != nil || second != first+1 {
		t.Errorf("numbers %d, %d: %v", first, second, err)
	}
}

// Writes share a commit; one that fails, or panics, takes no other with it.
func TestWritesAreApart(t *testing.T) {
	db := open(t)
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			err := db.Write(context.Background(), func(tx *sqldb.Tx) error {
				if _, err := tx.Exec(qAdd, i, fmt.Sprint("n", i), nil, true); err != nil {
					return err
				}
				switch i % 10 {
				case 3:
					return boom
				case 7:
					_, err := tx.Exec(qAdd, 1000+i, "n0", nil, true) // taken, or takes the place of number 0
					return err
				}
				return nil
			})
			if i%10 == 3 && !errors.Is(err, boom) {
				t.Errorf("write %d: %v", i, err)
			}
			if i%10 != 3 && i%10 != 7 && i != 0 && err != nil {
				t.Errorf("write %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	// 160 good ones, and of those that want the name n0 exactly one more.
	if n := count(t, db); n != 160 && n != 161 {
		t.Errorf("%d rows", n)
	}
	err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qAdd, 5, "other", nil, true)
		return err
	})
	if !errors.Is(err, sqldb.ErrExists) {
		t.Errorf("the same key again: %v", err)
	}
}

// More readers than connections, each of which reads again while it holds one,
// would wait for ever if the pool could not grow; it is enough that they finish.
func TestManyReaders(t *testing.T) {
	db := open(t)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for range 20 {
				if err := db.Read(context.Background(), func(tx *sqldb.Tx) error {
					var n int
					return tx.QueryRow(qCount).Scan(&n)
				}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestMigrations(t *testing.T) {
	db := open(t)
	ctx := t.Context()
	if err := db.Migrate(ctx, "things", schema()); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := db.Migrate(ctx, "things", schema("ALTER TABLE things ADD COLUMN more TEXT NOT NULL DEFAULT '';\n")); err != nil {
		t.Errorf("forward: %v", err)
	}
	if err := db.Migrate(ctx, "things", schema()); err == nil {
		t.Error("an older program has opened a newer database")
	}
	changed := schema("ALTER TABLE things ADD COLUMN other TEXT;\n")
	if err := db.Migrate(ctx, "things", changed); err == nil {
		t.Error("a changed migration went unnoticed")
	}
	broken := schema("ALTER TABLE things ADD COLUMN more TEXT NOT NULL DEFAULT '';\n", "CREATE TABLE half (id BIGINT);\nCREATE TABLE things (id BIGINT);\n")
	if err := db.Migrate(ctx, "things", broken); err == nil {
		t.Error("a failing migration passed")
	}
	if err := db.Write(ctx, func(tx *sqldb.Tx) error { _, err := tx.Exec(`INSERT INTO half (id) VALUES (1)`); return err }); err == nil {
		t.Error("half of a failed migration is there")
	}
}

func TestOneProcessOwnsADatabase(t *testing.T) {
	dsn := sqldbtest.DSN(t)
	db, err := sqldb.Open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sqldb.Open(dsn); !errors.Is(err, sqldb.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	db.Close()
	if err := db.Read(t.Context(), func(*sqldb.Tx) error { return nil }); !errors.Is(err, sqldb.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if err := db.Write(t.Context(), func(*sqldb.Tx) error { return nil }); !errors.Is(err, sqldb.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	again, err := sqldb.Open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestPathsWithOddCharacters(t *testing.T) {
	db, err := sqldb.Open(filepath.Join(t.TempDir(), "a b?c#d%e", "数据.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Migrate(t.Context(), "things", schema()); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkWrite(b *testing.B) {
	db := open(b)
	b.SetParallelism(32)
	var mu sync.Mutex
	i := 0
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			i++
			n := i
			mu.Unlock()
			if err := db.Write(b.Context(), func(tx *sqldb.Tx) error {
				_, err := tx.Exec(qAdd, n, fmt.Sprint(n), nil, true)
				return err
			}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func TestTextThatOneDatabaseCannotHoldIsRefusedByBoth(t *testing.T) {
	db := sqldbtest.Open(t)
	type name string
	for _, arg := range []any{"a\x00b", "\xff", name("\x00"), []string{"fine", "\x00"}} {
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Query(`SELECT $1`, arg)
			return err
		})
		if !matrix.IsCode(err, "M_INVALID_PARAM") {
			t.Errorf("%q: %v", arg, err)
		}
	}
	if err := db.Migrate(t.Context(), "things", schema()); err != nil {
		t.Fatal(err)
	}
	if err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qAdd, 1, "name", []byte{0, 0xff}, true)
		return err
	}); err != nil {
		t.Errorf("bytes: %v", err)
	}
}
