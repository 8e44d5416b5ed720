package devices_test

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
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

type server struct {
	t       *testing.T
	acc     *accounts.Accounts
	dev     *devices.Devices
	log     *stream.Log
	url     string
	dropped []matrix.DeviceID // by the keys
	now     time.Time
}

// DeleteDevice and ListChanged make the test its own keys.
func (s *server) DeleteDevice(_ *sqldb.Tx, _ matrix.UserID, d matrix.DeviceID) error {
	s.dropped = append(s.dropped, d)
	return nil
}

func (s *server) ListChanged(_ *sqldb.Tx, pos stream.Pos, u matrix.UserID, _ matrix.DeviceID) (stream.Change, error) {
	return stream.Change{Pos: pos, Kind: stream.KindDeviceList, User: u}, nil
}

func start(t *testing.T) *server {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s := &server{t: t, now: time.Now()}
	clock := func() time.Time { return s.now }
	ctx, cancel := context.WithCancel(context.Background())
	db := sqldbtest.Open(t)
	var err error
	s.log, err = stream.Open(ctx, db)
	must(err)
	s.dev, err = devices.New(ctx, db, s.log, s)
	must(err)
	s.acc, err = accounts.New(ctx, db, s.dev, accounts.Options{
		ServerName: "test", Passwords: accounts.PasswordCost{MemoryKiB: 64, Passes: 1}, Now: clock,
	})
	must(err)
	done := make(chan struct{})
	go func() { _ = s.log.Run(ctx); close(done) }()
	api := httpapi.New(httpapi.Options{Authenticator: s.acc, Now: clock})
	api.Add(s.acc.Routes()...)
	api.Add(s.dev.Routes(s.acc)...)
	srv := httptest.NewServer(api)
	s.url = srv.URL
	t.Cleanup(func() { srv.Close(); cancel(); <-done })
	must(s.acc.Create(ctx, accounts.NewUser{ID: "@alice:test", Password: "secret"}))
	must(s.acc.Create(ctx, accounts.NewUser{ID: "@root:test", Password: "secret", Admin: true}))
	return s
}

func (s *server) do(method, path, token, body string) (int, map[string]any) {
	s.t.Helper()
	a := httpapitest.Call(s.t, method, s.url+"/_matrix/client/v3"+path, token, strings.NewReader(body), "User-Agent", "test agent")
	var v map[string]any
	if err := json.Unmarshal(a.Body, &v); err != nil {
		s.t.Fatalf("%s %s: %d %s", method, path, a.Status, a.Body)
	}
	return a.Status, v
}

func (s *server) ok(method, path, token, body string) map[string]any {
	s.t.Helper()
	status, v := s.do(method, path, token, body)
	if status != 200 {
		s.t.Fatalf("%s %s: %d %v", method, path, status, v)
	}
	return v
}

func (s *server) login(user, device string) string {
	s.t.Helper()
	v := s.ok("POST", "/login", "", `{"type":"m.login.password","user":"`+user+`","password":"secret","device_id":"`+device+
		`","initial_device_display_name":"name of `+device+`"}`)
	return v["access_token"].(string)
}

const auth = `"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"secret"}`

func TestDevices(t *testing.T) {
	s := start(t)
	one, two := s.login("alice", "ONE"), s.login("alice", "TWO")
	three := s.login("alice", "THREE")
	v := s.ok("GET", "/devices", one, "")
	list := v["devices"].([]any)
	if len(list) != 3 {
		t.Fatalf("got %v", v)
	}
	d := s.ok("GET", "/devices/TWO", one, "")
	if d["display_name"] != "name of TWO" || d["user_id"] != "@alice:test" || d["last_seen_ip"] != "127.0.0.1" {
		t.Errorf("got %v", d)
	}
	head := s.log.Head()
	s.ok("PUT", "/devices/TWO", one, `{"display_name":"办公电脑"}`)
	s.ok("PUT", "/devices/TWO", one, `{}`)
	if d := s.ok("GET", "/devices/TWO", one, ""); d["display_name"] != "办公电脑" {
		t.Errorf("got %v", d)
	}
	names, err := s.dev.DisplayNames(context.Background(), []matrix.UserID{"@alice:test", "@root:test"})
	if err != nil || names["@alice:test"]["TWO"] != "办公电脑" || len(names["@alice:test"]) != 3 {
		t.Errorf("got %v, %v", names, err)
	}
	for _, tc := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/devices/NONE", "", 404, "M_NOT_FOUND"},
		{"PUT", "/devices/NONE", `{"display_name":"x"}`, 404, "M_NOT_FOUND"},
		{"PUT", "/devices/TWO", `{"display_name":"` + strings.Repeat("x", 2000) + `"}`, 400, "M_INVALID_PARAM"},
		{"PUT", "/devices/TWO", `{"display_name":"a\u0000b"}`, 400, "M_INVALID_PARAM"},
		{"PUT", "/devices/TWO", `{"display_name":1}`, 400, "M_BAD_JSON"},
		{"DELETE", "/devices/TWO", ``, 401, ""},
		{"POST", "/delete_devices", `{}`, 400, "M_MISSING_PARAM"},
		{"POST", "/delete_devices", `{"devices":["TWO"]}`, 401, ""},
	} {
		status, v := s.do(tc.method, tc.path, one, tc.body)
		if code, _ := v["errcode"].(string); status != tc.status || code != tc.code {
			t.Errorf("%s %s: %d %v", tc.method, tc.path, status, v)
		}
	}
	s.ok("DELETE", "/devices/TWO", one, `{`+auth+`}`)
	if status, _ := s.do("GET", "/account/whoami", two, ""); status != 401 {
		t.Errorf("the token of a deleted device answers %d", status)
	}
	s.ok("DELETE", "/devices/TWO", one, `{`+auth+`}`) // deleted before: no error
	s.ok("POST", "/delete_devices", one, `{"devices":["THREE","NONE","a\u0000"],`+auth+`}`)
	if status, _ := s.do("GET", "/account/whoami", three, ""); status != 401 {
		t.Errorf("the token of a deleted device answers %d", status)
	}
	s.ok("GET", "/account/whoami", one, "")
	if strings.Join(strs(s.dropped), " ") != "TWO NONE THREE" {
		t.Errorf("keys dropped of %v", s.dropped)
	}
	changes, err := s.log.Changes(context.Background(), head, s.log.Head(), 100)
	if err != nil {
		t.Fatal(err)
	}
	if len(changes) != 4 { // the name, the first deletion, two devices of the last
		t.Errorf("the log has %v", changes)
	}
	for _, c := range changes {
		if c.Kind != stream.KindDeviceList || c.User != "@alice:test" {
			t.Errorf("change %+v", c)
		}
	}
}

func strs(ids []matrix.DeviceID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
	}
	return out
}

func TestLastSeenAndWhois(t *testing.T) {
	s := start(t)
	alice, root := s.login("alice", "ONE"), s.login("root", "R")
	s.now = s.now.Add(10 * time.Minute)
	s.ok("GET", "/account/whoami", alice, "")
	want := float64(s.now.UnixMilli())
	s.now = s.now.Add(time.Minute) // too early to note it again
	s.ok("GET", "/account/whoami", alice, "")
	check := func() {
		t.Helper()
		v := s.ok("GET", "/admin/whois/@alice:test", root, "")
		con := v["devices"].(map[string]any)["ONE"].(map[string]any)["sessions"].([]any)[0].(map[string]any)["connections"].([]any)[0].(map[string]any)
		if con["last_seen"] != want || con["ip"] != "127.0.0.1" || con["user_agent"] != "test agent" {
			t.Errorf("got %v, want seen at %v", con, want)
		}
	}
	check() // from memory
	if err := s.dev.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	check() // from the database
	s.ok("GET", "/admin/whois/@alice:test", alice, "")
	if status, v := s.do("GET", "/admin/whois/@root:test", alice, ""); status != 403 {
		t.Errorf("%d %v", status, v)
	}
	if status, v := s.do("GET", "/admin/whois/@no:test", root, ""); status != 404 {
		t.Errorf("%d %v", status, v)
	}
}
