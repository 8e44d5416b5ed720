package rooms_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

type server struct {
	*rooms.Rooms
	db     *sqldb.DB
	log    *stream.Log
	events *events.Store
	hub    *hub.Hub
	stop   func()
}

func start(t testing.TB, db *sqldb.DB, name matrix.ServerName, remote rooms.Remote) *server {
	t.Helper()
	ctx := context.Background()
	l, err := stream.Open(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := events.New(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	h := hub.New(l, name)
	key := ed25519.NewKeyFromSeed([]byte(fmt.Sprintf("%-32s", name))[:32])
	r, err := rooms.New(ctx, db, l, ev, h, rooms.Options{
		Signer: events.Signer{Server: name, KeyID: "ed25519:1", Key: key}, Remote: remote,
		Profile: func(_ context.Context, u matrix.UserID) (string, string, error) { return u.Localpart(), "", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return &server{r, db, l, ev, h, stop}
}

const (
	alice matrix.UserID = "@alice:a.example"
	bob   matrix.UserID = "@bob:a.example"
	carol matrix.UserID = "@carol:a.example"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (s *server) say(t testing.TB, room matrix.RoomID, u matrix.UserID, text string) matrix.EventID {
	t.Helper()
	return must[matrix.EventID](t)(s.Send(t.Context(), rooms.Draft{
		Room: room, Sender: u, Type: "m.room.message", Content: json.RawMessage(`{"msgtype":"m.text","body":"` + text + `"}`),
	}))
}

func (s *server) timeline(t testing.TB, room matrix.RoomID) (list []*events.Event) {
	t.Helper()
	err := s.db.Read(t.Context(), func(tx *sqldb.Tx) (err error) {
		list, err = s.events.Timeline(tx, room, 0, state.Open-1, 100000, true)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestEveryVersionCreatesAndTalks(t *testing.T) {
	s := start(t, sqldbtest.Open(t), "a.example", nil)
	for _, v := range rooms.Versions() {
		t.Run(v, func(t *testing.T) {
			ctx := t.Context()
			room := must[matrix.RoomID](t)(s.Create(ctx, alice, rooms.CreateRequest{Version: v, Preset: "public_chat", Name: "n", Topic: "t"}, 0))
			if err := s.Join(ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob}); err != nil {
				t.Fatal(err)
			}
			id := s.say(t, room, bob, "hello")
			list := s.timeline(t, room)
			last := list[len(list)-1]
			if last.ID != id {
				t.Fatalf("last event %s, want %s", last.ID, id)
			}
			// What we built must read back as if it came from elsewhere.
			for i, e := range list {
				p, err := events.Parse(e.JSON, e.Version)
				if err != nil {
					t.Fatalf("%s: %v", e.Type, err)
				}
				if p.ID != e.ID || p.Room != room {
					t.Fatalf("%s: parsed as %s in %s, want %s in %s", e.Type, p.ID, p.Room, e.ID, room)
				}
				pdu := must[any](t)(func() (any, error) { return p.PDU() }())
				_ = pdu
				if i > 0 && e.PrevEvents()[0] != list[i-1].ID {
					t.Fatalf("%s does not follow the event before it", e.Type)
				}
			}
			// Redaction: bob may redact his own, not alice's.
			a := s.say(t, room, alice, "mine")
			_, err := s.Send(ctx, redaction(room, bob, a))
			if !matrix.IsCode(err, "M_FORBIDDEN") {
				t.Fatalf("redacting another's message: %v", err)
			}
			must[matrix.EventID](t)(s.Send(ctx, redaction(room, alice, id))) // a moderator
			e := must[*events.Event](t)(s.events.ByID(ctx, id))
			if string(e.Content()) != "{}" || !e.Redacted() || e.Redaction == nil {
				t.Fatalf("not redacted: %s", e.JSON)
			}
			if p, err := events.Parse(e.JSON, e.Version); err != nil || p.ID != id {
				t.Fatalf("the redacted form has ID %v (%v)", p, err)
			}
		})
	}
}

// What a client sends must come out as it went in, whatever its keys are.
func TestAwkwardContent(t *testing.T) {
	s := start(t, sqldbtest.Open(t), "a.example", nil)
	room := must[matrix.RoomID](t)(s.Create(t.Context(), alice, rooms.CreateRequest{}, 0))
	const content = `{"\u0001":[{"q\"x":1,"\\":"\/"}],"body":"\u65e5 \"本\"","msgtype":"m.text"}`
	id := must[matrix.EventID](t)(s.Send(t.Context(), rooms.Draft{Room: room, Sender: alice, Type: "m.room.message", Content: json.RawMessage(content)}))
	e := must[*events.Event](t)(s.events.ByID(t.Context(), id))
	var got, want any
	if err := json.Unmarshal(e.Content(), &got); err != nil {
		t.Fatalf("%s: %v", e.JSON, err)
	}
	if err := json.Unmarshal([]byte(content), &want); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%v came out as %v", want, got)
	}
	p, err := events.Parse(e.JSON, e.Version)
	if err != nil || p.ID != id || string(p.JSON) != string(e.JSON) {
		t.Fatalf("read as another server reads it: %v, %v", p, err)
	}
	for _, bad := range []string{`{"a":1.5}`, `[]`, `{"a":9007199254740993}`, `{`} {
		_, err := s.Send(t.Context(), rooms.Draft{Room: room, Sender: alice, Type: "m.room.message", Content: json.RawMessage(bad)})
		if !matrix.IsCode(err, "M_BAD_JSON") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestCreatorsChangeNotificationLevels(t *testing.T) {
	s := start(t, sqldbtest.Open(t), "a.example", nil)
	room := must[matrix.RoomID](t)(s.Create(t.Context(), alice, rooms.CreateRequest{Preset: "public_chat"}, 0))
	if err := s.Join(t.Context(), rooms.MemberChange{Room: room, Sender: bob, Target: bob}); err != nil {
		t.Fatal(err)
	}
	set := func(by matrix.UserID, content string) error {
		key := ""
		_, err := s.Send(t.Context(), rooms.Draft{Room: room, Sender: by, Type: "m.room.power_levels", StateKey: &key, Content: json.RawMessage(content)})
		return err
	}
	if err := set(alice, `{"users":{"@bob:a.example":60},"events":{"m.room.power_levels":60},"notifications":{"room":70}}`); err != nil {
		t.Fatal(err)
	}
	if err := set(bob, `{"users":{"@bob:a.example":60},"events":{"m.room.power_levels":60},"notifications":{"room":50}}`); !matrix.IsCode(err, "M_FORBIDDEN") {
		t.Fatalf("bob lowers a level above his own: %v", err)
	}
	if err := set(alice, `{"users":{"@alice:a.example":100},"notifications":{"room":20}}`); !matrix.IsCode(err, "M_INVALID_PARAM") {
		t.Fatalf("a creator among the users: %v", err)
	}
}

func redaction(room matrix.RoomID, by matrix.UserID, target matrix.EventID) rooms.Draft {
	return rooms.Draft{Room: room, Sender: by, Type: "m.room.redaction", Redacts: target, Content: json.RawMessage(`{"redacts":"` + string(target) + `"}`)}
}

func TestConcurrentSendersMakeOneLine(t *testing.T) {
	db := sqldbtest.Open(t)
	s := start(t, db, "a.example", nil)
	ctx := t.Context()
	room := must[matrix.RoomID](t)(s.Create(ctx, alice, rooms.CreateRequest{Preset: "public_chat"}, 0))
	const senders, each = 12, 25
	var wg sync.WaitGroup
	for i := range senders {
		u := matrix.UserID(fmt.Sprintf("@u%d:a.example", i))
		wg.Go(func() {
			if err := s.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u}); err != nil {
				t.Error(err)
				return
			}
			for n := range each {
				d := rooms.Draft{
					Room: room, Sender: u, Type: "m.room.message", Content: json.RawMessage(`{"body":"x"}`),
					Txn: events.TxnKey("D", "send", fmt.Sprint(n)),
				}
				first, err := s.Send(ctx, d)
				if err != nil {
					t.Error(err)
					return
				}
				if n%5 == 0 { // the client asks again
					again, err := s.Send(ctx, d)
					if err != nil || again != first {
						t.Errorf("repeated transaction gave %s, %v; want %s", again, err, first)
					}
				}
			}
		})
	}
	wg.Wait()
	list := s.timeline(t, room)
	messages, byID := 0, map[matrix.EventID]int{}
	for i, e := range list {
		byID[e.ID] = i
		if e.Type == "m.room.message" {
			messages++
		}
		if i > 0 && (len(e.PrevEvents()) != 1 || e.PrevEvents()[0] != list[i-1].ID) {
			t.Fatalf("event %d follows %v, not %s", i, e.PrevEvents(), list[i-1].ID)
		}
	}
	if messages != senders*each {
		t.Fatalf("%d messages, want %d", messages, senders*each)
	}
	// A new start reads the same room.
	s.stop()
	s2 := start(t, db, "a.example", nil)
	if n := len(s2.JoinedMembers(room)); n != senders+1 {
		t.Fatalf("%d members after a restart, want %d", n, senders+1)
	}
	s2.say(t, room, alice, "again")
	if got := s2.timeline(t, room); got[len(got)-1].PrevEvents()[0] != list[len(list)-1].ID {
		t.Fatal("the event after a restart does not follow the last one")
	}
}

func TestMembershipRules(t *testing.T) {
	s := start(t, sqldbtest.Open(t), "a.example", nil)
	ctx := t.Context()
	room := must[matrix.RoomID](t)(s.Create(ctx, alice, rooms.CreateRequest{Preset: "private_chat"}, 0))
	change := func(by, target matrix.UserID) rooms.MemberChange {
		return rooms.MemberChange{Room: room, Sender: by, Target: target}
	}
	forbidden := func(what string, err error) {
		t.Helper()
		if !matrix.IsCode(err, "M_FORBIDDEN") {
			t.Fatalf("%s: %v, want M_FORBIDDEN", what, err)
		}
	}
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	forbidden("joining uninvited", s.Join(ctx, change(bob, bob)))
	ok("invite", s.Invite(ctx, change(alice, bob)))
	m := must[*rooms.Member](t)(s.MembershipOf(ctx, bob, room))
	if m.Membership != "invite" || len(m.Stripped) == 0 {
		t.Fatalf("invited: %+v", m)
	}
	ok("join", s.Join(ctx, change(bob, bob)))
	forbidden("kick by a member", s.Kick(ctx, change(bob, alice)))
	forbidden("inviting a member", s.Invite(ctx, change(alice, bob)))
	ok("ban", s.Ban(ctx, change(alice, bob)))
	forbidden("joining while banned", s.Join(ctx, change(bob, bob)))
	forbidden("inviting the banned", s.Invite(ctx, change(alice, bob)))
	ok("unban", s.Unban(ctx, change(alice, bob)))
	forbidden("unban twice", s.Unban(ctx, change(alice, bob)))
	if err := s.Forget(ctx, alice, room); err == nil {
		t.Fatal("forgot a room that she is in")
	}
	ok("forget", s.Forget(ctx, bob, room))
	ok("leave", s.Leave(ctx, change(alice, alice)))
	if n := len(s.JoinedMembers(room)); n != 0 {
		t.Fatalf("%d members left", n)
	}
}

func TestRestrictedRoom(t *testing.T) {
	s := start(t, sqldbtest.Open(t), "a.example", nil)
	ctx := t.Context()
	space := must[matrix.RoomID](t)(s.Create(ctx, alice, rooms.CreateRequest{Preset: "public_chat"}, 0))
	room := must[matrix.RoomID](t)(s.Create(ctx, alice, rooms.CreateRequest{InitialState: []rooms.InitialState{{
		Type: "m.room.join_rules", Content: json.RawMessage(fmt.Sprintf(`{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":%q}]}`, space)),
	}}}, 0))
	if err := s.Join(ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob}); !matrix.IsCode(err, "M_FORBIDDEN") {
		t.Fatalf("joined from outside: %v", err)
	}
	if err := s.Join(ctx, rooms.MemberChange{Room: space, Sender: bob, Target: bob}); err != nil {
		t.Fatal(err)
	}
	if err := s.Join(ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob}); err != nil {
		t.Fatal(err)
	}
	e := must[*events.Event](t)(s.State(ctx, room, "m.room.member", string(bob)))
	if e.ContentString("join_authorised_via_users_server") != string(alice) {
		t.Fatalf("no voucher in %s", e.JSON)
	}
}

func TestHistoryVisibility(t *testing.T) {
	s := start(t, sqldbtest.Open(t), "a.example", nil)
	for _, v := range []struct {
		visibility string
		sees       []string
	}{
		{"shared", []string{"before", "invited", "joined"}},
		{"invited", []string{"invited", "joined"}},
		{"joined", []string{"joined"}},
		{"world_readable", []string{"before", "invited", "joined", "after"}},
	} {
		t.Run(v.visibility, func(t *testing.T) {
			ctx := t.Context()
			room := must[matrix.RoomID](t)(s.Create(ctx, alice, rooms.CreateRequest{InitialState: []rooms.InitialState{{
				Type: "m.room.history_visibility", Content: json.RawMessage(`{"history_visibility":"` + v.visibility + `"}`),
			}}}, 0))
			c := rooms.MemberChange{Room: room, Sender: alice, Target: bob}
			s.say(t, room, alice, "before")
			if err := s.Invite(ctx, c); err != nil {
				t.Fatal(err)
			}
			s.say(t, room, alice, "invited")
			c.Sender = bob
			if err := s.Join(ctx, c); err != nil {
				t.Fatal(err)
			}
			s.say(t, room, alice, "joined")
			if err := s.Leave(ctx, c); err != nil {
				t.Fatal(err)
			}
			s.say(t, room, alice, "after")
			list := must[[]*events.Event](t)(s.Visible(ctx, bob, room, s.timeline(t, room)))
			var got []string
			for _, e := range list {
				if b := e.ContentString("body"); b != "" {
					got = append(got, b)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(v.sees) {
				t.Fatalf("bob sees %v, want %v", got, v.sees)
			}
		})
	}
}

func BenchmarkBuildAndSign(b *testing.B) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	for b.Loop() {
		_, err := events.Build(events.Proto{
			Version: "12", Room: "!aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", Sender: alice, Type: "m.room.message",
			Content:    json.RawMessage(`{"msgtype":"m.text","body":"a message of ordinary length, as people write them"}`),
			PrevEvents: []matrix.EventID{"$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, AuthEvents: []matrix.EventID{"$b", "$c", "$d"}, Depth: 7, Time: time.Now(),
		}, events.Signer{Server: "a.example", KeyID: "ed25519:1", Key: key})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSend(b *testing.B) {
	s := start(b, sqldbtest.Open(b), "a.example", nil)
	room := must[matrix.RoomID](b)(s.Create(b.Context(), alice, rooms.CreateRequest{Preset: "public_chat"}, 0))
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Send(b.Context(), rooms.Draft{Room: room, Sender: alice, Type: "m.room.message", Content: json.RawMessage(`{"msgtype":"m.text","body":"hello"}`)}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkJoin(b *testing.B) {
	s := start(b, sqldbtest.Open(b), "a.example", nil)
	room := must[matrix.RoomID](b)(s.Create(b.Context(), alice, rooms.CreateRequest{Preset: "public_chat"}, 0))
	b.SetParallelism(16)
	var n sync.Mutex
	i := 0
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			n.Lock()
			i++
			u := matrix.UserID(fmt.Sprintf("@u%d:a.example", i))
			n.Unlock()
			if err := s.Join(b.Context(), rooms.MemberChange{Room: room, Sender: u, Target: u}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
