package events_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

func TestRedactPDU(t *testing.T) {
	const all = `"auth_events":[],"content":%,"depth":1,"event_id":"$e","hashes":{},"membership":"x","more":1,"origin":"a","origin_server_ts":1,` +
		`"prev_events":[],"prev_state":[],"redacts":"$r","room_id":"!r","sender":"@a:a","signatures":{},"state_key":"","type":"`
	const old = `"auth_events":[],"content":%,"depth":1,"event_id":"$e","hashes":{},"membership":"x","origin":"a","origin_server_ts":1,` +
		`"prev_events":[],"prev_state":[],"room_id":"!r","sender":"@a:a","signatures":{},"state_key":"","type":"`
	const recent = `"auth_events":[],"content":%,"depth":1,"event_id":"$e","hashes":{},"origin_server_ts":1,` +
		`"prev_events":[],"room_id":"!r","sender":"@a:a","signatures":{},"state_key":"","type":"`
	with := func(frame, content, typ string) string {
		return "{" + strings.Replace(frame, "%", content, 1) + typ + `"}`
	}
	for _, c := range []struct{ typ, content, v1, v6, v8, v9, v11 string }{
		{"m.room.message", `{"body":"x"}`, `{}`, `{}`, `{}`, `{}`, `{}`},
		{
			"m.room.member", `{"displayname":"d","join_authorised_via_users_server":"@u:s","membership":"join","third_party_invite":{"display_name":"n","signed":{"token":"t"}}}`,
			`{"membership":"join"}`, `{"membership":"join"}`, `{"membership":"join"}`,
			`{"join_authorised_via_users_server":"@u:s","membership":"join"}`,
			`{"join_authorised_via_users_server":"@u:s","membership":"join","third_party_invite":{"signed":{"token":"t"}}}`,
		},
		{"m.room.create", `{"creator":"@a:a","m.federate":true}`, `{"creator":"@a:a"}`, `{"creator":"@a:a"}`, `{"creator":"@a:a"}`, `{"creator":"@a:a"}`, `{"creator":"@a:a","m.federate":true}`},
		{"m.room.join_rules", `{"allow":[],"join_rule":"public"}`, `{"join_rule":"public"}`, `{"join_rule":"public"}`, `{"allow":[],"join_rule":"public"}`, `{"allow":[],"join_rule":"public"}`, `{"allow":[],"join_rule":"public"}`},
		{"m.room.power_levels", `{"ban":1,"invite":2,"users":{"@q\"x:a":9007199254740991}}`, `{"ban":1,"users":{"@q\"x:a":9007199254740991}}`, `{"ban":1,"users":{"@q\"x:a":9007199254740991}}`, `{"ban":1,"users":{"@q\"x:a":9007199254740991}}`, `{"ban":1,"users":{"@q\"x:a":9007199254740991}}`, `{"ban":1,"invite":2,"users":{"@q\"x:a":9007199254740991}}`},
		{"m.room.aliases", `{"aliases":[]}`, `{"aliases":[]}`, `{}`, `{}`, `{}`, `{}`},
		{"m.room.history_visibility", `{"history_visibility":"shared","x":1}`, `{"history_visibility":"shared"}`, `{"history_visibility":"shared"}`, `{"history_visibility":"shared"}`, `{"history_visibility":"shared"}`, `{"history_visibility":"shared"}`},
		{"m.room.redaction", `{"reason":"r","redacts":"$e"}`, `{}`, `{}`, `{}`, `{}`, `{"redacts":"$e"}`},
	} {
		for version, want := range map[gomatrixserverlib.RoomVersion]string{
			"1": c.v1, "5": c.v1, "6": c.v6, "7": c.v6, "8": c.v8, "9": c.v9, "10": c.v9, "11": c.v11, "12": c.v11,
		} {
			frame := old
			if version == "11" || version == "12" {
				frame = recent
			}
			got, err := events.RedactPDU([]byte(with(all, c.content, c.typ)), version)
			if err != nil || string(got) != with(frame, want, c.typ) {
				t.Errorf("%s in version %s: %s, %v; want content %s", c.typ, version, got, err, want)
			}
		}
	}
	if got, err := events.RedactPDU([]byte(`{"depth":1,"type":"x"}`), "11"); err != nil || string(got) != `{"content":{},"depth":1,"type":"x"}` {
		t.Errorf("no content: %s, %v", got, err)
	}
	for _, bad := range []string{`{"type":"x","content":[]}`, `{"content":{}}`, `{"type":1}`} {
		if got, err := events.RedactPDU([]byte(bad), "11"); err == nil {
			t.Errorf("%s was redacted to %s", bad, got)
		}
	}
}

// Keys with escapes stay what they are, through hashing, signing and reading.
func TestAwkwardKeys(t *testing.T) {
	const content = `{"\u0001":1,"\\":{"q\"x":[{"\n":2}]},"q\"x":3}`
	for _, version := range versions {
		p := events.Proto{Version: version, Room: "!r:a.example", Type: "m.room.create", StateKey: new(string), Content: json.RawMessage(content), Depth: 1}
		if version == "12" {
			p.Room = ""
		}
		e := build(t, p)
		if got := string(e.Content()); got != content {
			t.Errorf("version %s: %s", version, got)
		}
		got, err := events.Parse(e.JSON, version)
		if err != nil || got.ID != e.ID || !bytes.Equal(got.JSON, e.JSON) {
			t.Errorf("version %s: %v, %+v", version, err, got)
		}
		red, err := events.RedactPDU(e.JSON, version)
		if err != nil {
			t.Fatal(err)
		}
		msg, err := matrix.CanonicalObject(red, false, "signatures")
		if err != nil {
			t.Fatal(err)
		}
		var sigs struct {
			Signatures map[string]map[string]string `json:"signatures"`
		}
		if err := json.Unmarshal(e.JSON, &sigs); err != nil {
			t.Fatal(err)
		}
		s := signer("a.example")
		if sig := unbase64(t, sigs.Signatures["a.example"]["ed25519:1"]); !ed25519.Verify(s.Key.Public().(ed25519.PublicKey), msg, sig) {
			t.Errorf("version %s: the signature is not over %s", version, msg)
		}
	}
}

// The library must not read other values than those that were signed: it takes
// keys for the same that differ in the case of their letters.
func TestKeysThatDifferInCase(t *testing.T) {
	raw := []byte(`{"auth_events":[],"content":{"membership":"leave","member` + "\u017f" + `hip":"join","MEMBERSHIP":"ban","X":1},"depth":1,"origin_server_ts":1,` +
		`"prev_events":[],"room_id":"!r:a.example","sender":"@eve:evil.example","` + "\u017f" + `ender":"@alice:a.example","state_key":"@eve:evil.example","type":"m.room.member"}`)
	e, err := events.Parse(hashed(t, raw), "10")
	if err != nil {
		t.Fatal(err)
	}
	pdu, err := e.PDU()
	if err != nil {
		t.Fatal(err)
	}
	membership, err := pdu.Membership()
	if err != nil || membership != "leave" || pdu.SenderID() != "@eve:evil.example" || e.Sender != "@eve:evil.example" {
		t.Errorf("%q by %s and %s, %v", membership, pdu.SenderID(), e.Sender, err)
	}
	if !bytes.Contains(e.JSON, []byte("\u017fender")) || !bytes.Contains(e.JSON, []byte(`"X":1`)) {
		t.Errorf("the event itself lost a key: %s", e.JSON)
	}
	servers, _, err := events.Signers(e.JSON, "10")
	if err != nil || len(servers) != 1 || servers[0] != "evil.example" {
		t.Errorf("signers %v, %v", servers, err)
	}
}

func TestSigners(t *testing.T) {
	const rest = `"origin_server_ts":5,"sender":"@a:a.example","event_id":"$x:c.example","type":"m.room.member","state_key":"@b:b.example"`
	for _, c := range []struct {
		version       gomatrixserverlib.RoomVersion
		content, want string
	}{
		{"1", `{"membership":"leave"}`, "a.example c.example"},
		{"3", `{"membership":"leave"}`, "a.example"},
		{"10", `{"membership":"invite"}`, "a.example"},
		{"7", `{"membership":"join","join_authorised_via_users_server":"@d:d.example"}`, "a.example"},
		{"8", `{"membership":"join","join_authorised_via_users_server":"@d:d.example"}`, "a.example d.example"},
		{"12", `{"membership":"join","join_authorised_via_users_server":"@d:a.example"}`, "a.example"},
		{"12", `{"membership":"join","join_authorised_via_users_server":1}`, ""},
		{"12", `{}`, ""},
	} {
		servers, at, err := events.Signers([]byte(`{"content":`+c.content+`,`+rest+`}`), c.version)
		var names []string
		for _, s := range servers {
			names = append(names, string(s))
		}
		if c.want == "" {
			if err == nil {
				t.Errorf("version %s %s: %v", c.version, c.content, names)
			}
			continue
		}
		if got := strings.Join(names, " "); err != nil || got != c.want || at != 5 {
			t.Errorf("version %s %s: %s at %d, %v; want %s", c.version, c.content, got, at, err, c.want)
		}
	}
}
