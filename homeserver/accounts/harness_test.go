package accounts_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/devices"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// cheap makes passwords cost little in tests.
var cheap = accounts.PasswordCost{MemoryKiB: 64, Passes: 1}

// server is accounts and devices behind a socket.
type server struct {
	t    *testing.T
	dsn  string
	acc  *accounts.Accounts
	dev  *devices.Devices
	url  string
	stop func()

	mu  sync.Mutex
	now time.Time
}

func (s *server) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *server) advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

func start(t *testing.T, opts accounts.Options) *server {
	t.Helper()
	s := &server{t: t, dsn: sqldbtest.DSN(t), now: time.Now()}
	s.open(opts)
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *server) restart(opts accounts.Options) {
	s.t.Helper()
	s.stop()
	s.open(opts)
}

func (s *server) open(opts accounts.Options) {
	t := s.t
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	db, err := sqldb.Open(s.dsn)
	must(err)
	log, err := stream.Open(ctx, db)
	must(err)
	s.dev, err = devices.New(ctx, db, log, nil)
	must(err)
	opts.ServerName, opts.Passwords, opts.Now = "test", cheap, s.clock
	s.acc, err = accounts.New(ctx, db, s.dev, opts)
	must(err)
	done := make(chan struct{})
	go func() {
		_ = log.Run(ctx)
		close(done)
	}()
	api := httpapi.New(httpapi.Options{Authenticator: s.acc, Now: s.clock})
	api.Add(s.acc.Routes()...)
	api.Add(s.dev.Routes(s.acc)...)
	srv := httptest.NewServer(api)
	s.url = srv.URL
	s.stop = func() {
		srv.Close()
		cancel()
		<-done
		db.Close()
		s.stop = func() {}
	}
}

type obj = map[string]any

type answer struct {
	t      *testing.T
	what   string
	status int
	body   obj
}

// do makes a request; body may be nil, bytes or anything that becomes JSON.
func (s *server) do(method, path, token string, body any) answer {
	s.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		r = bytes.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			s.t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	got := httpapitest.Call(s.t, method, s.url+path, token, r)
	a := answer{t: s.t, what: method + " " + path, status: got.Status}
	if err := json.Unmarshal(got.Body, &a.body); err != nil {
		s.t.Fatalf("%s answered %d and no JSON: %v", a.what, a.status, err)
	}
	return a
}

// ok fails the test unless the answer is 200.
func (a answer) ok() answer {
	a.t.Helper()
	if a.status != 200 {
		a.t.Fatalf("%s: %d %v", a.what, a.status, a.body)
	}
	return a
}

// want checks status and errcode; "" is no errcode.
func (a answer) want(status int, code string) answer {
	a.t.Helper()
	got, _ := a.body["errcode"].(string)
	if a.status != status || got != code {
		a.t.Errorf("%s: got %d %q, want %d %q: %v", a.what, a.status, got, status, code, a.body)
	}
	return a
}

func (a answer) str(key string) string {
	a.t.Helper()
	s, _ := a.body[key].(string)
	return s
}

const v3 = "/_matrix/client/v3"

// open is a server where anybody may register.
func open(t *testing.T) *server {
	return start(t, accounts.Options{Registration: accounts.Registration{Enabled: true, Dummy: true}})
}

// register makes a user and returns the access token.
func (s *server) register(name, password string) string {
	s.t.Helper()
	return s.do("POST", v3+"/register", "", obj{
		"username": name, "password": password, "device_id": "D" + name, "auth": obj{"type": "m.login.dummy"},
	}).ok().str("access_token")
}

func (s *server) login(name, password, device string) answer {
	s.t.Helper()
	return s.do("POST", v3+"/login", "", obj{
		"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": name}, "password": password, "device_id": device,
	})
}

func (s *server) whoami(token string) answer {
	s.t.Helper()
	return s.do("GET", v3+"/account/whoami", token, nil)
}

func passwordAuth(name, password, session string) obj {
	return obj{
		"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": name}, "password": password, "session": session,
	}
}

// admin makes an administrator.
func (s *server) admin(name string) string {
	s.t.Helper()
	token := s.register(name, "secret")
	if err := s.acc.SetAdmin(context.Background(), matrix.UserID("@"+name+":test"), true); err != nil {
		s.t.Fatal(err)
	}
	return token
}
