package events_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

var versions = []gomatrixserverlib.RoomVersion{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}

func signer(name matrix.ServerName) events.Signer {
	return events.Signer{Server: name, KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte(name[:1]), 32))}
}

func build(t testing.TB, p events.Proto) *events.Event {
	t.Helper()
	if p.Time.IsZero() {
		p.Time = time.UnixMilli(1700000000000)
	}
	if p.Sender == "" {
		p.Sender = "@alice:a.example"
	}
	if p.Room == "" && p.Type != "m.room.create" {
		p.Room = "!room:a.example"
	}
	e, err := events.Build(p, signer("a.example"))
	if err != nil {
		t.Fatalf("%s in version %s: %v", p.Type, p.Version, err)
	}
	return e
}

// What we build, the library must read as what we mean: same ID, hash right (else
// it would be redacted), signature right.
func TestBuiltEventsAreReadByTheLibrary(t *testing.T) {
	key := "@bob:b.example"
	empty := ""
	for _, version := range versions {
		impl, err := gomatrixserverlib.GetRoomVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		refs := []matrix.EventID{"$one:a.example", "$two:a.example"}
		if impl.EventFormat() != gomatrixserverlib.EventFormatV1 {
			refs = []matrix.EventID{"$" + matrix.EventID(strings.Repeat("a", 43)), "$" + matrix.EventID(strings.Repeat("b", 43))}
		}
		room := matrix.RoomID("!room:a.example")
		if impl.DomainlessRoomIDs() {
			room = matrix.RoomID("!" + strings.Repeat("c", 43))
		}
		for _, p := range []events.Proto{
			{Type: "m.room.message", Content: json.RawMessage(`{"body":"你好 <b>&</b>","msgtype":"m.text"}`)},
			{Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite","displayname":"Bob","reason":"x","third_party_invite":{"display_name":"b","signed":{"mxid":"@bob:b.example","token":"t","signatures":{}}}}`)},
			{Type: "m.room.power_levels", StateKey: &empty, Content: json.RawMessage(`{"users":{"@bob:b.example":50},"ban":50,"invite":0,"notifications":{"room":50}}`)},
			{Type: "m.room.join_rules", StateKey: &empty, Content: json.RawMessage(`{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"!x:y"}]}`)},
			{Type: "m.room.history_visibility", StateKey: &empty, Content: json.RawMessage(`{"history_visibility":"joined","more":1}`)},
			{Type: "m.room.redaction", Redacts: refs[0], Content: json.RawMessage(`{"redacts":"` + string(refs[0]) + `","reason":"spam"}`)},
			{Type: "x.custom", StateKey: &empty, Content: json.RawMessage(`{"deep":{"b":[1,{"z":null,"a":true}]}}`)},
		} {
			if (version == "11" || version == "12") && p.Type == "m.room.member" {
				// Of third_party_invite, the library redacts what these versions keep.
				p.Content = json.RawMessage(`{"membership":"invite","displayname":"Bob","reason":"x"}`)
			}
			p.Version, p.Room, p.PrevEvents, p.AuthEvents, p.Depth = version, room, refs[:1], refs, 5
			e := build(t, p)
			pdu, err := impl.NewEventFromUntrustedJSON(e.JSON)
			if err != nil {
				t.Errorf("version %s, %s: %v", version, p.Type, err)
				continue
			}
			if pdu.EventID() != string(e.ID) {
				t.Errorf("version %s, %s: the library says %s, we say %s", version, p.Type, pdu.EventID(), e.ID)
			}
			if pdu.Redacted() || !bytes.Equal(pdu.JSON(), e.JSON) {
				t.Errorf("version %s, %s: read as\n%s, built\n%s", version, p.Type, pdu.JSON(), e.JSON)
			}
			red, err := impl.RedactEventJSON(e.JSON)
			if err != nil {
				t.Fatal(err)
			}
			s := signer("a.example")
			if err := gomatrixserverlib.VerifyJSON("a.example", "ed25519:1", s.Key.Public().(ed25519.PublicKey), red); err != nil {
				t.Errorf("version %s, %s: signature: %v", version, p.Type, err)
			}
			if got := e.PrevEvents(); !slices.Equal(got, refs[:1]) {
				t.Errorf("version %s, %s: prev_events %v", version, p.Type, got)
			}
		}
	}
}

// A second signature neither changes the event nor loses the first one.
func TestSign(t *testing.T) {
	key := "@bob:b.example"
	for _, version := range versions {
		e := build(t, events.Proto{Version: version, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`), Depth: 1})
		b := signer("b.example")
		signed, err := e.Sign(b)
		if err != nil {
			t.Fatal(err)
		}
		again, err := events.Parse(signed.JSON, version)
		if err != nil || again.ID != e.ID {
			t.Fatalf("version %s: %v, %v", version, again, err)
		}
		impl, _ := gomatrixserverlib.GetRoomVersion(version)
		red, err := impl.RedactEventJSON(signed.JSON)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []events.Signer{signer("a.example"), b} {
			if err := gomatrixserverlib.VerifyJSON(string(s.Server), "ed25519:1", s.Key.Public().(ed25519.PublicKey), red); err != nil {
				t.Errorf("version %s: signature of %s: %v", version, s.Server, err)
			}
		}
	}
}

// An event whose content was tampered with is kept, redacted, under its own ID.
func TestTamperedContentIsRedacted(t *testing.T) {
	e := build(t, events.Proto{Version: "12", Room: matrix.RoomID("!" + strings.Repeat("c", 43)), Type: "m.room.message", Content: json.RawMessage(`{"body":"pay Bob"}`), Depth: 1})
	raw := bytes.Replace(e.JSON, []byte("pay Bob"), []byte("pay Eve"), 1)
	got, err := events.Parse(raw, "12")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != e.ID || string(got.Content()) != "{}" {
		t.Fatalf("%s: %s", got.ID, got.Content())
	}
}

func TestLimits(t *testing.T) {
	_, err := events.Build(events.Proto{
		Version: "12", Room: "!r", Sender: "@a:b", Type: "m.room.message", Time: time.Now(),
		Content: json.RawMessage(`{"body":"` + strings.Repeat("x", 65_000) + `","more":"` + strings.Repeat("y", 1_000) + `"}`),
	}, signer("b"))
	if !matrix.IsCode(err, "M_TOO_LARGE") {
		t.Errorf("65 kB too many: %v", err)
	}
	if _, err := events.Parse([]byte(`{"a":`+strings.Repeat(" ", 70_000)+`1}`), "12"); !matrix.IsCode(err, "M_TOO_LARGE") {
		t.Errorf("a huge PDU: %v", err)
	}
}

func TestClientFormat(t *testing.T) {
	empty := ""
	old := build(t, events.Proto{Version: "11", Type: "m.room.topic", StateKey: &empty, Content: json.RawMessage(`{"topic":"old"}`), Depth: 1})
	e := build(t, events.Proto{Version: "11", Type: "m.room.topic", StateKey: &empty, Content: json.RawMessage(`{"topic":"new"}`), Depth: 2}).Placed(2, 2, 1)
	e.Replaced = old
	e.Txn = events.TxnKey("DEV", "send", "t1")
	for _, c := range []struct {
		device matrix.DeviceID
		txn    any
	}{{"DEV", "t1"}, {"OTHER", nil}, {"", nil}} {
		var m struct {
			Room     string         `json:"room_id"`
			Unsigned map[string]any `json:"unsigned"`
		}
		b := e.AppendClient(nil, events.ClientFormat{User: "@alice:a.example", Device: c.device, Now: time.UnixMilli(1700000001000), ReaderMembership: "join"})
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if m.Unsigned["transaction_id"] != c.txn {
			t.Errorf("device %q sees transaction %v", c.device, m.Unsigned["transaction_id"])
		}
		if m.Unsigned["age"] != 1000.0 || m.Unsigned["replaces_state"] != string(old.ID) || m.Unsigned["membership"] != "join" || m.Room != "!room:a.example" {
			t.Errorf("unsigned %v, room %s", m.Unsigned, m.Room)
		}
	}
}

func FuzzParse(f *testing.F) {
	empty := ""
	for _, v := range versions {
		e, err := events.Build(events.Proto{
			Version: v, Room: "!room:a.example", Sender: "@a:a.example", Type: "m.room.topic", StateKey: &empty,
			Content: json.RawMessage(`{"topic":"x"}`), Time: time.UnixMilli(1), Depth: 1,
		}, signer("a.example"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e.JSON, string(v))
	}
	f.Add([]byte(`{"type":"m.room.create","state_key":"","sender":"@a:b","content":{},"room_id":7}`), "12")
	f.Add([]byte(`{"auth_events":[[1]],"prev_events":{},"depth":-1}`), "1")
	f.Fuzz(func(t *testing.T, raw []byte, version string) {
		e, err := events.Parse(raw, gomatrixserverlib.RoomVersion(version))
		if err != nil {
			return
		}
		again, err := events.Parse(e.JSON, e.Version)
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v\n%s", err, e.JSON)
		}
		if again.ID != e.ID || again.Room != e.Room {
			t.Fatalf("%s in %s became %s in %s", e.ID, e.Room, again.ID, again.Room)
		}
		e.PrevEvents()
		e.AuthEvents()
		if b := e.AppendClient(nil, events.ClientFormat{Now: time.UnixMilli(5)}); !json.Valid(b) {
			t.Fatalf("not JSON: %s", b)
		}
	})
}

func unbase64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hashed gives a PDU the hash that its content has.
func hashed(t testing.TB, raw []byte) []byte {
	t.Helper()
	c, err := matrix.CanonicalObject(raw, false)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(c)
	return append([]byte(`{"hashes":{"sha256":"`+base64.RawStdEncoding.EncodeToString(sum[:])+`"},`), raw[1:]...)
}
