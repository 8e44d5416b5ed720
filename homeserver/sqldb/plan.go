package sqldb

import (
	"context"
	"fmt"
	"regexp"
	"strings"
)

// Scan is a statement that reads a whole table, or a whole index of it.
type Scan struct {
	Query, Table string
}

var (
	parameter = regexp.MustCompile(`[?$](\d+)`)
	scanned   = regexp.MustCompile(`^SCAN (\w+)`)
)

// Scans lists, of the statements that have been run, those whose cost grows with a
// table: what no request may do. It asks SQLite how it goes about them, and knows
// nothing of PostgreSQL.
func (db *DB) Scans(ctx context.Context) (list []Scan, err error) {
	if _, ok := db.dialect.(sqlite); !ok {
		return nil, nil
	}
	db.seen.Range(func(k, _ any) bool {
		text, _ := k.(string)
		var found []string
		if found, err = db.scans(ctx, text); err != nil {
			err = fmt.Errorf("%s: %w", text, err)
			return false
		}
		for _, table := range found {
			list = append(list, Scan{text, table})
		}
		return true
	})
	return list, err
}

func (db *DB) scans(ctx context.Context, text string) (tables []string, err error) {
	verb, _, _ := strings.Cut(strings.TrimSpace(text), " ")
	switch strings.ToUpper(verb) {
	case "SELECT", "WITH", "INSERT", "UPDATE", "DELETE":
	default:
		return nil, nil
	}
	highest := 0
	for _, m := range parameter.FindAllStringSubmatch(text, -1) {
		n := 0
		fmt.Sscan(m[1], &n)
		highest = max(highest, n)
	}
	rows, err := db.pool.QueryContext(ctx, "EXPLAIN QUERY PLAN "+text, make([]any, highest)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int64
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			return nil, err
		}
		if m := scanned.FindStringSubmatch(detail); m != nil {
			tables = append(tables, m[1])
		}
	}
	return tables, rows.Err()
}
