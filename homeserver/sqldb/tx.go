package sqldb

import (
	"context"
	"database/sql"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Tx is a transaction under way. It is used by one goroutine and not after the
// function that received it has returned.
type Tx struct{ c *conn }

// Rows is a result being read; Close it or read it to its end.
type Rows struct {
	*sql.Rows
}

// Row is a result of at most one row.
type Row struct {
	rows *Rows
	err  error
}

// Exec runs a statement and returns the number of rows it changed.
func (tx *Tx) Exec(q string, args ...any) (int64, error) {
	if err := storable(args); err != nil {
		return 0, err
	}
	s, err := tx.c.stmt(q)
	if err != nil {
		return 0, tx.c.d.mapError(err)
	}
	r, err := s.ExecContext(context.Background(), tx.c.d.args(args)...)
	if err != nil {
		return 0, tx.c.d.mapError(err)
	}
	n, err := r.RowsAffected()
	return n, err
}

// Query runs a statement that returns rows.
func (tx *Tx) Query(q string, args ...any) (*Rows, error) {
	if err := storable(args); err != nil {
		return nil, err
	}
	s, err := tx.c.stmt(q)
	if err != nil {
		return nil, tx.c.d.mapError(err)
	}
	rows, err := s.QueryContext(context.Background(), tx.c.d.args(args)...)
	if err != nil {
		return nil, tx.c.d.mapError(err)
	}
	return &Rows{rows}, nil
}

// storable refuses text that only one of the databases could hold: NUL, and what
// is no UTF-8. It comes from outside, so whoever sent it gets to know.
func storable(args []any) error {
	for _, a := range args {
		var ok bool
		switch v := a.(type) {
		case nil, int64, int, bool, []byte, []int64, float64:
			continue
		case string:
			ok = isText(v)
		case []string:
			ok = true
			for _, s := range v {
				ok = ok && isText(s)
			}
		default:
			r := reflect.ValueOf(a)
			ok = r.Kind() != reflect.String || isText(r.String())
		}
		if !ok {
			return matrix.InvalidParam("text must be UTF-8 without the character NUL")
		}
	}
	return nil
}

func isText(s string) bool { return strings.IndexByte(s, 0) < 0 && utf8.ValidString(s) }

// QueryRow runs a statement for its first row.
func (tx *Tx) QueryRow(q string, args ...any) *Row {
	rows, err := tx.Query(q, args...)
	return &Row{rows, err}
}

// Scan reads the row's columns, or returns ErrNoRows.
func (r *Row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	return r.rows.Close()
}

// Select runs a query and scans every row.
func Select[T any](tx *Tx, scan func(*Rows) (T, error), q string, args ...any) ([]T, error) {
	rows, err := tx.Query(q, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}
