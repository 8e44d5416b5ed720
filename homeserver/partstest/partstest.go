// Package partstest builds, for tests of the parts that show rooms to clients,
// a server up to the floor below them: a log, events, the hub and rooms that
// work, and an API in which the bearer token is the user ID.
//
// It owns no tables. A part under test adds its routes and subscribes to the
// log between New and Run.
package partstest

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/devices"
	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// The server and its people.
const (
	Here  matrix.ServerName = "a.example"
	Alice matrix.UserID     = "@alice:a.example"
	Bob   matrix.UserID     = "@bob:a.example"
	Carol matrix.UserID     = "@carol:a.example"
	Admin matrix.UserID     = "@admin:a.example"
)

// World is a server up to the rooms.
type World struct {
	T      testing.TB
	Ctx    context.Context
	DB     *sqldb.DB
	Log    *stream.Log
	Events *events.Store
	Hub    *hub.Hub
	Rooms  *rooms.Rooms
	API    *httpapi.API
	Stop   func() // ends what Run began; so does the end of the test
}

// New opens the floors below. Of opts, the signer is filled in, and the profile
// where there is none.
func New(t testing.TB, db *sqldb.DB, opts rooms.Options) *World {
	t.Helper()
	ctx := context.Background()
	w := &World{T: t, Ctx: ctx, DB: db, API: httpapi.New(httpapi.Options{Authenticator: httpapitest.ByToken{}})}
	var err error
	if w.Log, err = stream.Open(ctx, db); err != nil {
		t.Fatal(err)
	}
	if w.Events, err = events.New(ctx, db); err != nil {
		t.Fatal(err)
	}
	w.Hub = hub.New(w.Log, Here)
	opts.Signer = events.Signer{
		Server: Here, KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed([]byte(fmt.Sprintf("%-32s", Here))[:32]),
	}
	if opts.Profile == nil {
		opts.Profile = func(_ context.Context, u matrix.UserID) (string, string, error) { return u.Localpart(), "", nil }
	}
	if w.Rooms, err = rooms.New(ctx, db, w.Log, w.Events, w.Hub, opts); err != nil {
		t.Fatal(err)
	}
	return w
}

// Accounts opens the accounts, with one for each of the people.
func (w *World) Accounts() *accounts.Accounts {
	w.T.Helper()
	keys, err := e2ee.New(w.Ctx, w.DB, w.Log, Here, nil)
	if err != nil {
		w.T.Fatal(err)
	}
	dev, err := devices.New(w.Ctx, w.DB, w.Log, keys)
	if err != nil {
		w.T.Fatal(err)
	}
	acc, err := accounts.New(w.Ctx, w.DB, dev, accounts.Options{ServerName: Here})
	if err != nil {
		w.T.Fatal(err)
	}
	for _, u := range []matrix.UserID{Alice, Bob, Carol, Admin} {
		if acc.Exists(u) { // the database was opened before
			continue
		}
		if err := acc.Create(w.Ctx, accounts.NewUser{ID: u}); err != nil {
			w.T.Fatal(err)
		}
	}
	return acc
}

// Run starts the log and the given loops.
func (w *World) Run(loops ...func(context.Context) error) {
	ctx, cancel := context.WithCancel(w.Ctx)
	var wg sync.WaitGroup
	for _, loop := range loops {
		wg.Go(func() { loop(ctx) })
	}
	logCtx, stopLog := context.WithCancel(w.Ctx)
	done := make(chan struct{})
	go func() { w.Log.Run(logCtx); close(done) }()
	w.Stop = sync.OnceFunc(func() { cancel(); wg.Wait(); stopLog(); <-done })
	w.T.Cleanup(w.Stop)
}

// Room makes a public room with its members.
func (w *World) Room(creator matrix.UserID, members ...matrix.UserID) matrix.RoomID {
	w.T.Helper()
	room, err := w.Rooms.Create(w.Ctx, creator, rooms.CreateRequest{Preset: "public_chat"}, 0)
	if err != nil {
		w.T.Fatal(err)
	}
	for _, u := range members {
		w.Join(room, u)
	}
	return room
}

// Join lets a user join.
func (w *World) Join(room matrix.RoomID, user matrix.UserID) {
	w.T.Helper()
	if err := w.Rooms.Join(w.Ctx, rooms.MemberChange{Room: room, Sender: user, Target: user}); err != nil {
		w.T.Fatal(err)
	}
}

// Send sends a message event.
func (w *World) Send(room matrix.RoomID, user matrix.UserID, typ, content string) matrix.EventID {
	w.T.Helper()
	return w.draft(rooms.Draft{Room: room, Sender: user, Type: typ, Content: json.RawMessage(content)})
}

// Say sends a text.
func (w *World) Say(room matrix.RoomID, user matrix.UserID, text string) matrix.EventID {
	w.T.Helper()
	return w.Send(room, user, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":%q}`, text))
}

// Set sends a state event.
func (w *World) Set(room matrix.RoomID, user matrix.UserID, typ, key, content string) matrix.EventID {
	w.T.Helper()
	return w.draft(rooms.Draft{Room: room, Sender: user, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
}

// Redact redacts an event.
func (w *World) Redact(room matrix.RoomID, user matrix.UserID, id matrix.EventID) {
	w.T.Helper()
	w.draft(rooms.Draft{
		Room: room, Sender: user, Type: "m.room.redaction", Redacts: id, Content: json.RawMessage(fmt.Sprintf(`{"redacts":%q}`, id)),
	})
}

func (w *World) draft(d rooms.Draft) matrix.EventID {
	w.T.Helper()
	id, err := w.Rooms.Send(w.Ctx, d)
	if err != nil {
		w.T.Fatal(err)
	}
	return id
}

// Do makes a request as user ("" is nobody) and returns status and body.
func (w *World) Do(user matrix.UserID, method, path, body string) (int, string) {
	w.T.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, path, r)
	if user != "" {
		req.Header.Set("Authorization", "Bearer "+string(user))
	}
	rec := httptest.NewRecorder()
	w.API.ServeHTTP(rec, req)
	return rec.Code, rec.Body.String()
}

// Want makes a request and checks its status and errcode ("" for none).
func (w *World) Want(user matrix.UserID, method, path, body string, status int, errcode string) string {
	w.T.Helper()
	code, out := w.Do(user, method, path, body)
	var e struct {
		Code string `json:"errcode"`
	}
	json.Unmarshal([]byte(out), &e)
	if code != status || e.Code != errcode {
		w.T.Fatalf("%s %s %s: %d %s, want %d %s", method, path, body, code, out, status, errcode)
	}
	return out
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still waiting: " + what)
		}
	}
}
