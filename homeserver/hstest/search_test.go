package hstest_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
)

func find(u *hstest.User, term string) gjson.Result {
	return u.OK("POST", hstest.V3+"/search", fmt.Sprintf(
		`{"search_categories":{"room_events":{"search_term":%q,"order_by":"recent"}}}`, term)).Get("search_categories.room_events")
}

// Over two servers: what came after joining is found at once, what was before
// when it has been fetched, and an edit and a redaction from afar hold.
func TestSearchAcrossServers(t *testing.T) {
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"})
	early := alice.Say(room, "历史消息 early")
	alice.OK("PUT", hstest.Path("rooms", room.String(), "send", "m.room.message", "edit"), map[string]any{
		"msgtype": "m.text", "body": "* changed", "m.new_content": map[string]any{"msgtype": "m.text", "body": "历史已改 changed"},
		"m.relates_to": map[string]any{"rel_type": "m.replace", "event_id": early},
	})
	if _, err := bob.JoinRoom(t.Context(), room.String(), &mautrix.ReqJoinRoom{Via: []string{string(a.Name)}}); err != nil {
		t.Fatal(err)
	}
	late := alice.Say(room, "late 新消息")
	b.Eventually("the new message is found", func() bool { return find(bob, "新消息").Get("results.0.result.event_id").Str == late.String() })

	bob.OK("GET", hstest.Path("rooms", room.String(), "messages")+"?dir=b&limit=100", nil)
	if r := find(bob, "历史"); r.Get("count").Int() != 1 || r.Get("results.0.result.event_id").Str != early.String() {
		t.Errorf("fetched history: %s", r)
	}
	if r := find(bob, "early"); r.Get("count").Int() != 0 {
		t.Errorf("the text before the edit is found: %s", r)
	}
	if _, err := alice.RedactEvent(t.Context(), room, early); err != nil {
		t.Fatal(err)
	}
	b.Eventually("the redacted message is not found", func() bool { return find(bob, "历史").Get("count").Int() == 0 })
}

// The server of a company fetches a page for its people.
func TestLinkPreview(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<title>公告</title>")
	}))
	defer web.Close()
	path := "/_matrix/client/v1/media/preview_url?url=" + url.QueryEscape(web.URL)
	s := hstest.New(t, func(o *homeserver.Options) { o.Previews = homeserver.Previews{Enabled: true, AllowPrivate: true} })
	if r := s.User("alice").OK("GET", path, nil); r.Get("og:title").Str != "公告" {
		t.Errorf("preview %s", r)
	}
	s = hstest.New(t, func(o *homeserver.Options) { o.Previews.Enabled = true })
	s.User("alice").Refused(http.StatusBadGateway, "M_UNKNOWN", "GET", path, nil)
	s = hstest.New(t)
	s.User("alice").Refused(http.StatusNotFound, "M_UNRECOGNIZED", "GET", path, nil)
}
