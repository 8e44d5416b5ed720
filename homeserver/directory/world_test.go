package directory_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
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
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	here  matrix.ServerName = "a.example"
	alice matrix.UserID     = "@alice:a.example"
	bob   matrix.UserID     = "@bob:a.example"
	carol matrix.UserID     = "@carol:a.example"
	admin matrix.UserID     = "@admin:a.example"
)

// world is a server up to the floor below this package's, with rooms that work.
type world struct {
	t     testing.TB
	ctx   context.Context
	db    *sqldb.DB
	log   *stream.Log
	store *events.Store
	hub   *hub.Hub
	rooms *rooms.Rooms
	acc   *accounts.Accounts
	api   *httpapi.API
	stop  func()
}

// byName takes the bearer token for the user ID.
type byName struct{}

func (byName) Authenticate(r *http.Request) (*httpapi.Caller, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, matrix.MissingToken()
	}
	user, device, _ := strings.Cut(token, "|")
	return &httpapi.Caller{User: matrix.UserID(user), Device: matrix.DeviceID(device), Admin: strings.HasPrefix(user, "@admin:")}, nil
}

// newWorld opens the floors below; run begins the log once the package under
// test has subscribed to it.
func newWorld(t testing.TB, db *sqldb.DB, opts rooms.Options) *world {
	t.Helper()
	ctx := context.Background()
	w := &world{t: t, ctx: ctx, db: db, api: httpapi.New(httpapi.Options{Authenticator: byName{}})}
	var err error
	if w.log, err = stream.Open(ctx, db); err != nil {
		t.Fatal(err)
	}
	if w.store, err = events.New(ctx, db); err != nil {
		t.Fatal(err)
	}
	w.hub = hub.New(w.log, here)
	keys, err := e2ee.New(ctx, db, w.log, here, nil)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := devices.New(ctx, db, w.log, keys)
	if err != nil {
		t.Fatal(err)
	}
	if w.acc, err = accounts.New(ctx, db, dev, accounts.Options{ServerName: here}); err != nil {
		t.Fatal(err)
	}
	for _, u := range []matrix.UserID{alice, bob, carol, admin} {
		if !w.acc.Exists(u) {
			if err := w.acc.Create(ctx, accounts.NewUser{ID: u}); err != nil {
				t.Fatal(err)
			}
		}
	}
	key := ed25519.NewKeyFromSeed([]byte(fmt.Sprintf("%-32s", here))[:32])
	opts.Signer = events.Signer{Server: here, KeyID: "ed25519:1", Key: key}
	if w.rooms, err = rooms.New(ctx, db, w.log, w.store, w.hub, opts); err != nil {
		t.Fatal(err)
	}
	return w
}

// run starts the log and the given loops.
func (w *world) run(loops ...func(context.Context) error) {
	ctx, cancel := context.WithCancel(w.ctx)
	var wg sync.WaitGroup
	for _, loop := range loops {
		wg.Go(func() { loop(ctx) })
	}
	logCtx, stopLog := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() { w.log.Run(logCtx); close(done) }()
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait(); stopLog(); <-done })
	w.t.Cleanup(w.stop)
}

// room makes a public room with its members.
func (w *world) room(creator matrix.UserID, members ...matrix.UserID) matrix.RoomID {
	w.t.Helper()
	room, err := w.rooms.Create(w.ctx, creator, rooms.CreateRequest{Preset: "public_chat"}, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, u := range members {
		w.join(room, u)
	}
	return room
}

func (w *world) join(room matrix.RoomID, user matrix.UserID) {
	w.t.Helper()
	if err := w.rooms.Join(w.ctx, rooms.MemberChange{Room: room, Sender: user, Target: user}); err != nil {
		w.t.Fatal(err)
	}
}

// send sends a message event.
func (w *world) send(room matrix.RoomID, user matrix.UserID, typ, content string) matrix.EventID {
	w.t.Helper()
	id, err := w.rooms.Send(w.ctx, rooms.Draft{Room: room, Sender: user, Type: typ, Content: json.RawMessage(content)})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) say(room matrix.RoomID, user matrix.UserID, text string) matrix.EventID {
	w.t.Helper()
	return w.send(room, user, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":%q}`, text))
}

// set sends a state event.
func (w *world) set(room matrix.RoomID, user matrix.UserID, typ, key, content string) matrix.EventID {
	w.t.Helper()
	id, err := w.rooms.Send(w.ctx, rooms.Draft{Room: room, Sender: user, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) redact(room matrix.RoomID, user matrix.UserID, id matrix.EventID) {
	w.t.Helper()
	_, err := w.rooms.Send(w.ctx, rooms.Draft{
		Room: room, Sender: user, Type: "m.room.redaction", Redacts: id, Content: json.RawMessage(fmt.Sprintf(`{"redacts":%q}`, id)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// do makes a request as user ("" is nobody) and returns status and body.
func (w *world) do(user matrix.UserID, method, path, body string) (int, string) {
	w.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, path, r)
	if user != "" {
		req.Header.Set("Authorization", "Bearer "+string(user))
	}
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, req)
	return rec.Code, rec.Body.String()
}

// want makes a request and checks its status and errcode ("" for none).
func (w *world) want(user matrix.UserID, method, path, body string, status int, errcode string) string {
	w.t.Helper()
	code, out := w.do(user, method, path, body)
	var e struct {
		Code string `json:"errcode"`
	}
	json.Unmarshal([]byte(out), &e)
	if code != status || e.Code != errcode {
		w.t.Fatalf("%s %s %s: %d %s, want %d %s", method, path, body, code, out, status, errcode)
	}
	return out
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still waiting: " + what)
		}
	}
}
