package e2ee_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

func (s *server) toDevice(user matrix.UserID, id matrix.DeviceID, from stream.Pos, limit int) (msgs []json.RawMessage, upTo stream.Pos) {
	s.t.Helper()
	err := s.db.Read(s.t.Context(), func(tx *sqldb.Tx) (err error) {
		msgs, upTo, err = s.keys.ToDevice(s.t.Context(), tx, user, id, from, s.log.Head(), limit)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return msgs, upTo
}

func TestSendToDevice(t *testing.T) {
	s := start(t)
	body := m{"messages": m{
		string(bob):            m{"*": m{"n": 1}, "B1": m{"n": 2}, "NONE": m{"n": 3}},
		"@nobody:example.org":  m{"*": m{"n": 4}},
		string(alice):          m{"A2": m{"n": 5}},
		"@x:elsewhere.example": m{"*": m{"n": 6}},
	}}
	for range 3 { // the same transaction counts once
		s.want(200, "{}", a1, "PUT", "/sendToDevice/m.x/txn", body)
	}
	if told := s.changes(stream.KindToDevice); len(told) != 4 {
		t.Errorf("told of %+v", told)
	}
	for id, want := range map[matrix.DeviceID]string{"B1": `{"content":{"n":2},"sender":"@alice:example.org","type":"m.x"}`, "B2": `{"content":{"n":1},"sender":"@alice:example.org","type":"m.x"}`} {
		if msgs, _ := s.toDevice(bob, id, 0, 10); len(msgs) != 1 || string(msgs[0]) != want {
			t.Errorf("%s has %s", id, msgs)
		}
	}
	s.want(200, "{}", a1, "PUT", "/sendToDevice/m.x/txn2", body)
	s.want(200, "{}", a2, "PUT", "/sendToDevice/m.x/txn", body) // another device's transaction
	if msgs, _ := s.toDevice(bob, "B1", 0, 10); len(msgs) != 3 {
		t.Errorf("B1 has %s", msgs)
	}
	for _, tt := range []struct{ code, txn, body string }{
		{"M_MISSING_PARAM", "e1", `{}`},
		{"M_BAD_JSON", "e2", `{"messages":[]}`},
		{"M_BAD_JSON", "e3", `{"messages":{"@a:b":{"X":"text"}}}`},
		{"M_INVALID_PARAM", "e4", `{"messages":{"a":{"X":{}}}}`},
		{"M_INVALID_PARAM", "a%00", `{"messages":{}}`},
		{"M_INVALID_PARAM", strings.Repeat("x", 300), `{"messages":{}}`},
		{"M_NOT_JSON", "e5", `{`},
	} {
		s.want(400, tt.code, a1, "PUT", "/sendToDevice/m.x/"+tt.txn, tt.body)
	}
	s.want(200, "{}", a1, "PUT", "/sendToDevice/m.x/e6", `{"messages":{}}`)
}

func TestInbox(t *testing.T) {
	s := start(t)
	for i := range 25 {
		s.want(200, "{}", a1, "PUT", fmt.Sprintf("/sendToDevice/m.x/%d", i), m{"messages": m{string(bob): m{"B1": m{"n": i}}}})
	}
	if s.keys.HasToDevice(bob, "B2", 0) || !s.keys.HasToDevice(bob, "B1", 0) {
		t.Error("HasToDevice is wrong")
	}
	var (
		from stream.Pos
		got  int
	)
	for round := range 4 {
		if round == 2 {
			s.open() // a restart in between
		}
		if err := s.keys.AckToDevice(t.Context(), bob, "B1", from); err != nil {
			t.Fatal(err)
		}
		msgs, upTo := s.toDevice(bob, "B1", from, 10)
		for _, msg := range msgs {
			if !strings.Contains(string(msg), fmt.Sprintf(`{"n":%d}`, got)) {
				t.Errorf("message %d is %s", got, msg)
			}
			got++
		}
		if again, upTo2 := s.toDevice(bob, "B1", from, 10); len(again) != len(msgs) || upTo2 != upTo {
			t.Errorf("the same sync again gave %d messages, not %d", len(again), len(msgs))
		}
		from = upTo
	}
	if got != 25 || from != s.log.Head() {
		t.Errorf("%d messages up to %d", got, from)
	}
	if err := s.keys.AckToDevice(t.Context(), bob, "B1", from); err != nil {
		t.Fatal(err)
	}
	if msgs, _ := s.toDevice(bob, "B1", 0, 100); len(msgs) != 0 {
		t.Errorf("acknowledged messages are still there: %d", len(msgs))
	}
	s.open()
	if s.keys.HasToDevice(bob, "B1", 0) {
		t.Error("after a restart something waits")
	}
}

func TestFederatedToDevice(t *testing.T) {
	s := start(t)
	before := s.log.Head()
	s.want(200, "{}", a1, "PUT", "/sendToDevice/m.x/1", m{"messages": m{string(carol): m{"*": m{"n": 1}}}})
	told := s.changes(stream.KindToDevice)
	if len(told) != 1 || told[0].User != carol {
		t.Fatalf("told of %+v", told)
	}
	out, err := s.keys.Outgoing(t.Context(), before, s.log.Head())
	if err != nil || len(out) != 1 || out[0].Server != "far.example.org" || out[0].Pos != told[0].Pos {
		t.Fatalf("outgoing: %+v, %v", out, err)
	}
	edu := decode(t, string(out[0].Content))
	if at(edu, "sender") != string(alice) || at(edu, "type") != "m.x" || at(edu, "messages", string(carol), "*", "n") != 1.0 || at(edu, "message_id") == "" {
		t.Errorf("EDU: %v", edu)
	}
	if err := s.db.Write(t.Context(), func(tx *sqldb.Tx) error { return s.keys.DropOutgoing(tx, s.log.Head()) }); err != nil {
		t.Fatal(err)
	}
	if out, err = s.keys.Outgoing(t.Context(), 0, s.log.Head()); err != nil || len(out) != 0 {
		t.Errorf("after dropping: %v, %v", out, err)
	}

	in := json.RawMessage(`{"sender":"@carol:far.example.org","type":"m.y","message_id":"id1","messages":{"@bob:example.org":{"*":{"a":1}},"@dave:far.example.org":{"*":{"a":1}}}}`)
	for range 2 {
		if err := s.service.DirectToDevice(t.Context(), "far.example.org", in); err != nil {
			t.Fatal(err)
		}
	}
	if msgs, _ := s.toDevice(bob, "B2", 0, 10); len(msgs) != 1 || string(msgs[0]) != `{"content":{"a":1},"sender":"@carol:far.example.org","type":"m.y"}` {
		t.Errorf("B2 has %s", msgs)
	}
	for origin, bad := range map[matrix.ServerName]string{
		"evil.example.org": string(in),
		"far.example.org":  `{"sender":"@carol:far.example.org","type":"m.y","messages":{}}`,
		"example.org":      `{"sender":"@bob:example.org","type":"m.y","message_id":"x","messages":{}}`,
	} {
		if err := s.service.DirectToDevice(t.Context(), origin, json.RawMessage(bad)); err == nil {
			t.Errorf("%s may send %s", origin, bad)
		}
	}
}
