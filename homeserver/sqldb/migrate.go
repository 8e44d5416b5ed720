package sqldb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sort"
	"strconv"
	"strings"
)

const (
	qMigrationsTable = `CREATE TABLE IF NOT EXISTS migrations (
		package TEXT NOT NULL, version INTEGER NOT NULL, checksum TEXT NOT NULL, PRIMARY KEY (package, version))`
	qMigrations      = `SELECT version, checksum FROM migrations WHERE package = $1 ORDER BY version`
	qInsertMigration = `INSERT INTO migrations (package, version, checksum) VALUES ($1, $2, $3)`
)

type migration struct {
	version  int
	name     string
	text     string
	checksum string
}

// Migrate brings the tables of pkg to the newest version found in fsys, which
// holds schema/NNNN_name.sql in PostgreSQL's spelling (or, where the databases
// part ways, a pair NNNN_name.postgres.sql and NNNN_name.sqlite.sql). Versions
// only go forward: a file that was applied must not change, and a database that
// is newer than the program is refused.
func (db *DB) Migrate(ctx context.Context, pkg string, fsys fs.FS) error {
	files, err := db.migrations(fsys)
	if err != nil {
		return fmt.Errorf("migrations of %s: %w", pkg, err)
	}
	err = db.Write(ctx, func(tx *Tx) error {
		if err := tx.script(qMigrationsTable); err != nil {
			return err
		}
		applied := map[int]string{}
		rows, err := tx.Query(qMigrations, pkg)
		if err != nil {
			return err
		}
		defer rows.Close()
		newest := 0
		for rows.Next() {
			var v int
			var sum string
			if err := rows.Scan(&v, &sum); err != nil {
				return err
			}
			applied[v], newest = sum, max(newest, v)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if n := len(files); n > 0 && newest > files[n-1].version || n == 0 && newest > 0 {
			return fmt.Errorf("the database is at version %d, newer than this program: use a newer one", newest)
		}
		for _, m := range files {
			if sum, ok := applied[m.version]; ok {
				if sum != m.checksum {
					return fmt.Errorf("%s was changed after it had been applied", m.name)
				}
				continue
			}
			if err := tx.script(m.text); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if _, err := tx.Exec(qInsertMigration, pkg, m.version, m.checksum); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("migrating %s: %w", pkg, err)
	}
	return nil
}

func (db *DB) migrations(fsys fs.FS) ([]migration, error) {
	entries, err := fs.ReadDir(fsys, "schema")
	if err != nil {
		return nil, err
	}
	mine, other := ".sqlite.sql", ".postgres.sql"
	if db.IsPostgres() {
		mine, other = other, mine
	}
	var out []migration
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".sql") || strings.HasSuffix(name, other) {
			continue
		}
		number, _, _ := strings.Cut(name, "_")
		v, err := strconv.Atoi(number)
		if err != nil || v < 1 {
			return nil, fmt.Errorf("%s does not begin with a number", name)
		}
		b, err := fs.ReadFile(fsys, path.Join("schema", name))
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(b)
		out = append(out, migration{version: v, name: name, text: string(b), checksum: hex.EncodeToString(sum[:8])})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].version < out[j].version })
	for i := 1; i < len(out); i++ {
		if out[i].version == out[i-1].version {
			return nil, errors.New("two files have version " + strconv.Itoa(out[i].version))
		}
	}
	return out, nil
}

// script runs several statements separated by ";" at the end of a line. They
// are not kept prepared.
func (tx *Tx) script(text string) error {
	var lines []string
	for _, line := range strings.Split(text, "\n") {
		if i := strings.Index(line, "--"); i >= 0 {
			line = line[:i]
		}
		lines = append(lines, strings.TrimRight(line, " \t\r"))
	}
	for _, q := range strings.Split(strings.Join(lines, "\n")+"\n", ";\n") {
		if strings.TrimSpace(q) == "" {
			continue
		}
		if _, err := tx.c.c.ExecContext(context.Background(), tx.c.d.translate(q)); err != nil {
			return tx.c.d.mapError(err)
		}
	}
	return nil
}
