// Package hstest starts whole homeservers inside a test: New gives one, Pair two
// that federate over real TLS. People act through a real client library.
package hstest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/test/freeport"
)

// Server is a homeserver with its listeners.
type Server struct {
	*homeserver.Server
	T    testing.TB
	Name matrix.ServerName
	URL  string // for clients
	opts homeserver.Options

	mu     sync.Mutex
	users  map[string]*User
	stop   func()
	fed    net.Listener // where other servers come, nil for none
	feds   *http.Server
	served bool // fed has been used up
	tls    *tls.Config
	web    net.Listener
	watch  func(Exchange)
}

// patience is how long something is waited for that has to come.
const patience = 30 * time.Second

// Option changes how a server is built.
type Option func(*homeserver.Options)

// New starts a server that lives as long as the test.
func New(t testing.TB, options ...Option) *Server {
	t.Helper()
	return start(t, "a.example", nil, nil, options)
}

func start(t testing.TB, name matrix.ServerName, fed net.Listener, conf *tls.Config, options []Option) *Server {
	t.Helper()
	if os.Getenv("CARILLON_TEST_LOG") == "" {
		log.SetOutput(io.Discard)
	} else {
		log.SetLevel(log.DebugLevel)
	}
	s := &Server{T: t, Name: name, users: map[string]*User{}, fed: fed, tls: conf}
	s.opts = homeserver.Options{
		ServerName: name, DataDir: t.TempDir(), Database: sqldbtest.DSN(t), Version: "test", Presence: true, AllUsers: true,
		Registration: accounts.Registration{Enabled: true, Dummy: true, SharedSecret: "secret"},
		Passwords:    accounts.PasswordCost{MemoryKiB: 64, Passes: 1},
	}
	for _, o := range options {
		o(&s.opts)
	}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Start starts a server that was stopped, on its old data and address.
func (s *Server) Start() {
	s.T.Helper()
	var err error
	if s.web == nil {
		s.web = freeport.Listen(s.T)
	} else if s.web, err = net.Listen("tcp", s.web.Addr().String()); err != nil {
		s.T.Fatal(err)
	}
	s.URL = "http://" + s.web.Addr().String()
	opts := s.opts
	if opts.PublicURL == ownURL {
		opts.PublicURL = s.URL
	}
	hs, err := homeserver.New(context.Background(), opts)
	if err != nil {
		s.T.Fatal(err)
	}
	s.Server = hs
	l := hs.Listener(s.web)
	web := &http.Server{Handler: hs.Handler(), ConnContext: l.ConnContext}
	go web.Serve(l)
	if s.fed != nil {
		s.Heal()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { hs.Run(ctx); close(done) }()
	s.stop = sync.OnceFunc(func() {
		s.noScans()
		cancel()
		<-done
		web.Close()
		s.Cut()
		http.DefaultClient.CloseIdleConnections() // else a request after the next start may take a dead one
		hs.Close()
	})
}

// Cut makes the server unreachable for other servers; its clients stay.
func (s *Server) Cut() {
	if s.feds != nil {
		s.feds.Close()
		s.feds = nil
	}
}

// Heal undoes Cut.
func (s *Server) Heal() {
	s.T.Helper()
	if s.feds != nil {
		return
	}
	l := s.fed
	if s.served {
		var err error
		if l, err = net.Listen("tcp", l.Addr().String()); err != nil {
			s.T.Fatal(err)
		}
	}
	s.served = true
	s.feds = &http.Server{Handler: s.watched(s.FederationHandler()), ErrorLog: stdlog.New(io.Discard, "", 0)}
	go s.feds.Serve(tls.NewListener(l, s.tls))
}

// Stop ends the server as SIGTERM does.
func (s *Server) Stop() { s.stop() }

// User is a person with a client of the mautrix library.
type User struct {
	*mautrix.Client
	s     *Server
	since string
	heard map[id.RoomID][]*event.Event
}

// User registers a user, or gives the one that was registered before.
func (s *Server) User(name string) *User {
	s.T.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.users[name]; u != nil {
		return u
	}
	c, err := mautrix.NewClient(s.URL, "", "")
	if err != nil {
		s.T.Fatal(err)
	}
	resp, err := c.RegisterDummy(s.T.Context(), &mautrix.ReqRegister[any]{Username: name, Password: "password of " + name})
	if err != nil {
		s.T.Fatalf("registering %s: %v", name, err)
	}
	c.UserID, c.AccessToken, c.DeviceID = resp.UserID, resp.AccessToken, resp.DeviceID
	u := &User{Client: c, s: s}
	s.users[name] = u
	return u
}

// Room creates a room and has others join it.
func (u *User) Room(q *mautrix.ReqCreateRoom, others ...*User) id.RoomID {
	u.s.T.Helper()
	if q == nil {
		q = &mautrix.ReqCreateRoom{Preset: "public_chat"}
	}
	r, err := u.CreateRoom(u.s.T.Context(), q)
	if err != nil {
		u.s.T.Fatal(err)
	}
	for _, o := range others {
		if _, err := o.JoinRoomByID(u.s.T.Context(), r.RoomID); err != nil {
			u.s.T.Fatalf("%s joins: %v", o.UserID, err)
		}
	}
	return r.RoomID
}

// Say sends a text.
func (u *User) Say(room id.RoomID, text string) id.EventID {
	u.s.T.Helper()
	r, err := u.SendText(u.s.T.Context(), room, text)
	if err != nil {
		u.s.T.Fatalf("%s says %q: %v", u.UserID, text, err)
	}
	return r.EventID
}

// Sync reads on from where the user last was, waiting up to wait.
func (u *User) Sync(wait time.Duration) *mautrix.RespSync {
	u.s.T.Helper()
	r, err := u.FullSyncRequest(u.s.T.Context(), mautrix.ReqSync{Timeout: int(wait.Milliseconds()), Since: u.since, SetPresence: event.PresenceOffline})
	if err != nil {
		u.s.T.Fatalf("%s syncs: %v", u.UserID, err)
	}
	u.since = r.NextBatch
	if u.heard == nil {
		u.heard = map[id.RoomID][]*event.Event{}
	}
	for room, j := range r.Rooms.Join {
		u.heard[room] = append(u.heard[room], j.Timeline.Events...)
	}
	return r
}

// Since is where the user's last sync ended.
func (u *User) Since() string { return u.since }

// SyncUntil syncs until done is satisfied, for at most half a minute.
func (u *User) SyncUntil(what string, done func(*mautrix.RespSync) bool) {
	u.s.T.Helper()
	end := time.Now().Add(patience)
	for time.Now().Before(end) {
		if done(u.Sync(time.Second)) {
			return
		}
	}
	u.s.T.Fatalf("%s waits for %s in vain", u.UserID, what)
}

// Hears waits until a text has arrived in a room.
func (u *User) Hears(room id.RoomID, text string) *event.Event {
	u.s.T.Helper()
	find := func() *event.Event {
		for _, e := range u.heard[room] {
			if body, _ := e.Content.Raw["body"].(string); body == text {
				return e
			}
		}
		return nil
	}
	if e := find(); e != nil {
		return e
	}
	u.SyncUntil(fmt.Sprintf("%q", text), func(*mautrix.RespSync) bool { return find() != nil })
	return find()
}

// ownURL stands for the address that a server gets when it starts.
const ownURL = "own"

// OAuth switches the OAuth 2.0 API on, at the server's own address.
func OAuth(o *homeserver.Options) { o.PublicURL, o.SignIn.OAuth = ownURL, true }

// With registers application services.
func With(services ...*accounts.ApplicationService) Option {
	return func(o *homeserver.Options) { o.ApplicationServices = append(o.ApplicationServices, services...) }
}
