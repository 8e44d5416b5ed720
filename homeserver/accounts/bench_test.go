package accounts_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/devices"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// TestLogoutBeatsLookup runs requests with a token against its log-out: once that is answered the token is dead.
func TestLogoutBeatsLookup(t *testing.T) {
	s := open(t)
	s.register("alice", "secret")
	for i := range 10 {
		token := s.login("alice", "secret", fmt.Sprint("D", i)).ok().str("access_token")
		var wg sync.WaitGroup
		var out atomic.Bool
		for range 4 {
			wg.Go(func() {
				for range 20 {
					was := out.Load()
					req, _ := http.NewRequest("GET", "/", nil)
					req.Header.Set("Authorization", "Bearer "+token)
					if _, err := s.acc.Authenticate(req); err == nil && was {
						t.Error("a token was good after its log-out")
					}
				}
			})
		}
		if err := s.dev.Delete(context.Background(), "@alice:test", []matrix.DeviceID{matrix.DeviceID(fmt.Sprint("D", i))}); err != nil {
			t.Fatal(err)
		}
		out.Store(true)
		wg.Wait()
	}
}

func benchmark(b *testing.B) *accounts.Accounts {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	db := sqldbtest.Open(b)
	log, err := stream.Open(ctx, db)
	if err != nil {
		b.Fatal(err)
	}
	dev, err := devices.New(ctx, db, log, nil)
	if err != nil {
		b.Fatal(err)
	}
	acc, err := accounts.New(ctx, db, dev, accounts.Options{ServerName: "test", Passwords: cheap, ApplicationServices: []*accounts.ApplicationService{{
		ID: "a", ASToken: "as", HSToken: "hs", SenderLocalpart: "bot", Namespaces: accounts.Namespaces{Users: []accounts.Namespace{{Regex: "@u.*"}}},
	}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cancel)
	return acc
}

// BenchmarkAuthenticateService is a request of an application service for one of its users.
func BenchmarkAuthenticateService(b *testing.B) {
	acc := benchmark(b)
	if err := acc.Create(context.Background(), accounts.NewUser{ID: "@u1:test", AppService: "a"}); err != nil {
		b.Fatal(err)
	}
	req, _ := http.NewRequest("GET", "/x?user_id=@u1:test", nil)
	req.Header.Set("Authorization", "Bearer as")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := acc.Authenticate(req); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreate makes accounts without passwords, 64 at a time.
func BenchmarkCreate(b *testing.B) {
	acc := benchmark(b)
	var n atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			err := acc.Create(context.Background(), accounts.NewUser{ID: matrix.UserID(fmt.Sprintf("@u%d:test", n.Add(1))), AppService: "a"})
			if err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkAuthenticate is a request with a known token.
func BenchmarkAuthenticate(b *testing.B) {
	acc := benchmark(b)
	api := httpapi.New(httpapi.Options{Authenticator: acc})
	api.Add(acc.Routes()...)
	w := httptest.NewRecorder()
	body := strings.NewReader(`{"type":"m.login.application_service","identifier":{"type":"m.id.user","user":"bot"}}`)
	login := httptest.NewRequest("POST", "/_matrix/client/v3/login", body)
	login.Header.Set("Authorization", "Bearer as")
	api.ServeHTTP(w, login)
	var session struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &session); err != nil || session.Token == "" {
		b.Fatal(w.Body.String())
	}
	req, _ := http.NewRequest("GET", "/x", nil)
	req.Header.Set("Authorization", "Bearer "+session.Token)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := acc.Authenticate(req); err != nil {
			b.Fatal(err)
		}
	}
}
