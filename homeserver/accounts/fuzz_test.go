package accounts_test

import (
	"testing"

	"github.com/carillon-chat/carillon/homeserver/accounts"
)

func FuzzParseRegistration(f *testing.F) {
	f.Add([]byte("id: a\nurl: http://a:1\nas_token: a\nhs_token: h\nsender_localpart: bot\nnamespaces:\n  users: [{exclusive: true, regex: '@a_.*'}]\n"))
	f.Add([]byte("id: [1]\nurl: null\n"))
	f.Add([]byte("id: &a [*a]\n"))
	f.Add([]byte("id: a\nas_token: a\nhs_token: h\nsender_localpart: bot\nnamespaces: {rooms: [{regex: '(('}]}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		as, err := accounts.ParseRegistration(b)
		if err != nil {
			return
		}
		if as.ID == "" || as.ASToken == "" || as.HSToken == "" || as.SenderLocalpart == "" {
			t.Errorf("accepted: %q", b)
		}
	})
}
