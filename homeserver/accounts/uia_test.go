package accounts_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
)

// strict is a server where registration asks for a token and for the terms.
func strict(t *testing.T) *server {
	return start(t, accounts.Options{
		Registration: accounts.Registration{
			Enabled: true, Flows: []accounts.Flow{{accounts.StageToken, accounts.StageTerms}},
			Policies: []accounts.Policy{{
				ID: "terms_of_service", Version: "1.2", Name: pages.Text{ZH: "服务条款", EN: "Terms of Service"},
				URL: pages.Text{ZH: "https://a.example/zh", EN: "https://a.example/en"},
			}},
		},
	})
}

// page fetches a page, or sends its form.
func (s *server) page(path string, form url.Values) (int, string) {
	s.t.Helper()
	var (
		resp *http.Response
		err  error
	)
	if form == nil {
		resp, err = http.Get(s.url + path)
	} else {
		resp, err = http.PostForm(s.url+path, form)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func fallbackPath(stage, session string) string {
	return v3 + "/auth/" + stage + "/fallback/web?session=" + url.QueryEscape(session)
}

func TestRegistrationWithTokenAndTerms(t *testing.T) {
	s := strict(t)
	if _, err := s.acc.CreateRegistrationToken(context.Background(), accounts.RegistrationToken{Token: "welcome"}); err != nil {
		t.Fatal(err)
	}
	body := obj{"username": "alice", "password": "secret"}
	ask := func(auth obj) answer {
		body["auth"] = auth
		return s.do("POST", v3+"/register", "", body)
	}
	first := ask(nil).want(401, "")
	session := first.str("session")
	params := first.body["params"].(obj)["m.login.terms"].(obj)["policies"].(obj)["terms_of_service"].(obj)
	if params["version"] != "1.2" || params["en"].(obj)["url"] != "https://a.example/en" || params["zh"].(obj)["name"] != "服务条款" {
		t.Errorf("params: %v", params)
	}
	// The stages have an order.
	ask(obj{"type": "m.login.terms", "session": session}).want(401, "M_UNRECOGNIZED")
	ask(obj{"type": "m.login.dummy", "session": session}).want(401, "M_UNRECOGNIZED")
	ask(obj{"type": "m.login.registration_token", "session": session, "token": "wrong"}).want(401, "M_UNAUTHORIZED")
	ask(obj{"type": "m.login.registration_token", "session": session, "token": "welcome"}).want(401, "")
	// A restart between two stages is not noticed.
	ask(obj{"session": session}).want(401, "")
	ask(obj{"type": "m.login.terms", "session": session}).ok()
	// The proof is used up.
	body["username"] = "bob"
	ask(obj{"session": session}).want(400, "M_UNKNOWN")
	if status, _ := s.page(fallbackPath("m.login.terms", session), nil); status != 400 {
		t.Errorf("the page of an ended session: %d", status)
	}
}

func TestFallbackPages(t *testing.T) {
	s := strict(t)
	if _, err := s.acc.CreateRegistrationToken(context.Background(), accounts.RegistrationToken{Token: "welcome"}); err != nil {
		t.Fatal(err)
	}
	body := obj{"username": "alice", "password": "secret"}
	session := s.do("POST", v3+"/register", "", body).want(401, "").str("session")
	done := "window.onAuthDone"
	if status, b := s.page(fallbackPath("m.login.terms", session), nil); status != 403 || strings.Contains(b, done) {
		t.Errorf("terms before the token: %d", status)
	}
	if status, b := s.page(fallbackPath("m.login.registration_token", session), nil); status != 200 || !strings.Contains(b, `name="token"`) {
		t.Errorf("token: %d %s", status, b)
	}
	if status, b := s.page(fallbackPath("m.login.registration_token", session), url.Values{"token": {"bad"}}); status != 401 || strings.Contains(b, done) {
		t.Errorf("bad token: %d", status)
	}
	if status, b := s.page(fallbackPath("m.login.registration_token", session), url.Values{"token": {" welcome "}}); status != 200 || !strings.Contains(b, done) {
		t.Errorf("token: %d %s", status, b)
	}
	if _, b := s.page(fallbackPath("m.login.terms", session), nil); !strings.Contains(b, "https://a.example/zh") || strings.Contains(b, done) {
		t.Errorf("terms: %s", b)
	}
	if _, b := s.page(fallbackPath("m.login.terms", session), url.Values{}); !strings.Contains(b, done) {
		t.Errorf("terms accepted: %s", b)
	}
	body["auth"] = obj{"session": session}
	s.do("POST", v3+"/register", "", body).ok()

	alice := s.login("alice", "secret", "X").ok().str("access_token")
	session = s.do("POST", "/_matrix/client/v1/login/get_token", alice, nil).want(401, "").str("session")
	if status, b := s.page(fallbackPath("m.login.password", session), url.Values{"password": {"wrong"}}); status != 403 || strings.Contains(b, done) {
		t.Errorf("wrong password: %d", status)
	}
	if _, b := s.page(fallbackPath("m.login.password", session), url.Values{"password": {"secret"}}); !strings.Contains(b, done) {
		t.Errorf("password: %s", b)
	}
	s.do("POST", "/_matrix/client/v1/login/get_token", alice, obj{"auth": obj{"session": session}}).ok()
	for _, path := range []string{
		fallbackPath("m.login.password", "nonsense"), fallbackPath("m.login.recaptcha", session), v3 + "/auth/m.login.password/fallback/web",
	} {
		if status, b := s.page(path, nil); status/100 != 4 || !strings.Contains(b, "<html") {
			t.Errorf("%s: %d %s", path, status, b)
		}
	}
}

func TestSessionsAreBoundAndEnd(t *testing.T) {
	s := open(t)
	alice, bob := s.register("alice", "secret"), s.register("bob", "secret2")
	getToken := "/_matrix/client/v1/login/get_token"
	session := s.do("POST", getToken, alice, nil).want(401, "").str("session")
	s.do("POST", getToken, bob, obj{"auth": passwordAuth("bob", "secret2", session)}).want(403, "M_FORBIDDEN")
	s.do("POST", v3+"/account/password", alice, obj{"new_password": "x", "auth": passwordAuth("alice", "secret", session)}).want(403, "M_FORBIDDEN")
	s.do("POST", getToken, alice, obj{"auth": passwordAuth("bob", "secret2", session)}).want(403, "M_FORBIDDEN")
	s.advance(25 * time.Hour)
	s.do("POST", getToken, alice, obj{"auth": passwordAuth("alice", "secret", session)}).want(400, "M_UNKNOWN")
}

func TestProofServesOneRequestOnly(t *testing.T) {
	s := open(t)
	alice := s.register("alice", "secret")
	getToken := "/_matrix/client/v1/login/get_token"
	session := s.do("POST", getToken, alice, nil).want(401, "").str("session")
	var good atomic.Int32
	finished := make(chan struct{})
	for range 8 {
		go func() {
			if s.do("POST", getToken, alice, obj{"auth": passwordAuth("alice", "secret", session)}).status == 200 {
				good.Add(1)
			}
			finished <- struct{}{}
		}()
	}
	for range 8 {
		<-finished
	}
	if good.Load() != 1 {
		t.Errorf("%d requests with one proof", good.Load())
	}
}

// What a closed account leaves is removed in the background, after a restart too.
func TestDeactivationGoesOnAfterARestart(t *testing.T) {
	s := open(t)
	opts := accounts.Options{Registration: accounts.Registration{Enabled: true, Dummy: true}}
	token := s.register("alice", "secret")
	s.acc.OnDeactivateLater(func(context.Context, matrix.UserID, bool) error { return errors.New("not yet") })
	s.do("POST", v3+"/account/deactivate", token, obj{"erase": true, "auth": passwordAuth("alice", "secret", "")}).ok()
	s.whoami(token).want(401, "M_UNKNOWN_TOKEN")
	for round, want := range []int32{1, 0} {
		s.restart(opts)
		var ran atomic.Int32
		s.acc.OnDeactivateLater(func(_ context.Context, u matrix.UserID, erase bool) error {
			if u == "@alice:test" && erase {
				ran.Add(1)
			}
			return nil
		})
		ctx, cancel := context.WithCancel(context.Background())
		over := make(chan struct{})
		go func() {
			_ = s.acc.Run(ctx)
			close(over)
		}()
		for end := time.Now().Add(5 * time.Second); ran.Load() < want && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		time.Sleep(50 * time.Millisecond)
		cancel()
		<-over
		if ran.Load() != want {
			t.Errorf("round %d: ran %d times, want %d", round, ran.Load(), want)
		}
	}
}
