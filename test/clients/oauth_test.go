package clients_test

import (
	"testing"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// People sign in on the pages of the server, and the client is let in by the OAuth 2.0 API.
func TestOAuth(t *testing.T) {
	t.Parallel()
	script(t, "oauth.mjs", people(hstest.New(t, hstest.OAuth), "meiling", "olivia"))
}
