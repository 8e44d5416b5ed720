package search

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestHeads(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"v2", ""},
		{"the", "the"},
		{"word words", "wor word words"},
		{"项目进项", "项 目 进"},
		{"Étude台", "etu etud etude 台"},
		{"abcdefghijklmn", "abc abcd abcde abcdef abcdefg abcdefgh abcdefghi abcdefghij"},
		{"abcdefghij", "abc abcd abcde abcdef abcdefg abcdefgh abcdefghi abcdefghij"},
	} {
		if got := strings.Join(heads(Terms(c.text)), " "); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}

// FuzzHeads: a text is found by a beginning exactly when one of its terms begins so.
func FuzzHeads(f *testing.F) {
	f.Add("the deployment of v2", "deploy")
	f.Add("本周五下午三点", "周")
	f.Add("ß naïve ＡＢＣ ก็ ー", "ก็")
	f.Fuzz(func(t *testing.T, text, asked string) {
		terms := Terms(text)
		list := heads(terms)
		for _, h := range list {
			if h == "" || !utf8.ValidString(h) {
				t.Fatalf("%q gives the beginning %q", text, h)
			}
		}
		clauses, _ := compile(asked)
		for _, c := range clauses {
			head, ok := c.head()
			if !ok {
				continue
			}
			begins := slices.ContainsFunc(terms, func(s string) bool { return strings.HasPrefix(s, head) })
			if begins != slices.Contains(list, head) {
				t.Fatalf("%q searched for in %q: begins a term: %v, is a beginning: %v", head, text, begins, !begins)
			}
		}
	})
}
