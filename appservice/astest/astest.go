// Package astest is a homeserver in memory for tests of the enterprise service: enough of the client-server API to
// register, create rooms, join, send and read state, with the rules that matter (who may join, invite and kick), and
// the transactions of the application service API towards the service.
//
// It counts operations, can be told to fail, and answers at once. It is no homeserver: it federates with nobody,
// stores nothing and checks tokens only so far that a test notices a wrong one.
package astest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// The tokens and names of the fake homeserver's one application service.
const (
	ServerName = "example.com"
	ASToken    = "as-token"
	HSToken    = "hs-token"
	Bot        = "@carillon:example.com"
)

// Server is the fake homeserver. It is safe for concurrent use.
type Server struct {
	// NoServiceJoins makes it a homeserver that does not know Carillon's own join rule.
	NoServiceJoins bool
	// LockedMayNotAct refuses the service to act for locked accounts.
	LockedMayNotAct bool

	flying  sync.WaitGroup // requests of Client under way
	mu      sync.Mutex
	users   map[string]*user
	rooms   map[string]*room
	aliases map[string]string // room by alias
	tokens  map[string]string // user by access token
	txns    map[string]string // event by "user room txn"
	counts  map[string]int
	total   int // requests
	serial  int
	clock   int64
	queue   []delivery
	sent    int // transactions delivered
	fault   func(*http.Request) Fault
	service http.Handler
}

type user struct {
	name      string
	password  string // or its hash
	locked    bool
	suspended bool
}

type room struct {
	id, version string
	creator     string
	state       map[stateKey]*mxclient.Event
	events      []*mxclient.Event
}

type stateKey struct{ typ, key string }

// delivery is a room event or an ephemeral one on its way to the service.
type delivery struct {
	event     *mxclient.Event
	ephemeral any
}

// Fault is how a request fails.
type Fault int

// The ways to fail: not at all, with status 500 before or after the effect, or with a refusal (M_FORBIDDEN).
const (
	FaultNone Fault = iota
	FaultBefore
	FaultAfter
	FaultRefused
)

// New builds a homeserver that knows the service's bot.
func New() *Server {
	return &Server{
		users: map[string]*user{}, rooms: map[string]*room{}, aliases: map[string]string{},
		tokens: map[string]string{}, txns: map[string]string{}, counts: map[string]int{}, clock: time.Now().UnixMilli(),
	}
}

// Client is a client of the service, over an in-memory transport and with short waits.
func (s *Server) Client(t testing.TB) *mxclient.Client {
	t.Helper()
	c, err := mxclient.New(mxclient.Config{
		ServerName: ServerName, ASToken: ASToken, BotLocalpart: "carillon", Transport: s.transport(),
		MinBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond, Attempts: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// transport is one whose requests Settle waits for.
func (s *Server) transport() http.RoundTripper {
	inner := mxclient.NewHandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer s.flying.Done()
		s.ServeHTTP(w, r)
	}))
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		s.flying.Add(1)
		return inner.RoundTrip(r)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Settle waits until the requests that the callers of Client have given up are over too.
func (s *Server) Settle() { s.flying.Wait() }

// SetFault installs what decides whether a request fails; nil for none.
func (s *Server) SetFault(f func(*http.Request) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Counts are the operations that had an effect, by kind: register, create, join, invite, leave, kick, ban, state,
// send, redact, displayname, lock, suspend.
func (s *Server) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]int, len(s.counts))
	for k, v := range s.counts {
		out[k] = v
	}
	return out
}

// Ops is the number of operations that had an effect.
func (s *Server) Ops() int {
	n := 0
	for _, v := range s.Counts() {
		n += v
	}
	return n
}

// Requests is the number of requests, of any kind.
func (s *Server) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Token makes an access token of a user, who is registered if need be.
func (s *Server) Token(userID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.user(userID)
	s.serial++
	t := fmt.Sprintf("token-%d", s.serial)
	s.tokens[t] = userID
	return t
}

func (s *Server) user(id string) *user {
	u := s.users[id]
	if u == nil {
		u = &user{}
		s.users[id] = u
	}
	return u
}

// Registered reports whether there is an account of that ID.
func (s *Server) Registered(userID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.users[userID] != nil
}

// Register makes an account that the service did not make.
func (s *Server) Register(userID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.user(userID)
}

// User tells an account's name, password (or its hash) and whether it is locked or suspended.
func (s *Server) User(userID string) (name, password string, locked, suspended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.users[userID]; u != nil {
		return u.name, u.password, u.locked, u.suspended
	}
	return "", "", false, false
}

// RoomByAlias is the room of an alias, "" if there is none.
func (s *Server) RoomByAlias(alias string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aliases[alias]
}

// Rooms are the IDs of all rooms.
func (s *Server) Rooms() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.rooms))
	for id := range s.rooms {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Membership is a user's membership of a room.
func (s *Server) Membership(roomID, userID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rooms[roomID]; r != nil {
		return r.membership(userID)
	}
	return ""
}

// Joined are the users joined to a room, in order.
func (s *Server) Joined(roomID string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rooms[roomID]
	if r == nil {
		return nil
	}
	var out []string
	for k, ev := range r.state {
		if k.typ == "m.room.member" && ev.Membership() == "join" {
			out = append(out, k.key)
		}
	}
	slices.Sort(out)
	return out
}

// RoomsOf are the rooms a user is joined to, in order.
func (s *Server) RoomsOf(userID string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roomsOf(userID)
}

func (s *Server) roomsOf(userID string) []string {
	out := []string{}
	for id, r := range s.rooms {
		if r.membership(userID) == "join" {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// State is the content of a state event, nil if there is none.
func (s *Server) State(roomID, typ, key string) json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rooms[roomID]
	if r == nil || r.state[stateKey{typ, key}] == nil {
		return nil
	}
	return r.state[stateKey{typ, key}].Content
}

// Events are all events of a room in order.
func (s *Server) Events(roomID string) []*mxclient.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rooms[roomID]; r != nil {
		return slices.Clone(r.events)
	}
	return nil
}

// MemberEvents counts a user's membership events of one kind in a room.
func (s *Server) MemberEvents(roomID, userID, membership string) int {
	n := 0
	for _, ev := range s.Events(roomID) {
		if ev.StateKey != nil && *ev.StateKey == userID && ev.Membership() == membership {
			n++
		}
	}
	return n
}

// Say sends an event as a user who is in the room, as a person's own client would. It returns the event ID.
func (s *Server) Say(t testing.TB, roomID, userID, typ string, content any) string {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rooms[roomID]
	if r == nil || r.membership(userID) != "join" {
		t.Fatalf("%s is not in %s", userID, roomID)
	}
	return s.append(r, userID, typ, nil, encode(content)).ID
}

// Act changes a membership as a person's own client would: join, leave, invite, kick or ban; target "" is the actor.
func (s *Server) Act(t testing.TB, roomID, actor, verb, target string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rooms[roomID]
	if r == nil {
		t.Fatalf("there is no room %s", roomID)
	}
	if target == "" {
		target = actor
	}
	membership := map[string]string{"join": "join", "leave": "leave", "kick": "leave", "invite": "invite", "ban": "ban"}[verb]
	s.append(r, actor, "m.room.member", &target, encode(map[string]string{"membership": membership}))
}

// MakeRoom makes a room as a user, without the service.
func (s *Server) MakeRoom(creator string, members ...string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.newRoom(creator, "12")
	s.append(r, creator, "m.room.create", new(string), encode(map[string]string{"room_version": "12"}))
	for _, m := range append([]string{creator}, members...) {
		s.user(m)
		s.append(r, m, "m.room.member", &m, encode(map[string]string{"membership": "join"}))
	}
	return r.id
}

// Read puts a read receipt on its way to the service.
func (s *Server) Read(roomID, userID, eventID, thread string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	receipt := map[string]any{"ts": s.clock}
	if thread != "" {
		receipt["thread_id"] = thread
	}
	s.queue = append(s.queue, delivery{ephemeral: map[string]any{
		"type": "m.receipt", "room_id": roomID,
		"content": map[string]any{eventID: map[string]any{"m.read": map[string]any{userID: receipt}}},
	}})
}

func (s *Server) newRoom(creator, version string) *room {
	s.serial++
	r := &room{id: fmt.Sprintf("!room%d", s.serial), version: version, creator: creator, state: map[stateKey]*mxclient.Event{}}
	s.rooms[r.id] = r
	return r
}

func (r *room) membership(userID string) string {
	if ev := r.state[stateKey{"m.room.member", userID}]; ev != nil {
		return ev.Membership()
	}
	return ""
}

// append adds an event. The lock is held.
func (s *Server) append(r *room, sender, typ string, key *string, content json.RawMessage) *mxclient.Event {
	s.serial++
	s.clock++
	ev := &mxclient.Event{
		ID: fmt.Sprintf("$event%d", s.serial), Room: r.id, Sender: sender, Type: typ, TS: s.clock, Content: content,
	}
	if key != nil {
		k := strings.Clone(*key)
		ev.StateKey = &k
		r.state[stateKey{typ, k}] = ev
	}
	r.events = append(r.events, ev)
	if s.service != nil {
		s.queue = append(s.queue, delivery{event: ev})
	}
	return ev
}

func encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
