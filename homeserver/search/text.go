package search

import (
	"iter"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

const (
	// maxTerms is how many terms of one text are indexed; what follows is not found.
	maxTerms = 16000
	// maxWord is the length in characters after which a word is cut off.
	maxWord = 64
	// maxClauses is how many words of a search are looked for, and maxPhrase how
	// many terms of one of them.
	maxClauses = 32
	maxPhrase  = 64
	// prefixFrom is the length from which a word also finds those that begin with it,
	// and prefixTo the length up to which such beginnings are in the index themselves.
	prefixFrom = 3
	prefixTo   = 10
)

// script says how a run of characters is cut into terms.
type script uint8

const (
	none  script = iota // nothing to search for
	word                // written with spaces: a word is one term
	dense               // written without: each pair of neighbours is a term
)

// denseScripts are those in which words have no spaces between them, and Hangul,
// where particles cling to them.
var denseScripts = []*unicode.RangeTable{
	unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul, unicode.Bopomofo, unicode.Yi,
	unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar, unicode.Tibetan,
}

func scriptOf(r rune, before script) script {
	switch {
	case r < utf8.RuneSelf:
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return word
		}
		return none
	case r >= 0x4e00 && r <= 0x9fff, r == 'ー':
		return dense
	case unicode.IsMark(r):
		return before
	case !unicode.IsLetter(r) && !unicode.IsNumber(r):
		return none
	case unicode.In(r, denseScripts...):
		return dense
	}
	return word
}

// runs cuts a text into its words and its runs of dense script, in order. They
// are composed, full-width and half-width forms are made the same, but the case
// is still that of the text.
func runs(text string) iter.Seq2[string, script] {
	return func(yield func(run string, kind script) bool) {
		text := norm.NFKC.String(strings.ToValidUTF8(text, " "))
		start, kind := 0, none
		for i, r := range text {
			k := scriptOf(r, kind)
			if k == kind {
				continue
			}
			if kind != none && !yield(text[start:i], kind) {
				return
			}
			start, kind = i, k
		}
		if kind != none {
			yield(text[start:], kind)
		}
	}
}

// fold makes a run the same however it is capitalised or accented.
func fold(run string) string {
	plain := true
	for i := range len(run) {
		if c := run[i]; c >= utf8.RuneSelf || 'A' <= c && c <= 'Z' {
			plain = false
			break
		}
	}
	if plain {
		return cut(run)
	}
	var b strings.Builder
	n := 0
	for _, r := range run {
		if n++; n > maxWord {
			break
		}
		if unicode.In(r, unicode.Latin, unicode.Greek, unicode.Cyrillic) {
			r = base(r)
		}
		if r == 'ß' || r == 'ẞ' {
			b.WriteString("ss")
			continue
		}
		b.WriteRune(unicode.ToLower(unicode.ToUpper(r)))
	}
	return b.String()
}

// base is a letter without its accents.
func base(r rune) rune {
	if r < utf8.RuneSelf {
		return r
	}
	d := norm.NFD.PropertiesString(string(r)).Decomposition()
	if len(d) == 0 {
		return r
	}
	first, _ := utf8.DecodeRune(d)
	if first == r {
		return r
	}
	return base(first)
}

func cut(s string) string {
	if len(s) <= maxWord {
		return s
	}
	return s[:maxWord]
}

// pairs appends the terms of a run of dense script: each character with the next
// one, and the last one alone, so that a search for one character finds it in
// every place by what begins with it.
func pairs(list []string, run string) []string {
	for i, r := range run {
		n := utf8.RuneLen(r)
		_, m := utf8.DecodeRuneInString(run[i+n:])
		list = append(list, run[i:i+n+m])
	}
	return list
}

// Terms are what a text is found by, in the order of the text. They have
// letters, digits and marks in them and nothing else.
func Terms(text string) []string {
	list := make([]string, 0, len(text)/4+1)
	for run, kind := range runs(text) {
		if len(list) >= maxTerms {
			break
		}
		if kind == word {
			list = append(list, fold(run))
		} else {
			list = pairs(list, run)
		}
	}
	return list[:min(len(list), maxTerms)]
}

// heads are the beginnings by which terms are found, each once: of a word those of
// prefixFrom to prefixTo characters, of a pair of neighbours the first one. In the
// index like terms, they are read from the newest document on; the database would
// merge the lists of all terms with such a beginning before it knew the first.
func heads(terms []string) []string {
	var list []string
	seen := map[string]bool{}
	add := func(s string) {
		if !seen[s] {
			seen[s] = true
			list = append(list, s)
		}
	}
	for _, t := range terms {
		first, n := utf8.DecodeRuneInString(t)
		if scriptOf(first, none) == dense {
			add(t[:n])
			continue
		}
		n = 0
		for i := range t {
			if n >= prefixFrom {
				add(t[:i])
			}
			if n++; n > prefixTo {
				break
			}
		}
		if n >= prefixFrom && n <= prefixTo {
			add(t)
		}
	}
	return list
}

// clause is what one word of a search asks for: terms that stand one after
// another, the last of them as the beginning of a term where prefix is set.
type clause struct {
	terms  []string
	prefix bool
}

// head is the beginning that the index has for the clause, if it has it.
func (c clause) head() (string, bool) {
	if !c.prefix || utf8.RuneCountInString(c.terms[0]) > prefixTo {
		return "", false
	}
	return c.terms[0], true
}

// matches reports whether a folded word is found by the clause.
func (c clause) matches(folded string) bool {
	return len(c.terms) == 1 && (folded == c.terms[0] || c.prefix && strings.HasPrefix(folded, c.terms[0]))
}

// compile reads the words of a search, all of which must be found, and how they
// are written.
func compile(text string) (list []clause, written []string) {
	seen := map[string]bool{}
	for run, kind := range runs(text) {
		if len(list) == maxClauses {
			break
		}
		var c clause
		if kind == word {
			w := fold(run)
			c = clause{[]string{w}, utf8.RuneCountInString(w) >= prefixFrom}
		} else {
			c.terms = pairs(nil, run)
			if c.prefix = len(c.terms) == 1; !c.prefix {
				c.terms = c.terms[:min(len(c.terms)-1, maxPhrase)] // without the last character alone
			}
		}
		if key := strings.Join(c.terms, " "); !seen[key] {
			seen[key] = true
			list = append(list, c)
			written = append(written, run)
		}
	}
	return list, written
}

// maxHighlights bounds the words that clients are told to mark.
const maxHighlights = 100

// highlights are the words of a search as it wrote them, and the words of the
// found texts that they have found.
func highlights(list []clause, written, texts []string) []string {
	out := slices.Clone(written)
	for _, text := range texts {
		for run, kind := range runs(text) {
			if kind != word || len(out) >= maxHighlights {
				continue
			}
			w := fold(run)
			if slices.ContainsFunc(list, func(c clause) bool { return c.matches(w) }) && !slices.Contains(out, run) {
				out = append(out, run)
			}
		}
	}
	return out
}
