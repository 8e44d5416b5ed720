package clients_test

import (
	"testing"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// people registers accounts and is the input of a script.
func people(s *hstest.Server, names ...string) input {
	in := input{URL: s.URL, Server: string(s.Name), People: map[string]person{}}
	for _, n := range names {
		u := s.User(n)
		in.People[n] = person{UserID: string(u.UserID), Name: n, Password: "password of " + n}
	}
	return in
}

func TestBrowser(t *testing.T) {
	t.Parallel()
	script(t, "browser.mjs", people(hstest.New(t), "zhou"))
}
