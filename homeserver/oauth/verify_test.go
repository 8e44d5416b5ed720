package oauth_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// verify checks an ID token as a client library does that finds the keys by itself.
func verify(t *testing.T, w *world, token string) {
	t.Helper()
	p, err := oidc.NewProvider(t.Context(), w.URL+"/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verifier(&oidc.Config{ClientID: w.client}).Verify(t.Context(), token); err != nil {
		t.Error(err)
	}
}

// send sends a body of any kind.
func (w *world) send(path, kind, body string) hstest.Answer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), "POST", w.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	return w.Send(r)
}
