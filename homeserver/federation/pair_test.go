package federation_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/devices"
	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/federation"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/carillon-chat/carillon/homeserver/typing"
)

// world is a network of servers under one certificate authority.
type world struct {
	t         testing.TB
	authority *httpapitest.Authority
	notaries  []serverkeys.Notary // of the servers that start from now on

	mu    sync.Mutex
	addrs map[string]string             // "name:8448" to what is listened on
	deaf  map[matrix.ServerName]bool    // these lose all transactions
	lost  []byte                        // what they were sent
	cuts  map[[2]matrix.ServerName]bool // no line is between these
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{t: t, authority: httpapitest.NewAuthority(t), addrs: map[string]string{}, deaf: map[matrix.ServerName]bool{}, cuts: map[[2]matrix.ServerName]bool{}}
}

// deafen makes servers lose what they are sent; they still ask and answer.
func (w *world) deafen(list ...*server) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range list {
		w.deaf[s.name] = true
	}
}

func (w *world) hearing(s *server, h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		deaf := w.deaf[s.name] && strings.Contains(r.URL.Path, "/send/")
		w.mu.Unlock()
		if deaf {
			body, _ := io.ReadAll(r.Body)
			w.mu.Lock()
			w.lost = append(w.lost, body...)
			w.mu.Unlock()
			_, _ = rw.Write([]byte(`{"pdus":{}}`))
			return
		}
		h.ServeHTTP(rw, r)
	})
}

// cut takes the line between two servers away, or gives it back.
func (w *world) cut(a, b matrix.ServerName, away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cuts[[2]matrix.ServerName{a, b}], w.cuts[[2]matrix.ServerName{b, a}] = away, away
}

// dialer reaches the other servers from one of them.
func (w *world) dialer(from matrix.ServerName) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		w.mu.Lock()
		to, ok := w.addrs[addr]
		cut := w.cuts[[2]matrix.ServerName{from, matrix.ServerName(strings.TrimSuffix(addr, ":8448"))}]
		w.mu.Unlock()
		if !ok || cut {
			return nil, fmt.Errorf("%s cannot be reached", addr)
		}
		return new(net.Dialer).DialContext(ctx, network, to)
	}
}

// server is one homeserver of the world, without its client API.
type server struct {
	w        *world
	name     matrix.ServerName
	own      *serverkeys.Own
	db       *sqldb.DB
	log      *stream.Log
	hub      *hub.Hub
	rooms    *rooms.Rooms
	events   *events.Store
	receipts *receipts.Receipts
	typing   *typing.Typing
	presence *presence.Presence
	keys     *e2ee.Service
	devices  *devices.Devices
	accounts *accounts.Accounts
	profiles *profiles.Profiles
	dir      *directory.Directory
	client   *fedclient.Client
	fed      *federation.Federation
	remote   *federation.Remote
	api      *httpapi.API
	stop     func()
}

// disk is what a server keeps over a restart.
type disk struct{ dsn, keys string }

func (w *world) start(name matrix.ServerName, d disk) *server {
	w.t.Helper()
	ctx := context.Background()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	s := &server{w: w, name: name}
	var err error
	s.db, err = sqldb.Open(d.dsn)
	must(err)
	own, err := serverkeys.Load(d.keys, name)
	must(err)
	s.own = own
	s.client, err = fedclient.New(fedclient.Options{Own: own, ExtraCAs: w.authority.PEM, Dial: w.dialer(name), Resolver: &net.Resolver{
		PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no name service") },
	}})
	must(err)
	ring, err := serverkeys.NewRing(ctx, s.db, own, s.client, serverkeys.Options{Notaries: w.notaries})
	must(err)
	remote := federation.NewRemote(s.client, ring)
	s.remote = remote
	s.log, err = stream.Open(ctx, s.db)
	must(err)
	keys, err := e2ee.New(ctx, s.db, s.log, name, nil)
	must(err)
	s.hub = hub.New(s.log, name)
	s.devices, err = devices.New(ctx, s.db, s.log, keys)
	must(err)
	s.accounts, err = accounts.New(ctx, s.db, s.devices, accounts.Options{ServerName: name})
	must(err)
	s.events, err = events.New(ctx, s.db)
	must(err)
	s.rooms, err = rooms.New(ctx, s.db, s.log, s.events, s.hub, rooms.Options{
		Signer: events.Signer{Server: name, KeyID: string(own.KeyID()), Key: own.Private()}, Remote: remote,
		Profile: func(_ context.Context, u matrix.UserID) (string, string, error) {
			n := s.profiles.Name(u)
			return n.DisplayName, n.AvatarURL, nil
		},
		Exists: func(_ context.Context, u matrix.UserID) (bool, error) { return s.accounts.Exists(u), nil },
		ClaimAlias: func(tx *sqldb.Tx, a matrix.RoomAlias, r matrix.RoomID, u matrix.UserID) error {
			return s.dir.ClaimAlias(tx, a, r, u)
		},
		Publish: func(tx *sqldb.Tx, r matrix.RoomID) error { return s.dir.Publish(tx, r) },
	})
	must(err)
	s.profiles, err = profiles.New(ctx, s.db, s.accounts, s.rooms, profiles.Options{Server: name, Remote: remote})
	must(err)
	s.dir, err = directory.New(ctx, s.db, s.accounts, s.profiles, s.rooms, s.hub, directory.Options{Server: name, Remote: remote})
	must(err)
	s.accounts.OnCreate(s.profiles.Created)
	data, err := accountdata.New(ctx, s.db, s.log)
	must(err)
	s.receipts, err = receipts.New(ctx, s.db, s.log, name, receipts.NewPlaces(s.events, s.log), s.hub, data, nil)
	must(err)
	s.typing = typing.New(s.log, s.hub, name, nil)
	s.presence, err = presence.New(ctx, s.db, s.log, true, name, s.hub, nil)
	must(err)
	s.keys = e2ee.NewService(keys, e2ee.Deps{Devices: s.devices, Rooms: s.hub, Remote: remote, ShareNames: true})
	s.fed, err = federation.New(ctx, s.db, s.log, federation.Parts{
		Client: s.client, Hub: s.hub, Rooms: s.rooms, Events: s.events, Receipts: s.receipts, Typing: s.typing,
		Presence: s.presence, Keys: s.keys, Profiles: s.profiles, Directory: s.dir, Version: "test",
	})
	must(err)
	api := httpapi.New(httpapi.Options{OriginVerifier: federation.NewVerifier(ring, s.fed.Alive), Authenticator: anybody{}})
	s.api = api
	api.Add(s.fed.Routes()...)
	api.Add(s.fed.OpenIDRoutes()...)
	api.Add(s.keys.Routes()...)
	api.Add(ring.Routes()...)
	srv := httptest.NewUnstartedServer(w.hearing(s, api))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{w.authority.Certificate(string(name))}}
	srv.StartTLS()
	w.mu.Lock()
	w.addrs[string(name)+":8448"] = srv.Listener.Addr().String()
	w.mu.Unlock()

	runCtx, cancel := context.WithCancel(ctx)
	logCtx, stopLog := context.WithCancel(ctx)
	var wg, logWG sync.WaitGroup
	logWG.Add(1)
	go func() { defer logWG.Done(); _ = s.log.Run(logCtx) }()
	for _, run := range []func(context.Context) error{s.fed.Run, s.typing.Run, s.receipts.Run, s.presence.Run, s.rooms.RunSilences} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := run(runCtx); err != nil {
				w.t.Errorf("%s: %v", name, err)
			}
		}()
	}
	var once sync.Once
	s.stop = func() {
		once.Do(func() {
			w.mu.Lock()
			delete(w.addrs, string(name)+":8448")
			w.mu.Unlock()
			srv.CloseClientConnections()
			srv.Close()
			cancel()
			wg.Wait()
			stopLog()
			logWG.Wait()
			s.client.Close()
			s.db.Close()
		})
	}
	w.t.Cleanup(s.stop)
	return s
}

// anybody takes the token for "user device".
type anybody struct{}

func (anybody) Authenticate(r *http.Request) (*httpapi.Caller, error) {
	u, d, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), " ")
	return &httpapi.Caller{User: matrix.UserID(u), Device: matrix.DeviceID(d)}, nil
}

// call makes a client's request.
func (s *server) call(user matrix.UserID, device, method, path, body string) string {
	s.w.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+string(user)+" "+device)
	rec := httptest.NewRecorder()
	s.api.ServeHTTP(rec, r)
	if rec.Code != http.StatusOK {
		s.w.t.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
	}
	return rec.Body.String()
}

func newDisk(t testing.TB) disk { return disk{sqldbtest.DSN(t), t.TempDir()} }

// pair starts two servers.
func pair(t testing.TB) (a, b *server) {
	t.Helper()
	w := newWorld(t)
	return w.start("a.test", newDisk(t)), w.start("b.test", newDisk(t))
}

func (s *server) user(name string) matrix.UserID {
	s.w.t.Helper()
	u := matrix.NewUserID(name, s.name)
	if err := s.accounts.Create(context.Background(), accounts.NewUser{ID: u, DisplayName: name}); err != nil {
		s.w.t.Fatal(err)
	}
	return u
}

func (s *server) room(creator matrix.UserID, preset, version string) matrix.RoomID {
	s.w.t.Helper()
	id, err := s.rooms.Create(context.Background(), creator, rooms.CreateRequest{Preset: preset, Version: version}, 0)
	if err != nil {
		s.w.t.Fatal(err)
	}
	return id
}

func (s *server) send(room matrix.RoomID, sender matrix.UserID, body string) matrix.EventID {
	s.w.t.Helper()
	id, err := s.rooms.Send(context.Background(), message(room, sender, body))
	if err != nil {
		s.w.t.Fatal(err)
	}
	return id
}

func message(room matrix.RoomID, sender matrix.UserID, body string) rooms.Draft {
	c, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	return rooms.Draft{Room: room, Sender: sender, Type: "m.room.message", Content: c}
}

// texts lists the messages of a room in their order.
func (s *server) texts(room matrix.RoomID) (out []string) {
	s.w.t.Helper()
	err := s.db.Read(context.Background(), func(tx *sqldb.Tx) error {
		list, err := s.events.Timeline(tx, room, 0, s.log.Head(), 1000, true)
		for _, e := range list {
			if e.Type == "m.room.message" && !e.Hidden() {
				out = append(out, e.ContentString("body"))
			}
		}
		return err
	})
	if err != nil {
		s.w.t.Fatal(err)
	}
	return out
}

// until waits for something that another server brings about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: never happened", what)
		}
		time.Sleep(3 * time.Millisecond)
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
