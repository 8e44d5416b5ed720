package sqldb

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/lib/pq"
)

// CreateSchema makes a PostgreSQL schema; give its name as search_path in the
// connection string to keep several servers in one database.
func CreateSchema(ctx context.Context, dsn, name string) error {
	return withPostgres(ctx, dsn, "CREATE SCHEMA IF NOT EXISTS "+pq.QuoteIdentifier(name))
}

// DropSchema removes a PostgreSQL schema with all that is in it.
func DropSchema(ctx context.Context, dsn, name string) error {
	return withPostgres(ctx, dsn, "DROP SCHEMA IF EXISTS "+pq.QuoteIdentifier(name)+" CASCADE")
}

func withPostgres(ctx context.Context, dsn, q string) error {
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		return fmt.Errorf("connection string: %w", err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	_, err = db.ExecContext(ctx, q)
	return err
}
