package hstest_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/livekit"
	realkit "github.com/carillon-chat/carillon/test/livekit"
)

// callToken asks for a token for the call of a room.
func callToken(room id.RoomID, more map[string]any) map[string]any {
	body := map[string]any{"room_id": room, "slot_id": "m.call#ROOM", "member": map[string]string{"id": "xyz", "claimed_device_id": "DEVICE"}}
	for k, v := range more {
		body[k] = v
	}
	return body
}

// grants reads what a token says.
func grants(t *testing.T, token string) gjson.Result {
	t.Helper()
	part := strings.Split(token, ".")
	if len(part) != 3 {
		t.Fatalf("no token: %q", token)
	}
	b, err := base64.RawURLEncoding.DecodeString(part[1])
	if err != nil {
		t.Fatal(err)
	}
	return gjson.ParseBytes(b)
}

func TestCallsOfTwoServers(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t, func(o *homeserver.Options) {
		o.Realtime.LiveKitURL, o.Realtime.LiveKitKey = "wss://sfu.of."+strings.ReplaceAll(string(o.ServerName), ":", ".")+".example", "key"
		o.Realtime.LiveKitSecret = strings.Repeat("secret", 6)
	})
	alice, bob, eve := a.User("alice"), b.User("bob"), b.User("eve")
	room := alice.Room(nil)
	if _, err := bob.JoinRoom(t.Context(), string(room), &mautrix.ReqJoinRoom{Via: []string{string(a.Name)}}); err != nil {
		t.Fatal(err)
	}
	alice.SyncUntil("bob's joining", func(*mautrix.RespSync) bool { return membership(alice, room, bob.UserID) == "join" })
	path := livekit.Base + "/get_token"

	// Each asks his own server for tokens of the other's.
	from := alice.OK("POST", path, callToken(room, map[string]any{"server_name": b.Name}))
	if from.Get("url").Str != "wss://sfu.of."+strings.ReplaceAll(string(b.Name), ":", ".")+".example" {
		t.Errorf("the other server's: %s", from)
	}
	g := grants(t, from.Get("jwt").Str)
	if v := g.Get("video"); v.Get("canPublish").Bool() || v.Get("roomCreate").Bool() || !v.Get("canSubscribe").Bool() || !v.Get("roomJoin").Bool() {
		t.Errorf("somebody from elsewhere may %s", v)
	}
	again := grants(t, alice.OK("POST", path, callToken(room, map[string]any{"server_name": b.Name})).Get("jwt").Str)
	if again.Get("sub").Str != g.Get("sub").Str || again.Get("video.room").Str != g.Get("video.room").Str || strings.Contains(g.Raw, "alice") || strings.Contains(g.Raw, string(room)) {
		t.Errorf("the names are %s and %s", g, again)
	}
	if r := a.Do(alice.AccessToken, "POST", path, callToken(room, map[string]any{"server_name": "c.example"})); r.Status != 401 || r.Code() != "M_UNAUTHORIZED" {
		t.Errorf("of a server that is not in the room: %d %s", r.Status, r.Body)
	}
	if r := b.Do(eve.AccessToken, "POST", path, callToken(room, map[string]any{"server_name": a.Name})); r.Status != 401 || r.Code() != "M_UNAUTHORIZED" {
		t.Errorf("eve is in no room: %d %s", r.Status, r.Body)
	}

	// Clients of today show a token of OpenID to the other server itself.
	open := func(u *hstest.User) map[string]any {
		return u.OK("POST", hstest.Path("user", string(u.UserID), "openid", "request_token"), map[string]any{}).Value().(map[string]any)
	}
	old := map[string]any{"room": room, "device_id": "DEVICE", "openid_token": open(bob)}
	r := a.Do("", "POST", livekit.Base+"/sfu/get", old)
	if g := grants(t, r.Get("jwt").Str); g.Get("sub").Str != string(bob.UserID)+":DEVICE" || !g.Get("video.canPublish").Bool() || g.Get("video.roomCreate").Bool() {
		t.Errorf("with OpenID: %d %s", r.Status, g)
	}
	if r := a.Do("", "POST", path, callToken(room, map[string]any{"openid_token": open(bob)})); r.Status != 200 || grants(t, r.Get("jwt").Str).Get("video.canPublish").Bool() {
		t.Errorf("with OpenID: %d %s", r.Status, r.Body)
	}
	old["openid_token"] = open(eve)
	if r := a.Do("", "POST", livekit.Base+"/sfu/get", old); r.Status != 401 || r.Code() != "M_UNAUTHORIZED" {
		t.Errorf("eve with OpenID: %d %s", r.Status, r.Body)
	}
	old["openid_token"] = map[string]any{"access_token": "nonsense", "matrix_server_name": b.Name}
	if r := a.Do("", "POST", livekit.Base+"/sfu/get", old); r.Status != 401 || r.Code() != "M_UNAUTHORIZED" {
		t.Errorf("a token that nobody has given: %d %s", r.Status, r.Body)
	}

	// Bob goes: there is nothing for him any more.
	bob.OK("POST", hstest.Path("rooms", string(room), "leave"), map[string]any{})
	alice.SyncUntil("bob's leaving", func(*mautrix.RespSync) bool { return membership(alice, room, bob.UserID) == "leave" })
	if r := a.Do("", "POST", path, callToken(room, map[string]any{"openid_token": open(bob)})); r.Status != 401 {
		t.Errorf("bob has left: %d %s", r.Status, r.Body)
	}
}

// What clients are told of is what lets them in.
func TestCallsOnARealServer(t *testing.T) {
	t.Parallel()
	sfu := realkit.Start(t, "")
	s := hstest.New(t, hstest.OAuth, func(o *homeserver.Options) {
		o.Realtime.LiveKitURL, o.Realtime.LiveKitKey, o.Realtime.LiveKitSecret = sfu.URL, sfu.Key, sfu.Secret
	})
	alice := s.User("alice")
	room := alice.Room(nil)
	told := alice.OK("GET", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", nil).Get("rtc_transports.0")
	service, ok := strings.CutPrefix(told.Get("livekit_service_url").Str, s.URL)
	if !ok || told.Get("type").Str != "livekit" {
		t.Fatalf("clients are told of %s", told)
	}
	id := alice.OK("POST", hstest.Path("user", string(alice.UserID), "openid", "request_token"), map[string]any{}).Value()
	got := s.Do("", "POST", service+"/sfu/get", map[string]any{"room": room, "device_id": "D", "openid_token": id})
	r, err := http.Get(sfu.API + "/rtc/validate?access_token=" + got.Get("jwt").Str)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Errorf("the LiveKit server says %s to %s", r.Status, got.Body)
	}
}
