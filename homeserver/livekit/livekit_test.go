package livekit_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/delayed"
	"github.com/carillon-chat/carillon/homeserver/livekit"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	realkit "github.com/carillon-chat/carillon/test/livekit"
)

const (
	alice  = partstest.Alice
	bob    = partstest.Bob
	path   = livekit.Base + "/get_token"
	secret = "a secret of more than thirty-two bytes"
)

type world struct {
	*partstest.World
	k *livekit.LiveKit
	d *delayed.Delayed
}

func open(t *testing.T, o livekit.Options) *world {
	t.Helper()
	w := &world{World: partstest.New(t, sqldbtest.Open(t), rooms.Options{})}
	o.Server = partstest.Here
	if o.Whose == nil {
		o.Whose = func(_ context.Context, _ matrix.ServerName, token string) (matrix.UserID, error) {
			if user, ok := strings.CutPrefix(token, "of "); ok {
				return matrix.UserID(user), nil
			}
			return "", matrix.UnknownToken(false)
		}
	}
	var err error
	if w.d, err = delayed.New(w.Ctx, w.DB, w.Events, w.Rooms, delayed.Options{}); err != nil {
		t.Fatal(err)
	}
	o.Delays = w.d
	if w.k, err = livekit.New(w.Ctx, w.DB, w.Rooms, o); err != nil {
		t.Fatal(err)
	}
	w.API.Add(w.k.Routes()...)
	w.API.Add(w.d.Routes()...)
	w.Run(w.d.Run, w.k.Run)
	return w
}

func ask(room matrix.RoomID) string {
	return fmt.Sprintf(`{"room_id":%q,"slot_id":"m.call#ROOM","member":{"id":"xyz","claimed_device_id":"DEVICE"}}`, room)
}

// claims checks the signature of a token with nothing but the algorithm, and reads it.
func claims(t *testing.T, key, token string) gjson.Result {
	t.Helper()
	part := strings.Split(token, ".")
	if len(part) != 3 {
		t.Fatalf("no token: %q", token)
	}
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(part[0] + "." + part[1]))
	if base64.RawURLEncoding.EncodeToString(mac.Sum(nil)) != part[2] {
		t.Fatalf("the signature of %s is not of the secret", token)
	}
	head, err := base64.RawURLEncoding.DecodeString(part[0])
	if err != nil || gjson.GetBytes(head, "alg").Str != "HS256" || gjson.GetBytes(head, "typ").Str != "JWT" {
		t.Fatalf("the head is %s", head)
	}
	body, err := base64.RawURLEncoding.DecodeString(part[1])
	if err != nil {
		t.Fatal(err)
	}
	return gjson.ParseBytes(body)
}

func TestRealServer(t *testing.T) {
	t.Parallel()
	real := realkit.Start(t, "")
	w := open(t, livekit.Options{URL: real.URL, Key: real.Key, Secret: real.Secret})
	room := w.Room(alice, bob)
	valid := func(token string) int {
		t.Helper()
		r, err := http.Get(real.API + "/rtc/validate?access_token=" + token)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		return r.StatusCode
	}
	first := gjson.Parse(w.Want(alice, "POST", path, ask(room), 200, ""))
	if first.Get("url").Str != real.URL {
		t.Errorf("the answer is %s", first)
	}
	second := gjson.Parse(w.Want(bob, "POST", path, ask(room), 200, ""))
	one, two := claims(t, real.Secret, first.Get("jwt").Str), claims(t, real.Secret, second.Get("jwt").Str)
	if one.Get("video.room").Str != two.Get("video.room").Str || one.Get("sub").Str == two.Get("sub").Str {
		t.Errorf("two members of a call: %s and %s", one, two)
	}
	for _, token := range []string{first.Get("jwt").Str, second.Get("jwt").Str} {
		if code := valid(token); code != 200 {
			t.Errorf("the server takes no token: %d", code)
		}
	}
	if code := valid(first.Get("jwt").Str[:60] + "x" + first.Get("jwt").Str[61:]); code != 401 {
		t.Errorf("a changed token: %d", code)
	}
	// The call is there, and nobody had it opened but us.
	req, err := http.NewRequest("POST", real.API+"/twirp/livekit.RoomService/ListRooms", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+sign(real.Key, real.Secret, `{"roomList":true}`))
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	list, err := io.ReadAll(r.Body)
	if err != nil || gjson.GetBytes(list, "rooms.#").Int() != 1 || gjson.GetBytes(list, "rooms.0.name").Str != one.Get("video.room").Str {
		t.Errorf("the server's rooms are %s", list)
	}
}

// sign makes a token with nothing but the algorithm.
func sign(key, secret, video string) string {
	enc := base64.RawURLEncoding.EncodeToString
	s := enc([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc(fmt.Appendf(nil, `{"iss":%q,"exp":%d,"video":%s}`, key, time.Now().Add(time.Minute).Unix(), video))
	return signed(secret, s)
}

func signed(secret, s string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(s))
	return s + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func TestWhoGetsIn(t *testing.T) {
	w := open(t, livekit.Options{URL: "ws://127.0.0.1:1/", Key: "key", Secret: secret}) // nobody listens there
	room := w.Room(alice)
	// Whoever is not in the room hears the same whether there is such a room or not.
	a := w.Want(bob, "POST", path, ask(room), 401, "M_UNAUTHORIZED")
	if b := w.Want(bob, "POST", path, ask("!none:a.example"), 401, "M_UNAUTHORIZED"); a != b {
		t.Errorf("a room that is not there: %s, one that is: %s", b, a)
	}
	w.Want("", "POST", path, ask(room), 401, "M_MISSING_TOKEN")
	// An own user has the call opened, and is told when that fails.
	if out := w.Want(alice, "POST", path, ask(room), 502, "M_UNKNOWN"); strings.Contains(out, "127.0.0.1") {
		t.Errorf("a client learns where the server is: %s", out)
	}
	for _, c := range []struct{ body, code string }{
		{`{`, "M_NOT_JSON"},
		{`{}`, "M_MISSING_PARAM"},
		{`{"room_id":3}`, "M_BAD_JSON"},
		{`{"room_id":"x","slot_id":"s","member":{"id":"a","claimed_device_id":"b"}}`, "M_INVALID_PARAM"},
		{`{"room_id":"!a:b","slot_id":"s","member":{"id":"a"}}`, "M_MISSING_PARAM"},
		{`{"room_id":"!a:b","slot_id":"` + strings.Repeat("s", 256) + `","member":{"id":"a","claimed_device_id":"b"}}`, "M_INVALID_PARAM"},
		{strings.Replace(ask(room), "{", `{"server_name":"a b",`, 1), "M_INVALID_PARAM"},
	} {
		w.Want(alice, "POST", path, c.body, 400, c.code)
	}
	w.Want(alice, "POST", path, strings.Replace(ask(room), "{", `{"server_name":"b.example",`, 1), 401, "M_UNAUTHORIZED") // is not in the room
	w.Want("", "POST", livekit.Base+"/sfu/get", `{"room":"`+string(room)+`","device_id":"D"}`, 400, "M_MISSING_PARAM")
	// Tokens of OpenID: unknown, of somebody else's server, of a server that is not in the room, of another user than claimed.
	for _, id := range []string{
		`{"access_token":"nonsense","matrix_server_name":"a.example"}`,
		`{"access_token":"of @eve:b.example","matrix_server_name":"a.example"}`,
		`{"access_token":"of @eve:b.example","matrix_server_name":"b.example"}`,
	} {
		w.Want("", "POST", livekit.Base+"/sfu/get", `{"room":"`+string(room)+`","device_id":"D","openid_token":`+id+`}`, 401, "M_UNAUTHORIZED")
		w.Want("", "POST", path, strings.Replace(ask(room), "{", `{"openid_token":`+id+`,`, 1), 401, "M_UNAUTHORIZED")
	}
	claimed := strings.Replace(ask(room), `"member":{`, `"openid_token":{"access_token":"of @alice:a.example","matrix_server_name":"a.example"},"member":{"claimed_user_id":"@bob:a.example",`, 1)
	w.Want("", "POST", path, claimed, 401, "M_UNAUTHORIZED")
}

// Without a server for calls there is none to get into, and no secret is made.
func TestNoServer(t *testing.T) {
	w := open(t, livekit.Options{})
	room := w.Room(alice)
	w.Want(alice, "POST", path, ask(room), 404, "M_NOT_FOUND")
	w.Want(bob, "POST", path, ask(room), 401, "M_UNAUTHORIZED")
	for _, o := range []livekit.Options{
		{URL: "https://x", Key: "key", Secret: secret}, {URL: "wss://x", Secret: secret}, {URL: "wss://x", Key: "key", Secret: "short"}, {URL: "wss://%", Key: "key", Secret: secret},
	} {
		if _, err := livekit.New(w.Ctx, w.DB, w.Rooms, o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// The names are those of the proposal's own vectors.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want string
	}{
		{[]string{"!roomid:example.com", "slot1234"}, "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc"},
		{[]string{"!roomid:example.com", "slot123", "random123"}, "IMeDd+K3MIqJTI20EXBIrepKkhhORvf3q8fx3rlrhTk"},
		{[]string{"@alice:example.com", "DEVICE123", "memberABC"}, "J+T45tGruxc+HrUOqJJlyQSV33m728Cme4+vt8/SWrU"},
	} {
		if got, err := livekit.Hash(c.in...); err != nil || got != c.want {
			t.Errorf("%q: %s %v, want %s", c.in, got, err, c.want)
		}
	}
	// Canonical JSON writes these as they are.
	plain, err := livekit.Hash("<&>\u2028", "é")
	sum := sha256.Sum256([]byte("[\"<&>\u2028\",\"é\"]"))
	if err != nil || plain != base64.RawStdEncoding.EncodeToString(sum[:]) {
		t.Errorf("%s %v", plain, err)
	}
}

// The name of a call stays after a start, and is another on another server.
func TestAliasStays(t *testing.T) {
	w := open(t, livekit.Options{URL: "wss://x", Key: "key", Secret: secret})
	again, err := livekit.New(w.Ctx, w.DB, w.Rooms, livekit.Options{Server: partstest.Here, URL: "wss://x", Key: "key", Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, livekit.Options{URL: "wss://x", Key: "key", Secret: secret})
	a, b, c := livekit.Alias(w.k, "!a:b", "s"), livekit.Alias(again, "!a:b", "s"), livekit.Alias(other.k, "!a:b", "s")
	if a != b || a == c || a == livekit.Alias(w.k, "!a:bs", "") || a == livekit.Alias(w.k, "!a:b", "t") {
		t.Errorf("%s, after a start %s, elsewhere %s", a, b, c)
	}
	if bytes.Contains([]byte(a), []byte("!")) || json.Valid([]byte(a)) {
		t.Errorf("the name is %s", a)
	}
}
