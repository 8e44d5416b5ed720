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
	qEndsPostgres = `SELECT COALESCE(MIN(doc), 0), COALESCE(MAX(doc), -1) FROM search_docs WHERE doc < $1`
)

// A term of the index tells of which stretch of places a document is, so that of a
// frequent word only the newest documents have to be fetched: the stretches are
// gone through in windows, each larger than the one before.
const (
	stretchBits = 13
	firstWindow = 2   // stretches
	growth      = 4   // of a window over the one before
	lastWindow  = 128 // what is older is asked for at once
)

func stretchTerm(stretch int64) string { return "_e" + strconv.FormatInt(stretch, 10) }

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
	b.WriteByte('\'')
	b.WriteString(stretchTerm(doc >> stretchBits))
	b.WriteByte('\'')
	_, err := tx.Exec(qPutPostgres, doc, b.String())
	return err
}

func (postgresTerms) remove(tx *sqldb.Tx, doc int64) error {
	_, err := tx.Exec(qRemovePostgres, doc)
	return err
}

func (postgresTerms) find(tx *sqldb.Tx, q wanted, before int64, limit int) ([]hit, error) {
	text := tsquery(q)
	var oldest, newest int64
	if err := tx.QueryRow(qEndsPostgres, before).Scan(&oldest, &newest); err != nil {
		return nil, err
	}
	var out []hit
	top := newest >> stretchBits
	for size := int64(firstWindow); oldest <= newest && len(out) < limit; size *= growth {
		low := top - size + 1
		last := size > lastWindow || low <= oldest>>stretchBits
		window := text
		if !last || size <= lastWindow {
			window += " & (" + stretches(max(low, oldest>>stretchBits), top) + ")"
		}
		list, err := sqldb.Select(tx, scanHit, qFindPostgres, window, min(before, (top+1)<<stretchBits), limit-len(out))
		if err != nil {
			return nil, err
		}
		if out = append(out, list...); last {
			break
		}
		top = low - 1
	}
	return out, nil
}

// stretches asks for documents of stretches from low to top.
func stretches(low, top int64) string {
	var b strings.Builder
	for s := top; s >= low; s-- {
		if s < top {
			b.WriteString(" | ")
		}
		b.WriteString("'" + stretchTerm(s) + "'")
	}
	return b.String()
}

// tsquery is what PostgreSQL is asked for.
func tsquery(q wanted) string {
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
	return b.String()
}
