package matrix_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// FuzzIdentifiers holds what is taken for an identifier to its grammar.
func FuzzIdentifiers(f *testing.F) {
	for _, s := range []string{
		"@alice:a.example", "!room:a.example:8448", "!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM", "#alias:[::1]:443", "$event:a.example", "$acR1l0raoZnm60CBwAVgqbZqoO_mYU81xysh1u7XcJk",
		"@:", "@a:", "a.example", "1.2.3.4:80", "[2001:db8::1]", "@a:b:c", "@长:a.example", "@A:a.example",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text := func(what string, err error, sigil byte) {
			if err == nil && (s == "" || s[0] != sigil || len(s) > 255 || strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s)) {
				t.Errorf("%q is taken for %s", s, what)
			}
		}
		user, err := matrix.ParseUserID(s)
		text("a user ID", err, '@')
		if err == nil && (string("@"+user.Localpart()+":"+string(user.Server())) != s || !matrix.ValidServerName(string(user.Server()))) {
			t.Errorf("%q is cut into %q and %q", s, user.Localpart(), user.Server())
		}
		_, err = matrix.ParseRoomID(s)
		text("a room ID", err, '!')
		_, err = matrix.ParseRoomAlias(s)
		text("an alias", err, '#')
		_, err = matrix.ParseEventID(s)
		text("an event ID", err, '$')
		if matrix.ValidServerName(s) && (s == "" || len(s) > 255 || strings.ContainsAny(s, " /@\\\x00%?#") || !utf8.ValidString(s)) {
			t.Errorf("%q is taken for a server name", s)
		}
	})
}
