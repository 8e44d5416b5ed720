package search

import (
	"strconv"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	qPutPostgres = `INSERT INTO search_terms (doc, terms) VALUES ($1, $2::tsvector)
ON CONFLICT (doc) DO UPDATE SET terms = excluded.terms`
	qRemovePostgres = `DELETE FROM search_terms WHERE doc = $1`
	// The inner query stands apart so that the index of terms is used, and not
	// that of the order, which would read the whole table for a rare word.
	qFindPostgres = `WITH found AS MATERIALIZED (SELECT doc FROM search_terms WHERE terms @@ $1::tsquery)
SELECT ` + hitColumns + ` FROM found JOIN search_docs d ON d.doc = found.doc WHERE found.doc < $2 ORDER BY found.doc DESC LIMIT $3`
)

// postgresTerms is a column of text search vectors with an inverted index.
type postgresTerms struct{}

func (postgresTerms) put(tx *sqldb.Tx, doc int64, terms, scope []string) error {
	var b strings.Builder
	for i, t := range terms {
		b.WriteByte('\'')
		b.WriteString(t)
		b.WriteString("':")
		b.WriteString(strconv.Itoa(i + 1))
		b.WriteByte(' ')
	}
	for _, t := range scope { // words have no such character
		b.WriteString("'_")
		b.WriteString(t)
		b.WriteString("' ")
	}
	_, err := tx.Exec(qPutPostgres, doc, b.String())
	return err
}

func (postgresTerms) remove(tx *sqldb.Tx, doc int64) error {
	_, err := tx.Exec(qRemovePostgres, doc)
	return err
}

func (postgresTerms) find(tx *sqldb.Tx, q wanted, before int64, limit int) ([]hit, error) {
	var b strings.Builder
	for i, c := range q.clauses {
		if i > 0 {
			b.WriteString(" & ")
		}
		b.WriteByte('(')
		join(&b, c.terms, " <-> ", "'")
		if c.prefix {
			b.WriteString(":*")
		}
		b.WriteByte(')')
	}
	for _, any := range q.scopes {
		b.WriteString(" & ('_")
		b.WriteString(strings.Join(any, "' | '_"))
		b.WriteString("')")
	}
	return sqldb.Select(tx, scanHit, qFindPostgres, b.String(), before, limit)
}
