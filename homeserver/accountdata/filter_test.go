package accountdata_test

import (
	"errors"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

var badFilters = []string{
	`[]`, `"x"`, `7`, `null`,
	`{"presence":"not_an_object"}`,
	`{"presence":{"senders":"not_an_array"}}`,
	`{"presence":{"senders":["not a user ID"]}}`,
	`{"room":{"timeline":{"rooms":["not_a_room_id"]}}}`,
	`{"room":{"timeline":{"senders":["@no-server"]}}}`,
	`{"room":{"rooms":[1]}}`,
	`{"room":{"timeline":{"limit":-1}}}`,
	`{"room":{"timeline":{"limit":"ten"}}}`,
	`{"room":{"timeline":{"contains_url":"yes"}}}`,
	`{"room":{"include_leave":1}}`,
	`{"event_format":"other"}`,
	`{"event_fields":"type"}`,
	`{"room":[]}`,
}

func TestEventFilter(t *testing.T) {
	tests := []struct {
		filter, typ, sender, room, content string
		want                               bool
	}{
		{`{}`, "m.x", "@a:b", "!r:b", `{}`, true},
		{`{"types":[]}`, "m.x", "@a:b", "!r:b", `{}`, false},
		{`{"types":null}`, "m.x", "@a:b", "!r:b", `{}`, true},
		{`{"types":["m.x"]}`, "m.x", "@a:b", "!r:b", `{}`, true},
		{`{"types":["m.x"]}`, "m.xy", "@a:b", "!r:b", `{}`, false},
		{`{"types":["m.room.*"]}`, "m.room.name", "@a:b", "!r:b", `{}`, true},
		{`{"types":["m.room.*"]}`, "m.rooms", "@a:b", "!r:b", `{}`, false},
		{`{"types":["*"]}`, "anything", "@a:b", "!r:b", `{}`, true},
		{`{"types":["*.name"]}`, "m.room.name", "@a:b", "!r:b", `{}`, true},
		{`{"types":["m.*.*e"]}`, "m.room.name", "@a:b", "!r:b", `{}`, true},
		{`{"types":["m.*.*e"]}`, "m.room.topic", "@a:b", "!r:b", `{}`, false},
		{`{"types":["a*a"]}`, "a", "@a:b", "!r:b", `{}`, false},
		{`{"types":["a*a"]}`, "aa", "@a:b", "!r:b", `{}`, true},
		{`{"types":["m.x"],"not_types":["m.x"]}`, "m.x", "@a:b", "!r:b", `{}`, false},
		{`{"types":["m.x"],"not_types":["m.*"]}`, "m.x", "@a:b", "!r:b", `{}`, false},
		{`{"not_types":["m.?"]}`, "m.x", "@a:b", "!r:b", `{}`, true}, // only "*" is special
		{`{"not_types":[]}`, "m.x", "@a:b", "!r:b", `{}`, true},
		{`{"senders":["@a:b"]}`, "m.x", "@a:b", "!r:b", `{}`, true},
		{`{"senders":["@a:b"]}`, "m.x", "@c:b", "!r:b", `{}`, false},
		{`{"senders":[]}`, "m.x", "@c:b", "!r:b", `{}`, false},
		{`{"senders":["@a:b"],"not_senders":["@a:b"]}`, "m.x", "@a:b", "!r:b", `{}`, false},
		{`{"not_senders":["@c:b"]}`, "m.x", "@a:b", "!r:b", `{}`, true},
		{`{"rooms":["!r:b"]}`, "m.x", "@a:b", "!r:b", `{}`, true},
		{`{"rooms":["!s:b"]}`, "m.x", "@a:b", "!r:b", `{}`, false},
		{`{"rooms":["!r:b"],"not_rooms":["!r:b"]}`, "m.x", "@a:b", "!r:b", `{}`, false},
		{`{"contains_url":true}`, "m.x", "@a:b", "!r:b", `{"url":"mxc://b/c"}`, true},
		{`{"contains_url":true}`, "m.x", "@a:b", "!r:b", `{}`, false},
		{`{"contains_url":false}`, "m.x", "@a:b", "!r:b", `{"url":"mxc://b/c"}`, false},
		{`{"contains_url":false}`, "m.x", "@a:b", "!r:b", `{"info":{"url":1}}`, true},
		{`{"org.matrix.msc3874.rel_types":["m.thread"]}`, "m.x", "@a:b", "!r:b", `{"m.relates_to":{"rel_type":"m.thread"}}`, true},
		{`{"rel_types":["m.thread"]}`, "m.x", "@a:b", "!r:b", `{"m.relates_to":{"rel_type":"m.reference"}}`, false},
		{`{"rel_types":["m.thread"]}`, "m.x", "@a:b", "!r:b", `{}`, false},
		{`{"rel_types":[]}`, "m.x", "@a:b", "!r:b", `{"m.relates_to":{"rel_type":"m.thread"}}`, false},
		{`{"org.matrix.msc3874.not_rel_types":["m.thread"]}`, "m.x", "@a:b", "!r:b", `{"m.relates_to":{"rel_type":"m.thread"}}`, false},
		{`{"not_rel_types":["m.thread"]}`, "m.x", "@a:b", "!r:b", `{"m.relates_to":7}`, true},
	}
	for _, tt := range tests {
		f, err := accountdata.ParseEventFilter([]byte(tt.filter))
		if err != nil {
			t.Errorf("%s: %v", tt.filter, err)
			continue
		}
		if got := f.MatchEvent(matrix.RoomID(tt.room), tt.typ, matrix.UserID(tt.sender), []byte(tt.content)); got != tt.want {
			t.Errorf("%s on %s from %s in %s %s: %v", tt.filter, tt.typ, tt.sender, tt.room, tt.content, got)
		}
		if f.MatchesNothing() && tt.want || f.MatchesAll() && !tt.want {
			t.Errorf("%s: short cuts are wrong", tt.filter)
		}
	}
	var none *accountdata.EventFilter
	if !none.MatchEvent("!r:b", "m.x", "@a:b", nil) || none.Limit(20, 100) != 20 || none.MatchesNothing() || !none.MatchesAll() {
		t.Error("no filter does not want everything")
	}
	if f, err := accountdata.ParseEventFilter(nil); f != nil || err != nil {
		t.Errorf("empty: %v %v", f, err)
	}
}

func TestFilter(t *testing.T) {
	f, err := accountdata.ParseFilter([]byte(`{
		"event_format":"federation", "presence":{"types":["m.presence"],"not_senders":["@a:b"]}, "account_data":{"types":[]},
		"room":{"rooms":["!r:b","!s:b"],"not_rooms":["!s:b"],"include_leave":true,
			"state":{"lazy_load_members":true,"include_redundant_members":true},
			"timeline":{"limit":5000,"unread_thread_notifications":true},
			"ephemeral":{"not_types":["m.typing"]}, "account_data":{"types":["m.tag"]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	checks := map[string]bool{
		"format":        f.Federation(),
		"presence":      f.PresenceFilter().Match("m.presence", "@c:b") && !f.PresenceFilter().Match("m.presence", "@a:b"),
		"account data":  f.GlobalAccountData().MatchesNothing() && !f.GlobalAccountData().MatchType("m.x"),
		"rooms":         f.MatchRoom("!r:b") && !f.MatchRoom("!s:b") && !f.MatchRoom("!t:b"),
		"leave":         f.IncludeLeave(),
		"lazy":          f.LazyMembers() && f.State().IncludeRedundantMembers,
		"threads":       f.Timeline().UnreadThreads,
		"limit":         f.Timeline().Limit(10, 100) == 100,
		"ephemeral":     !f.Ephemeral().MatchType("m.typing") && f.Ephemeral().MatchType("m.receipt"),
		"room data":     f.RoomAccountData().MatchType("m.tag") && !f.RoomAccountData().MatchType("m.x"),
		"no fields":     !f.HasFields(),
		"nothing by it": !f.Timeline().MatchesNothing() && f.Timeline().MatchesAll(),
	}
	for name, ok := range checks {
		if !ok {
			t.Errorf("%s is wrong", name)
		}
	}
	var none *accountdata.Filter
	if !none.MatchRoom("!x:y") || none.IncludeLeave() || none.LazyMembers() || none.Timeline() != nil || none.Federation() {
		t.Error("no filter does not behave as the default")
	}
	for _, bad := range badFilters {
		if _, err := accountdata.ParseFilter([]byte(bad)); !matrix.IsCode(err, "M_BAD_JSON") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// Whatever comes in, the parser ends with a filter or with an error for the client, and the filter can be used.
func FuzzParseFilter(f *testing.F) {
	for _, s := range badFilters {
		f.Add([]byte(s), "m.room.message", []byte(`{"type":"m.x","content":{"a":1}}`))
	}
	f.Add([]byte(`{"room":{"timeline":{"types":["**a*","m.*","*"],"limit":3}},"event_fields":["a.b","a\\.b","..","\\"]}`), "m.x", []byte(`{"a":{"b":1}}`))
	f.Fuzz(func(t *testing.T, definition []byte, typ string, event []byte) {
		filter, err := accountdata.ParseFilter(definition)
		if err != nil {
			var e *matrix.Error
			if !errors.As(err, &e) || e.Status != 400 {
				t.Fatalf("not a client's error: %v", err)
			}
			return
		}
		for _, part := range []*accountdata.EventFilter{filter.State(), filter.Timeline(), filter.Ephemeral(), filter.PresenceFilter()} {
			match := part.MatchEvent("!r:b", typ, "@a:b", event)
			if match && part.MatchesNothing() || !match && part.MatchesAll() {
				t.Fatal("short cuts disagree with the match")
			}
			if n := part.Limit(10, 100); n < 1 || n > 100 {
				t.Fatalf("limit %d", n)
			}
		}
		filter.MatchRoom("!r:b")
		filter.Project(event)
	})
}
