package search

import (
	"strings"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	qPutSQLite    = `INSERT OR REPLACE INTO search_terms (rowid, body, heads, scope) VALUES ($1, $2, $3, $4)`
	qRemoveSQLite = `DELETE FROM search_terms WHERE rowid = $1`
	qFindSQLite   = `SELECT ` + hitColumns + ` FROM search_terms t JOIN search_docs d ON d.doc = t.rowid
WHERE t.search_terms MATCH $1 AND t.rowid < $2 ORDER BY t.rowid DESC LIMIT $3`
)

// sqliteTerms is a full-text table of SQLite (FTS5) without a copy of the texts.
type sqliteTerms struct{}

func (sqliteTerms) put(tx *sqldb.Tx, doc int64, terms, scope []string) error {
	_, err := tx.Exec(qPutSQLite, doc, strings.Join(terms, " "), strings.Join(heads(terms), " "), strings.Join(scope, " "))
	return err
}

func (sqliteTerms) remove(tx *sqldb.Tx, doc int64) error {
	_, err := tx.Exec(qRemoveSQLite, doc)
	return err
}

func (sqliteTerms) find(tx *sqldb.Tx, q wanted, before int64, limit int) ([]hit, error) {
	var b strings.Builder
	for i, c := range q.clauses {
		if i > 0 {
			b.WriteString(" AND ")
		}
		if head, ok := c.head(); ok {
			b.WriteString(`{heads} : `)
			join(&b, []string{head}, "", `"`)
			continue
		}
		b.WriteString(`{body} : `)
		join(&b, c.terms, " + ", `"`)
		if c.prefix {
			b.WriteString(" *")
		}
	}
	for _, any := range q.scopes {
		b.WriteString(` AND {scope} : (`)
		join(&b, any, " OR ", `"`)
		b.WriteByte(')')
	}
	return sqldb.Select(tx, scanHit, qFindSQLite, b.String(), before, limit)
}

// join writes terms, which have nothing in them that would end a quotation.
func join(b *strings.Builder, terms []string, sep, quote string) {
	for i, t := range terms {
		if i > 0 {
			b.WriteString(sep)
		}
		b.WriteString(quote)
		b.WriteString(t)
		b.WriteString(quote)
	}
}
