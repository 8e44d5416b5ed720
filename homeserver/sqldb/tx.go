package sqldb

import (
	"context"
	"database/sql"
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
