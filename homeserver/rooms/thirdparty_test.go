package rooms_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// keeper is an identity server that keeps every invitation.
type keeper struct{ key ed25519.PrivateKey }

func newKeeper() keeper { return keeper{ed25519.NewKeyFromSeed(make([]byte, 32))} }

func (k keeper) Invite(context.Context, rooms.Inviting) (matrix.UserID, *rooms.Kept, error) {
	public := base64.RawURLEncoding.EncodeToString(k.key.Public().(ed25519.PublicKey))
	return "", &rooms.Kept{Token: "token", DisplayName: "b...", Keys: []rooms.InviteKey{{Key: public}}}, nil
}

func (keeper) KeyValid(context.Context, string, string) (bool, error) { return true, nil }

func (k keeper) sign(t testing.TB, user matrix.UserID) json.RawMessage {
	t.Helper()
	b, err := gomatrixserverlib.SignJSON("id.example", "ed25519:0", k.key, []byte(`{"mxid":"`+string(user)+`","token":"token"}`))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var byAddress = rooms.ThirdParty{Medium: "email", Address: "b@b.example", IDServer: "id.example", IDToken: "x"}

func TestKeptInvitationsAreForWhomTheyAreMade(t *testing.T) {
	s := start(t, sqldbtest.Open(t), "a.example", nil)
	k := newKeeper()
	ctx := t.Context()
	room := must[matrix.RoomID](t)(s.Create(ctx, alice, rooms.CreateRequest{Preset: "private_chat"}, 0))
	if err := s.InviteThirdParty(ctx, rooms.MemberChange{Room: room, Sender: alice}, byAddress); !matrix.IsCode(err, "M_THREEPID_DENIED") {
		t.Errorf("without identity servers: %v", err)
	}
	s.SetIdentity(k)
	for _, who := range []matrix.UserID{bob, carol} {
		if err := s.InviteThirdParty(ctx, rooms.MemberChange{Room: room, Sender: who}, byAddress); !matrix.IsCode(err, "M_FORBIDDEN") {
			t.Errorf("%s invites: %v", who, err)
		}
	}
	if err := s.InviteThirdParty(ctx, rooms.MemberChange{Room: room, Sender: alice}, byAddress); err != nil {
		t.Fatal(err)
	}
	proof := rooms.Proof{Sender: alice, User: bob, Signed: k.sign(t, bob)}
	for what, p := range map[string]rooms.Proof{
		"another user":   {Sender: alice, User: carol, Signed: proof.Signed},
		"another sender": {Sender: carol, User: bob, Signed: proof.Signed},
		"unsigned":       {Sender: alice, User: bob, Signed: json.RawMessage(`{"mxid":"@bob:a.example","token":"token"}`)},
		"another key":    {Sender: alice, User: bob, Signed: keeper{ed25519.NewKeyFromSeed([]byte("12345678901234567890123456789012"))}.sign(t, bob)},
	} {
		if err := s.AcceptThirdParty(ctx, room, p); !matrix.IsCode(err, "M_FORBIDDEN") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A member event that a client sends by itself is judged by the same rules.
	self := func(sender matrix.UserID) error {
		key := string(bob)
		content, _ := json.Marshal(map[string]any{"membership": "invite", "third_party_invite": map[string]any{"display_name": "b", "signed": proof.Signed}})
		_, err := s.Send(ctx, rooms.Draft{Room: room, Sender: sender, Type: "m.room.member", StateKey: &key, Content: content})
		return err
	}
	if err := self(carol); !matrix.IsCode(err, "M_FORBIDDEN") {
		t.Errorf("carol sends alice's invitation: %v", err)
	}
	if err := s.Ban(ctx, rooms.MemberChange{Room: room, Sender: alice, Target: bob}); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"accepted": s.AcceptThirdParty(ctx, room, proof), "sent": self(alice)} {
		if !matrix.IsCode(err, "M_FORBIDDEN") {
			t.Errorf("%s though banned: %v", what, err)
		}
	}
	if err := s.Unban(ctx, rooms.MemberChange{Room: room, Sender: alice, Target: bob}); err != nil {
		t.Fatal(err)
	}
	if err := s.AcceptThirdParty(ctx, room, proof); err != nil {
		t.Fatal(err)
	}
	if err := s.Join(ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob}); err != nil {
		t.Fatal(err)
	}
	// Taken back: an invitation without keys is none.
	token := "token"
	if _, err := s.Send(ctx, rooms.Draft{Room: room, Sender: alice, Type: "m.room.third_party_invite", StateKey: &token, Content: json.RawMessage("{}")}); err != nil {
		t.Fatal(err)
	}
	if err := s.AcceptThirdParty(ctx, room, rooms.Proof{Sender: alice, User: carol, Signed: k.sign(t, carol)}); !matrix.IsCode(err, "M_FORBIDDEN") {
		t.Errorf("an invitation that was taken back: %v", err)
	}
}

// Whatever another server sends, nobody is invited but by a signed proof.
func FuzzExchangeThirdParty(f *testing.F) {
	s := start(f, sqldbtest.Open(f), "a.example", nil)
	s.SetIdentity(newKeeper())
	room := must[matrix.RoomID](f)(s.Create(context.Background(), alice, rooms.CreateRequest{Preset: "private_chat"}, 0))
	if err := s.InviteThirdParty(context.Background(), rooms.MemberChange{Room: room, Sender: alice}, byAddress); err != nil {
		f.Fatal(err)
	}
	f.Add(`{"type":"m.room.member","room_id":"` + string(room) + `","sender":"@alice:a.example","state_key":"@bob:b.example","content":{"membership":"invite",` +
		`"third_party_invite":{"display_name":"b","signed":{"mxid":"@bob:b.example","token":"token","signatures":{"id.example":{"ed25519:0":"c2ln"}}}}}}`)
	f.Add(`{}`)
	f.Add(`{"content":{"third_party_invite":{"signed":{"signatures":[]}}}}`)
	f.Fuzz(func(t *testing.T, raw string) {
		err := s.ExchangeThirdParty(context.Background(), "b.example", room, json.RawMessage(raw))
		if err == nil {
			t.Errorf("accepted: %s", raw)
		}
	})
}

func TestErasure(t *testing.T) {
	db := sqldbtest.Open(t)
	s := start(t, db, "a.example", nil)
	ctx := t.Context()
	room := must[matrix.RoomID](t)(s.Create(ctx, alice, rooms.CreateRequest{Preset: "public_chat"}, 0))
	for _, u := range []matrix.UserID{bob} {
		if err := s.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u}); err != nil {
			t.Fatal(err)
		}
	}
	id := s.say(t, room, bob, "secret")
	erased := func(reader matrix.UserID) bool {
		t.Helper()
		e := must[*events.Event](t)(s.events.ByID(ctx, id))
		var m map[matrix.EventID]*events.Event
		err := s.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			m, err = s.Erased(tx, reader, []*events.Event{e})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if r := m[id]; r != nil && string(r.Content()) != "{}" {
			t.Errorf("the redacted form is %s", r.JSON)
		}
		return m[id] != nil
	}
	if erased(carol) {
		t.Error("erased before anybody asked for it")
	}
	if err := s.Erase(ctx, bob); err != nil {
		t.Fatal(err)
	}
	if err := s.Join(ctx, rooms.MemberChange{Room: room, Sender: carol, Target: carol}); err != nil {
		t.Fatal(err)
	}
	if err := s.Erase(ctx, bob); err != nil { // again, later: the first time counts
		t.Fatal(err)
	}
	for reader, want := range map[matrix.UserID]bool{alice: false, bob: false, carol: true} {
		if erased(reader) != want {
			t.Errorf("erased for %s: %v", reader, !want)
		}
	}
}
