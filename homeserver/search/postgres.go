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

// Terms of the index tell in which stretches of places a document is, so that of a
// frequent word only the newest documents have to be fetched: it is looked for in the
// newest two stretches of each length, from the shortest on, and then everywhere. Few
// long stretches are asked for and not many short ones, as the index would go through
// those in place of a word that is rarer.
var stretches = [...]struct {
	name string
	bits int
}{{"a", 12}, {"b", 14}, {"c", 16}, {"d", 18}, {"e", 20}}

// appendStretch writes the term of a stretch, quoted.
func appendStretch(b []byte, name string, stretch int64) []byte {
	b = append(append(b, "'_s"...), name...)
	return append(strconv.AppendInt(b, stretch, 10), '\'')
}

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
	for _, t := range heads(terms) {
		b.WriteString("'=")
		b.WriteString(t)
		b.WriteString("' ")
	}
	for _, t := range scope { // words have no such character
		b.WriteString("'_")
		b.WriteString(t)
		b.WriteString("' ")
	}
	text := []byte(b.String())
	for _, s := range stretches {
		text = append(appendStretch(text, s.name, doc>>s.bits), ' ')
	}
	_, err := tx.Exec(qPutPostgres, doc, string(text))
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
	newest = min(newest, before-1)
	for i := 0; oldest <= newest && len(out) < limit; i++ {
		window, low := text, oldest
		if i < len(stretches) {
			s := stretches[i]
			top := newest >> s.bits
			low = max((top-1)<<s.bits, oldest)
			b := appendStretch(append([]byte(text), " & ("...), s.name, top)
			b = appendStretch(append(b, " | "...), s.name, top-1)
			window = string(append(b, ')'))
		}
		list, err := sqldb.Select(tx, scanHit, qFindPostgres, window, before, limit-len(out))
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
		if low == oldest {
			break
		}
		before = low // the next window holds this one
	}
	return out, nil
}

// tsquery is what PostgreSQL is asked for.
func tsquery(q wanted) string {
	var b strings.Builder
	for i, c := range q.clauses {
		if i > 0 {
			b.WriteString(" & ")
		}
		if head, ok := c.head(); ok {
			join(&b, []string{"=" + head}, "", "'")
			continue
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
