package notices_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/notices"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const path = "/_carillon/admin/v1/notices"

func options(o *homeserver.Options) {
	o.Admins = []matrix.UserID{"@chief:a.example"}
	o.Notices = &notices.Options{
		Localpart: "_server", DisplayName: "The server", AvatarURL: "mxc://a.example/face", RoomName: "Notices", RoomTopic: "Of the server",
		RoomAvatar: "mxc://a.example/room", MayLeave: true,
	}
}

func notice(to *hstest.User, text string) map[string]any {
	return map[string]any{"user_id": to.UserID, "content": map[string]string{"msgtype": "m.text", "body": text}}
}

// membership is that of a user in a room, as the server has it.
func membership(t *testing.T, s *hstest.Server, u *hstest.User, room string) string {
	t.Helper()
	m, err := s.Rooms().MembershipOf(context.Background(), matrix.UserID(u.UserID), matrix.RoomID(room))
	if err != nil || m == nil {
		t.Fatalf("membership of %s: %v, %v", u.UserID, m, err)
	}
	return m.Membership
}

func TestNotices(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, options)
	chief, alice := s.User("chief"), s.User("alice")
	alice.OK("PUT", hstest.Path("user", string(alice.UserID), "account_data", "m.invite_permission_config"), map[string]string{"default_action": "block"})

	first := chief.OK("POST", path, notice(alice, "hello"))
	room := first.Get("room_id").Str
	invited := alice.RawSync("").Get("rooms.invite").Get(gjsonEscape(room))
	if e := invited.Get(`invite_state.events.#(type=="m.room.name").content.name`).Str; e != "Notices" {
		t.Fatalf("the invitation: %s", invited.Raw)
	}
	if by := invited.Get(`invite_state.events.#(state_key=="` + string(alice.UserID) + `").sender`).Str; by != "@_server:a.example" {
		t.Errorf("invited by %s", by)
	}
	leave := hstest.Path("rooms", room, "leave")
	alice.Refused(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "POST", leave, map[string]any{})
	alice.Refused(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "PUT", hstest.Path("rooms", room, "state", "m.room.member", string(alice.UserID)), map[string]string{"membership": "leave"})

	alice.OK("POST", hstest.Path("rooms", room, "join"), map[string]any{})
	in := alice.RawSync("").Get("rooms.join").Get(gjsonEscape(room))
	if !in.Get(`timeline.events.#(event_id=="`+first.Get("event_id").Str+`")`).Exists() || !in.Get(`account_data.events.#(type=="m.tag").content.tags.m\.server_notice`).Exists() {
		t.Errorf("the room: %s", in.Raw)
	}
	alice.Refused(403, "M_FORBIDDEN", "PUT", hstest.Path("rooms", room, "send", "m.room.message", "1"), map[string]string{"msgtype": "m.text", "body": "and I?"})
	chief.Refused(403, "M_FORBIDDEN", "POST", hstest.Path("rooms", room, "join"), map[string]any{})
	face := alice.OK("GET", hstest.Path("profile", "@_server:a.example"), nil)
	if face.Get("displayname").Str != "The server" || face.Get("avatar_url").Str != "mxc://a.example/face" {
		t.Errorf("the sender: %s", face.Raw)
	}

	// Who has left is invited to the same room again, also after a restart.
	alice.OK("POST", leave, map[string]any{})
	alice.OK("POST", hstest.Path("rooms", room, "forget"), map[string]any{})
	s.Stop()
	s.Start()
	again := s.Do(chief.AccessToken, "POST", "/_synapse/admin/v1/send_server_notice", notice(alice, "come back"))
	if again.Status != 200 || again.Get("room_id").Str != room || membership(t, s, alice, room) != "invite" {
		t.Errorf("again: %d %s", again.Status, again.Body)
	}
}

func TestRepeatedAndActiveNotices(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, options)
	chief, alice := s.User("chief"), s.User("alice")
	put := func(txn string) string {
		return chief.OK("PUT", path+"/"+txn, notice(alice, "once")).Get("event_id").Str
	}
	if a, b, c := put("1"), put("1"), put("2"); a != b || a == c {
		t.Errorf("the same twice: %s, %s; another: %s", a, b, c)
	}
	q := notice(alice, "look")
	q["pin"] = true
	r := chief.OK("POST", path, q)
	room, id := r.Get("room_id").Str, r.Get("event_id").Str
	alice.OK("POST", hstest.Path("rooms", room, "join"), map[string]any{})
	pinned := func() string {
		return alice.OK("GET", hstest.Path("rooms", room, "state", "m.room.pinned_events"), nil).Get("pinned").Raw
	}
	if got := pinned(); got != `["`+id+`"]` {
		t.Errorf("active: %s", got)
	}
	chief.OK("DELETE", path+"/"+url.PathEscape(string(alice.UserID))+"/"+url.PathEscape(id), nil)
	if got := pinned(); got != `[]` {
		t.Errorf("active in the end: %s", got)
	}
}

func TestBadNotices(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, options)
	chief, alice := s.User("chief"), s.User("alice")
	alice.Refused(403, "M_FORBIDDEN", "POST", path, notice(alice, "from me"))
	if a := s.Do("", "POST", path, notice(alice, "from nobody")); a.Status != 401 {
		t.Errorf("without a token: %d", a.Status)
	}
	for body, code := range map[string]string{
		`{"user_id":"@nobody:a.example","content":{}}`:                       "M_NOT_FOUND",
		`{"user_id":"@alice:b.example","content":{}}`:                        "M_NOT_FOUND",
		`{"user_id":"@_server:a.example","content":{}}`:                      "M_NOT_FOUND",
		`{"user_id":"alice","content":{}}`:                                   "M_INVALID_PARAM",
		`{"content":{}}`:                                                     "M_MISSING_PARAM",
		`{"user_id":"@alice:a.example"}`:                                     "M_MISSING_PARAM",
		`{"user_id":"@alice:a.example","content":"x"}`:                       "M_BAD_JSON",
		`{"user_id":"@alice:a.example","content":[]}`:                        "M_BAD_JSON",
		`{"user_id":"@alice:a.example","content":{},"type":"m.room.member"}`: "M_INVALID_PARAM",
		`{"user_id":"@alice:a.example","content":{"body":"` + long + `"}}`:   "M_TOO_LARGE",
		`{"user_id":7}`: "M_BAD_JSON",
		`{`:             "M_NOT_JSON",
	} {
		if a := chief.Do("POST", path, body); a.Code() != code || a.Status >= 500 {
			t.Errorf("%.80s: %d %.200s, want %s", body, a.Status, a.Body, code)
		}
	}
	missing := "/" + url.PathEscape(string(alice.UserID)) + "/" + url.PathEscape("$x")
	if a := s.Do(chief.AccessToken, "DELETE", path+missing, nil); a.Status != 404 && a.Status != 200 {
		t.Errorf("ending what never was: %d %s", a.Status, a.Body)
	}
}

var long = strings.Repeat("x", 70_000)

// A person's account is never taken for the sender.
func TestTakenName(t *testing.T) {
	t.Parallel()
	o := homeserver.Options{ServerName: "a.example", DataDir: t.TempDir(), Database: sqldbtest.DSN(t), Version: "test"}
	s, err := homeserver.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Accounts().Create(t.Context(), accounts.NewUser{ID: "@_server:a.example"})
	s.Close()
	if err != nil {
		t.Fatal(err)
	}
	options(&o)
	if s, err := homeserver.New(t.Context(), o); err == nil {
		s.Close()
		t.Error("a person's account sends notices")
	}
}

func TestClosedAccount(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, options)
	chief, alice := s.User("chief"), s.User("alice")
	room := chief.OK("POST", path, notice(alice, "hello")).Get("room_id").Str
	if err := s.Accounts().Deactivate(context.Background(), matrix.UserID(alice.UserID), false); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the closed account leaves", func() bool { return membership(t, s, alice, room) == "leave" })
	chief.Refused(404, "M_NOT_FOUND", "POST", path, notice(alice, "too late"))
}

func gjsonEscape(s string) string {
	return strings.NewReplacer(".", `\.`, ":", `\:`, "|", `\|`, "!", `\!`, "#", `\#`).Replace(s)
}
