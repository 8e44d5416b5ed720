package push_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// A rule of the user's own, evaluated against events: the tables of the
// specification.
func TestConditions(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	room := f.Room(alice, bob, carol)
	f.Set(room, alice, "m.room.power_levels", "", `{"notifications":{"room":50},"users_default":0}`)
	for i, c := range []struct {
		condition string
		typ       string
		content   string
		want      bool
	}{
		// event_match: whole values, letters of either case.
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, "x.t", `{"topic":"Lunch plans"}`, true},
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, "x.t", `{"topic":"LUNCH"}`, true},
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, "x.t", `{"topic":" lunch"}`, false},
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, "x.t", `{"topic":"lunc"}`, false},
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, "x.t", `{"topic":null}`, false},
		{`{"kind":"event_match","key":"content.topic","pattern":"*"}`, "x.t", `{}`, false},
		{`{"kind":"event_match","key":"content.topic","pattern":"*"}`, "x.t", `{"topic":1}`, false},
		{`{"kind":"event_match","key":"content.topic","pattern":"*"}`, "x.t", `{"topic":"a\nb"}`, true},
		{`{"kind":"event_match","key":"content.topic","pattern":"a.c"}`, "x.t", `{"topic":"abc"}`, false},
		{`{"kind":"event_match","key":"content.topic","pattern":"A.C"}`, "x.t", `{"topic":"a.c"}`, true},
		{`{"kind":"event_match","key":"type","pattern":"X.*"}`, "x.t", `{}`, true},
		{`{"kind":"event_match","key":"sender","pattern":"@alice:*"}`, "x.t", `{}`, true},
		{`{"kind":"event_match","key":"state_key","pattern":"*"}`, "x.t", `{}`, false},
		{`{"kind":"event_match","key":"content.a\\.b.c","pattern":"v"}`, "x.t", `{"a.b":{"c":"v"}}`, true},
		{`{"kind":"event_match","key":"content.a\\.b.c","pattern":"v"}`, "x.t", `{"a":{"b":{"c":"v"}}}`, false},
		{`{"kind":"event_match","key":"content.topic"}`, "x.t", `{"topic":""}`, false},
		// content.body: any part between word boundaries.
		{`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`, "x.t", `{"body":"An example event."}`, true},
		{`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`, "x.t", `{"body":"exple"}`, true},
		{`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`, "x.t", `{"body":"An exciting triple-whammy"}`, true},
		{`{"kind":"event_match","key":"content.body","pattern":"cake"}`, "x.t", `{"body":"pancakes"}`, false},
		{`{"kind":"event_match","key":"content.body","pattern":"cake"}`, "x.t", `{"body":"my_cake"}`, false},
		{`{"kind":"event_match","key":"content.body","pattern":"cake"}`, "x.t", `{"body":"(CAKE)"}`, true},
		{`{"kind":"event_match","key":"content.body","pattern":"会议"}`, "x.t", `{"body":"今天的会议取消了"}`, true},
		// event_property_is: exact, no casts.
		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`, "x.t", `{"m.federate":true}`, true},
		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`, "x.t", `{"m.federate":"true"}`, false},
		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`, "x.t", `{"m.federate":1}`, false},
		{`{"kind":"event_property_is","key":"content.v","value":1}`, "x.t", `{"v":1}`, true},
		{`{"kind":"event_property_is","key":"content.v","value":null}`, "x.t", `{"v":null}`, true},
		{`{"kind":"event_property_is","key":"content.v","value":null}`, "x.t", `{}`, false},
		{`{"kind":"event_property_is","key":"content.v","value":"a"}`, "x.t", `{"v":"A"}`, false},
		{`{"kind":"event_property_is","key":"content.v","value":{"a":1}}`, "x.t", `{"v":{"a":1}}`, false},
		{`{"kind":"event_property_is","key":"content.v"}`, "x.t", `{"v":1}`, false},
		// event_property_contains.
		{`{"kind":"event_property_contains","key":"content.l","value":"#myroom:example.com"}`, "x.t", `{"l":["#a:b",1,"#myroom:example.com"]}`, true},
		{`{"kind":"event_property_contains","key":"content.l","value":":example.com"}`, "x.t", `{"l":["#myroom:example.com"]}`, false},
		{`{"kind":"event_property_contains","key":"content.l","value":1}`, "x.t", `{"l":[{},1]}`, true},
		{`{"kind":"event_property_contains","key":"content.l","value":1}`, "x.t", `{"l":1}`, false},
		{`{"kind":"event_property_contains","key":"content.l","value":1}`, "x.t", `{}`, false},
		// contains_display_name.
		{`{"kind":"contains_display_name"}`, "x.t", `{"body":"hi Bob!"}`, true},
		{`{"kind":"contains_display_name"}`, "x.t", `{"body":"bobby"}`, false},
		{`{"kind":"contains_display_name"}`, "x.t", `{"body":5}`, false},
		// room_member_count: there are three.
		{`{"kind":"room_member_count","is":"3"}`, "x.t", `{}`, true},
		{`{"kind":"room_member_count","is":"==3"}`, "x.t", `{}`, true},
		{`{"kind":"room_member_count","is":"2"}`, "x.t", `{}`, false},
		{`{"kind":"room_member_count","is":"<3"}`, "x.t", `{}`, false},
		{`{"kind":"room_member_count","is":"<=3"}`, "x.t", `{}`, true},
		{`{"kind":"room_member_count","is":">2"}`, "x.t", `{}`, true},
		{`{"kind":"room_member_count","is":">=4"}`, "x.t", `{}`, false},
		{`{"kind":"room_member_count","is":"!3"}`, "x.t", `{}`, false},
		{`{"kind":"room_member_count","is":""}`, "x.t", `{}`, false},
		// sender_notification_permission: the sender has 100.
		{`{"kind":"sender_notification_permission","key":"room"}`, "x.t", `{}`, true},
		{`{"kind":"sender_notification_permission","key":"other"}`, "x.t", `{}`, true},
		{`{"kind":"sender_notification_permission"}`, "x.t", `{}`, false},
		// Unknown ones never match.
		{`{"kind":"org.example.moon","phase":"full"}`, "x.t", `{}`, false},
	} {
		f.Want(bob, "PUT", rule("override", "test"), `{"conditions":[`+c.condition+`],"actions":["notify"]}`, 200, "")
		before := f.unread(room, bob).Main.Notify
		f.Send(room, alice, c.typ, c.content)
		if got := f.unread(room, bob).Main.Notify > before; got != c.want {
			t.Errorf("%d: %s on %s: %v", i, c.condition, c.content, got)
		}
		f.read(room, bob)
	}
}

// Escapes in paths, on events as other servers may send them.
func TestEscapedPaths(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	for _, c := range []struct {
		key, content string
		want         bool
	}{
		{`content.a\\\\b`, `{"a\\b":"v"}`, true},
		{`content.a\\x`, `{"a\\x":"v"}`, true},
		{`content.a\\.b`, `{"a.b":"v"}`, true},
		{`content.a\\.b`, `{"a":{"b":"v"}}`, false},
	} {
		f.Want(bob, "PUT", rule("override", "test"), `{"conditions":[{"kind":"event_match","key":"`+c.key+`","pattern":"v"}],"actions":["notify"]}`, 200, "")
		s := push.NewSubject("!r", alice, "x.t", nil, []byte(`{"content":`+c.content+`}`))
		if got := f.p.Ruleset(bob).Evaluate(s, bob, empty{}).Notify; got != c.want {
			t.Errorf("%s on %s: %v", c.key, c.content, got)
		}
	}
}

// empty is a room that knows nothing.
type empty struct{}

func (empty) MemberCount() int                     { return 0 }
func (empty) DisplayName(matrix.UserID) string     { return "" }
func (empty) MayNotify(matrix.UserID, string) bool { return false }
func (empty) Follows(*push.Subject, matrix.UserID) (inThread, follows bool) {
	return false, false
}

const rules = "/_matrix/client/v3/pushrules/"

func rule(kind, id string) string { return rules + "global/" + kind + "/" + id }

func (f *fixture) ids(user matrix.UserID, kind string) string {
	f.T.Helper()
	var all struct {
		Global map[string][]struct {
			ID string `json:"rule_id"`
		}
	}
	if err := json.Unmarshal([]byte(f.Want(user, "GET", rules, "", 200, "")), &all); err != nil {
		f.T.Fatal(err)
	}
	want := 5
	if f.threadRules {
		want = 6
	}
	if len(all.Global) != want {
		f.T.Fatalf("kinds: %v", all.Global)
	}
	var ids []string
	for _, r := range all.Global[kind] {
		ids = append(ids, strings.TrimPrefix(r.ID, ".m.rule."))
	}
	return strings.Join(ids, " ")
}

const (
	overrides  = "suppress_notices invite_for_me member_event is_user_mention is_room_mention tombstone reaction room.server_acl .org.matrix.msc3930.rule.poll_response suppress_edits"
	underrides = "call encrypted_room_one_to_one room_one_to_one message encrypted .org.matrix.msc3930.rule.poll_start_one_to_one .org.matrix.msc3930.rule.poll_start .org.matrix.msc3930.rule.poll_end_one_to_one .org.matrix.msc3930.rule.poll_end"
)

func TestRules(t *testing.T) {
	db := sqldbtest.Open(t)
	f := open(t, db)
	if got := f.ids(alice, "override"); got != "master "+overrides {
		t.Errorf("override %s", got)
	}
	if got := f.ids(alice, "underride"); got != underrides {
		t.Errorf("underride %s", got)
	}
	put := func(id, query string) {
		f.Want(alice, "PUT", rule("override", id)+query, `{"actions":["notify","dont_notify"]}`, 200, "")
	}
	before := f.Log.Head()
	put("a", "")
	put("b", "")
	put("c", "?after=a")
	put("d", "?before=a")
	put("e", "?after=b&before=c")
	if got := f.ids(alice, "override"); got != "master b d a e c "+overrides {
		t.Errorf("override %s", got)
	}
	put("c", "?before=b")
	if got := f.ids(alice, "override"); got != "master c b d a e "+overrides {
		t.Errorf("override %s", got)
	}
	put("a", "") // an update stays where it is
	if got := f.ids(alice, "override"); got != "master c b d a e "+overrides {
		t.Errorf("override %s", got)
	}
	if f.p.RulesSince(alice, before, f.Log.Head()) == nil || f.p.RulesSince(alice, f.Log.Head(), f.Log.Head()) != nil || f.p.RulesSince(bob, before, f.Log.Head()) != nil {
		t.Error("RulesSince")
	}
	f.Want(alice, "DELETE", rule("override", "e"), "", 200, "")
	f.Want(alice, "DELETE", rule("override", "e"), "", 404, "M_NOT_FOUND")
	if got := f.Want(alice, "GET", rule("override", "a"), "", 200, ""); got != `{"rule_id":"a","default":false,"enabled":true,"conditions":[],"actions":["notify","dont_notify"]}` {
		t.Errorf("rule %s", got)
	}
	f.Want(alice, "PUT", rule("override", "a")+"/enabled", `{"enabled":false}`, 200, "")
	f.Want(alice, "PUT", rule("override", "a"), `{"actions":[]}`, 200, "") // keeps it disabled
	if got := f.Want(alice, "GET", rule("override", "a")+"/enabled", "", 200, ""); got != `{"enabled":false}` {
		t.Errorf("enabled %s", got)
	}
	f.Want(alice, "PUT", rule("override", ".m.rule.master")+"/enabled", `{"enabled":true}`, 200, "")
	f.Want(alice, "PUT", rule("underride", ".m.rule.message")+"/actions", `{"actions":["notify",{"set_tweak":"sound","value":"x"}]}`, 200, "")
	if got := f.Want(alice, "GET", rule("underride", ".m.rule.message")+"/actions", "", 200, ""); got != `{"actions":["notify",{"set_tweak":"sound","value":"x"}]}` {
		t.Errorf("actions %s", got)
	}
	f.Want(alice, "PUT", rule("content", "cake"), `{"pattern":"cake*lie","actions":["notify"]}`, 200, "")
	if got := f.Want(alice, "GET", rule("content", "cake"), "", 200, ""); got != `{"rule_id":"cake","default":false,"enabled":true,"pattern":"cake*lie","actions":["notify"]}` {
		t.Errorf("rule %s", got)
	}
	before2 := f.Want(alice, "GET", rules+"global/", "", 200, "")
	f.Stop()
	f = open(t, db)
	if after := f.Want(alice, "GET", rules+"global", "", 200, ""); after != before2 {
		t.Errorf("after a restart %s, was %s", after, before2)
	}
	if got := f.ids(bob, "override"); got != "master "+overrides {
		t.Errorf("bob has alice's rules: %s", got)
	}
}

func TestRuleErrors(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	f.Want(alice, "PUT", rule("override", "a"), `{"actions":[]}`, 200, "")
	for _, c := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"PUT", rule("override", ".mine"), `{"actions":[]}`, 400, "M_INVALID_PARAM"},
		{"PUT", rule("override", "a%2Fb"), `{"actions":[]}`, 400, "M_INVALID_PARAM"},
		{"PUT", rule("override", "a%5Cb"), `{"actions":[]}`, 400, "M_INVALID_PARAM"},
		{"PUT", rule("sideways", "a"), `{"actions":[]}`, 400, "M_INVALID_PARAM"},
		{"PUT", rule("override", "b"), `{}`, 400, "M_MISSING_PARAM"},
		{"PUT", rule("override", "b"), `{"actions":["explode"]}`, 400, "M_INVALID_PARAM"},
		{"PUT", rule("override", "b"), `{"actions":[{"x":1}]}`, 400, "M_INVALID_PARAM"},
		{"PUT", rule("override", "b"), `{"actions":[null]}`, 400, "M_INVALID_PARAM"},
		{"PUT", rule("override", "b"), `{"actions":[],"conditions":[5]}`, 400, "M_INVALID_PARAM"},
		{"PUT", rule("override", "b"), `{"actions":5}`, 400, "M_BAD_JSON"},
		{"PUT", rule("override", "b"), `nope`, 400, "M_NOT_JSON"},
		{"PUT", rule("content", "b"), `{"actions":[]}`, 400, "M_MISSING_PARAM"},
		{"PUT", rule("override", "b") + "?before=zzz", `{"actions":[]}`, 400, "M_UNKNOWN"},
		{"PUT", rule("override", "b") + "?after=.m.rule.tombstone", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
		{"DELETE", rule("override", ".m.rule.tombstone"), ``, 400, "M_INVALID_PARAM"},
		{"GET", rule("override", "zzz"), ``, 404, "M_NOT_FOUND"},
		{"GET", rule("room", "a"), ``, 404, "M_NOT_FOUND"},
		{"GET", rule("override", "zzz") + "/enabled", ``, 404, "M_NOT_FOUND"},
		{"PUT", rule("override", "zzz") + "/enabled", `{"enabled":true}`, 404, "M_NOT_FOUND"},
		{"PUT", rule("override", "a") + "/enabled", `{}`, 400, "M_MISSING_PARAM"},
		{"PUT", rule("override", "a") + "/enabled", `{"enabled":"yes"}`, 400, "M_BAD_JSON"},
		{"PUT", rule("override", "zzz") + "/actions", `{"actions":[]}`, 404, "M_NOT_FOUND"},
		{"PUT", rule("override", "a") + "/actions", `{}`, 400, "M_MISSING_PARAM"},
		{"PUT", rule("override", strings.Repeat("a", 256)), `{"actions":[]}`, 400, "M_INVALID_PARAM"},
	} {
		f.Want(alice, c.method, c.path, c.body, c.status, c.code)
	}
}

// The definitions of the specification, in a few telling places.
func TestDefaultRules(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	for path, want := range map[string]string{
		rule("override", ".m.rule.master"):                     `{"rule_id":".m.rule.master","default":true,"enabled":false,"conditions":[],"actions":[]}`,
		rule("override", ".m.rule.is_user_mention"):            `{"rule_id":".m.rule.is_user_mention","default":true,"enabled":true,"conditions":[{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"@alice:a.example"}],"actions":["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}]}`,
		rule("override", ".m.rule.suppress_edits"):             `{"rule_id":".m.rule.suppress_edits","default":true,"enabled":true,"conditions":[{"kind":"event_property_is","key":"content.m\\.relates_to.rel_type","value":"m.replace"}],"actions":[]}`,
		rule("override", ".m.rule.is_room_mention"):            `{"rule_id":".m.rule.is_room_mention","default":true,"enabled":true,"conditions":[{"kind":"event_property_is","key":"content.m\\.mentions.room","value":true},{"kind":"sender_notification_permission","key":"room"}],"actions":["notify",{"set_tweak":"highlight"}]}`,
		rule("underride", ".m.rule.encrypted_room_one_to_one"): `{"rule_id":".m.rule.encrypted_room_one_to_one","default":true,"enabled":true,"conditions":[{"kind":"room_member_count","is":"2"},{"kind":"event_match","key":"type","pattern":"m.room.encrypted"}],"actions":["notify",{"set_tweak":"sound","value":"default"}]}`,
	} {
		if got := f.Want(alice, "GET", path, "", 200, ""); got != want {
			t.Errorf("%s\n%s\nwant\n%s", path, got, want)
		}
	}
}
