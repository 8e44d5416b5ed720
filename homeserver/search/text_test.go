package search_test

import (
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/homeserver/search"
)

func TestTerms(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{" \t…!?", ""},
		{"Hello, World", "hello world"},
		{"foo_bar-BAZ don't", "foo bar baz don t"},
		{"项目进度", "项目 目进 进度 度"},
		{"我", "我"},
		{"iPhone手机8台", "iphone 手机 机 8 台"},
		{"ＡＢＣ　１２３，项目", "abc 123 项目 目"},
		{"ｶﾞｰﾄﾞ", "ガー ード ド"},
		{"コーヒー", "コー ーヒ ヒー ー"},
		{"Café ÉCOLE naïve Ångström", "cafe ecole naive angstrom"},
		{"straße STRASSE", "strasse strasse"},
		{"ΣΊΣΥΦΟΣ σίσυφος", "σισυφοσ σισυφοσ"},
		{"Ёлка", "елка"},
		{"회의실을", "회의 의실 실을 을"},
		{"\x00a\xffb\u0000", "a b"},
		{"𠮷野家", "𠮷野 野家 家"},
		{strings.Repeat("x", 100), strings.Repeat("x", 64)},
	} {
		if got := strings.Join(search.Terms(c.text), " "); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
	if n := len(search.Terms(strings.Repeat("字", 30000))); n != 16000 {
		t.Errorf("a long text has %d terms", n)
	}
}

func FuzzTerms(f *testing.F) {
	for _, s := range []string{"Hello, wörld 项目进度 ｶﾞ １２", "a'b\"c\\d_e", "\xff\x00", "ภาษาไทย", "ﷺ", "e\u0301\u0301ß"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list := search.Terms(s)
		for _, term := range list {
			if term == "" || !utf8.ValidString(term) || len(term) > 600 {
				t.Fatalf("%q gives the term %q", s, term)
			}
			for _, r := range term {
				if !unicode.IsLetter(r) && !unicode.IsNumber(r) && !unicode.IsMark(r) && r != 'ー' {
					t.Fatalf("%q gives the term %q with %U", s, term, r)
				}
			}
		}
		// Capitals and full-width forms make no difference where they have one.
		if wide := strings.Map(func(r rune) rune {
			if '!' <= r && r <= '~' {
				return r + 0xfee0
			}
			return r
		}, s); utf8.ValidString(s) && !slices.Equal(list, search.Terms(wide)) {
			t.Fatalf("%q: %q, full-width %q", s, list, search.Terms(wide))
		}
	})
}
