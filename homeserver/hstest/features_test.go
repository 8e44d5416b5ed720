package hstest_test

import (
	"bytes"
	"encoding/base64"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

func TestDiscoveryAndCORS(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, func(o *homeserver.Options) { o.PublicURL = "https://chat.a.example/" })
	v := s.Do("", "GET", "/_matrix/client/versions", nil)
	if !strings.Contains(v.Get("versions").Raw, `"v1.12"`) {
		t.Errorf("versions: %s", v.Body)
	}
	w := s.Do("", "GET", "/.well-known/matrix/client", nil)
	if w.Get(`m\.homeserver.base_url`).Str != "https://chat.a.example" || w.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("well-known: %s %v", w.Body, w.Header)
	}
	c := s.User("alice").OK("GET", hstest.Path("capabilities"), nil).Get("capabilities")
	if c.Get(`m\.room_versions.default`).Str != "12" || c.Get(`m\.room_versions.available.1`).Str != "stable" || !c.Get(`m\.change_password.enabled`).Bool() {
		t.Errorf("capabilities: %s", c.Raw)
	}
	req, err := http.NewRequestWithContext(t.Context(), "OPTIONS", s.URL+hstest.Path("sync"), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://app.example")
	req.Header.Set("Access-Control-Request-Method", "GET")
	req.Header.Set("Access-Control-Request-Headers", "Authorization")
	a := s.Send(req)
	if a.Status/100 != 2 || a.Header.Get("Access-Control-Allow-Origin") != "*" ||
		!strings.Contains(a.Header.Get("Access-Control-Allow-Headers"), "Authorization") || !strings.Contains(a.Header.Get("Access-Control-Allow-Methods"), "PUT") {
		t.Errorf("the preflight: %d %v", a.Status, a.Header)
	}
	if a := s.Do("", "GET", hstest.Path("sync"), nil); a.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Error("an error lacks the CORS headers")
	}
	want(t, "an unknown path", s.Do("", "GET", "/_matrix/client/v3/nothing", nil), 404, "M_UNRECOGNIZED")
	want(t, "a wrong method", s.Do("", "DELETE", hstest.Path("sync"), nil), 405, "M_UNRECOGNIZED")
}

func TestRateLimits(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, func(o *homeserver.Options) { o.RateLimits = httpapi.RateLimits{PerSecond: 0.05, Burst: 5} })
	alice := s.User("alice")
	room := alice.Room(nil)
	for i := range 12 {
		a := alice.Do("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", string(rune('a'+i))), text("spam"))
		if a.Status == 200 {
			continue
		}
		want(t, "too many", a, 429, "M_LIMIT_EXCEEDED")
		if a.Get("retry_after_ms").Int() <= 0 || a.Header.Get("Retry-After") == "" {
			t.Errorf("when to come again: %s %v", a.Body, a.Header)
		}
		return
	}
	t.Error("twelve messages in a row were let through")
}

func TestLogInAttemptsAreLimited(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, func(o *homeserver.Options) { o.LoginAttempts = 0.1 })
	s.User("alice")
	for range 10 {
		if a := login(s, "alice", "wrong"); a.Status == 429 {
			return
		}
	}
	t.Error("ten wrong passwords in a row were looked at")
}

func TestKeyBackup(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	room := "!r:a.example"
	alice.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("room_keys", "version"), nil)
	data := map[string]any{"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": map[string]any{"public_key": "abc", "signatures": map[string]any{}}}
	version := alice.OK("POST", hstest.Path("room_keys", "version"), data).Get("version").Str
	put := func(session string, verified bool, first, forwarded int, body string) int64 {
		return alice.OK("PUT", hstest.Path("room_keys", "keys", room, session)+"?version="+version, map[string]any{
			"first_message_index": first, "forwarded_count": forwarded, "is_verified": verified, "session_data": map[string]string{"ciphertext": body},
		}).Get("count").Int()
	}
	get := func(session string) string {
		return alice.OK("GET", hstest.Path("room_keys", "keys", room, session)+"?version="+version, nil).Get("session_data.ciphertext").Str
	}
	if n := put("s1", false, 10, 3, "first"); n != 1 {
		t.Errorf("count %d", n)
	}
	put("s1", false, 20, 3, "worse: later index")
	if got := get("s1"); got != "first" {
		t.Errorf("kept %q", got)
	}
	put("s1", true, 30, 5, "better: verified")
	if got := get("s1"); got != "better: verified" {
		t.Errorf("kept %q", got)
	}
	alice.OK("PUT", hstest.Path("room_keys", "keys")+"?version="+version, map[string]any{"rooms": map[string]any{"!q:a.example": map[string]any{"sessions": map[string]any{
		"s2": map[string]any{"first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": map[string]string{"ciphertext": "q"}},
	}}}})
	all := alice.OK("GET", hstest.Path("room_keys", "keys")+"?version="+version, nil).Get("rooms")
	if len(all.Map()) != 2 {
		t.Errorf("all keys: %s", all.Raw)
	}
	second := alice.OK("POST", hstest.Path("room_keys", "version"), data).Get("version").Str
	a := alice.Do("PUT", hstest.Path("room_keys", "keys", room, "s3")+"?version="+version, map[string]any{
		"first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": map[string]string{},
	})
	if want(t, "an old version", a, 403, "M_WRONG_ROOM_KEYS_VERSION"); a.Get("current_version").Str != second {
		t.Errorf("the current version is %s", a.Body)
	}
	if v := alice.OK("GET", hstest.Path("room_keys", "version"), nil); v.Get("version").Str != second || v.Get("count").Int() != 0 {
		t.Errorf("version: %s", v.Raw)
	}
	alice.OK("DELETE", hstest.Path("room_keys", "version", second), nil)
	if v := alice.OK("GET", hstest.Path("room_keys", "version"), nil); v.Get("version").Str != version || v.Get("count").Int() != 2 {
		t.Errorf("after a deletion: %s", v.Raw)
	}
	s.User("bob").Refused(404, "M_NOT_FOUND", "GET", hstest.Path("room_keys", "version", version), nil)
}

func TestPushRules(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	rules := func(path string) string { return hstest.Path("pushrules") + "/global/" + path }
	all := alice.OK("GET", hstest.Path("pushrules")+"/", nil)
	for _, id := range []string{".m.rule.master", ".m.rule.message", ".m.rule.is_user_mention", ".m.rule.room_one_to_one"} {
		if !strings.Contains(all.Raw, id) {
			t.Errorf("the default rule %s is missing", id)
		}
	}
	alice.OK("PUT", rules("content/cake"), map[string]any{"pattern": "蛋糕", "actions": []any{"notify", map[string]any{"set_tweak": "highlight"}}})
	if r := alice.OK("GET", rules("content/cake"), nil); r.Get("pattern").Str != "蛋糕" || !r.Get("enabled").Bool() {
		t.Errorf("the new rule is %s", r.Raw)
	}
	alice.OK("PUT", rules("content/cake/enabled"), map[string]bool{"enabled": false})
	if r := alice.OK("GET", rules("content/cake/enabled"), nil); r.Get("enabled").Bool() {
		t.Error("the rule is still on")
	}
	alice.OK("PUT", rules("content/cake/actions"), map[string]any{"actions": []string{}})
	alice.OK("PUT", rules("content/pie")+"?before=cake", map[string]any{"pattern": "pie", "actions": []string{"notify"}})
	if r := alice.OK("GET", rules(""), nil); r.Get("content.0.rule_id").Str != "pie" {
		t.Errorf("the first content rule is %s", r.Get("content.0").Raw)
	}
	alice.OK("DELETE", rules("content/cake"), nil)
	alice.Refused(404, "M_NOT_FOUND", "GET", rules("content/cake"), nil)
	alice.OK("PUT", rules("override/.m.rule.master/enabled"), map[string]bool{"enabled": true})
	if a := alice.Do("DELETE", rules("override/.m.rule.master"), nil); a.Status/100 == 2 {
		t.Error("a default rule can be deleted")
	}
	if a := alice.Do("PUT", rules("nonsense/x"), map[string]any{"actions": []string{}}); a.Status != 400 {
		t.Errorf("an unknown kind: %d %s", a.Status, a.Body)
	}
}

func picture(w, h int) []byte {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for x := range w {
		for y := range h {
			img.Set(x, y, color.RGBA{uint8(x), uint8(y), 128, 255})
		}
	}
	var b bytes.Buffer
	_ = png.Encode(&b, img) // into memory
	return b.Bytes()
}

// upload uploads a file and gives "server/id".
func upload(t *testing.T, u *hstest.User, s *hstest.Server, name, typ string, body []byte) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/_matrix/media/v3/upload?filename="+url.QueryEscape(name), bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+u.AccessToken)
	req.Header.Set("Content-Type", typ)
	a := s.Send(req)
	mxc, ok := strings.CutPrefix(a.Get("content_uri").Str, "mxc://")
	if a.Status != 200 || !ok {
		t.Fatalf("upload: %d %s", a.Status, a.Body)
	}
	return mxc
}

func TestMedia(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, func(o *homeserver.Options) {
		o.Media = homeserver.Media{MaxUpload: 1 << 20, MaxRemote: 1 << 20, MaxPixels: 10 << 20, DynamicThumbnails: true}
	})
	alice := s.User("alice")
	img := picture(400, 200)
	mxc := upload(t, alice, s, "图.png", "image/png", img)
	const base = "/_matrix/client/v1/media"
	a := alice.Do("GET", base+"/download/"+mxc, nil)
	if a.Status != 200 || !bytes.Equal(a.Body, img) || a.Header.Get("Content-Type") != "image/png" {
		t.Errorf("download: %d, %d bytes, %s", a.Status, len(a.Body), a.Header.Get("Content-Type"))
	}
	if d := a.Header.Get("Content-Disposition"); !strings.HasPrefix(d, "inline") || !strings.Contains(d, url.PathEscape("图")) {
		t.Errorf("disposition %q", d)
	}
	want(t, "without a token", s.Do("", "GET", base+"/download/"+mxc, nil), 401, "M_MISSING_TOKEN")
	a = alice.Do("GET", base+"/thumbnail/"+mxc+"?width=64&height=64&method=scale", nil)
	small, _, err := image.DecodeConfig(bytes.NewReader(a.Body))
	if a.Status != 200 || err != nil || small.Width < 64 || small.Width >= 400 {
		t.Errorf("thumbnail: %d, %dx%d, %v", a.Status, small.Width, small.Height, err)
	}
	if n := alice.OK("GET", base+"/config", nil).Get(`m\.upload\.size`).Int(); n != 1<<20 {
		t.Errorf("the upload limit is %d", n)
	}
	req, _ := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/_matrix/media/v3/upload", bytes.NewReader(make([]byte, 2<<20)))
	req.Header.Set("Authorization", "Bearer "+alice.AccessToken)
	want(t, "too large", s.Send(req), 413, "M_TOO_LARGE")
	want(t, "unknown", alice.Do("GET", base+"/download/a.example/nothing", nil), 404, "M_NOT_FOUND")
	page := upload(t, alice, s, "evil.html", "text/html", []byte("<script>alert(1)</script>"))
	a = alice.Do("GET", base+"/download/"+page, nil)
	if d := a.Header.Get("Content-Disposition"); !strings.HasPrefix(d, "attachment") || !strings.Contains(a.Header.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("a page comes as %q with the policy %q", d, a.Header.Get("Content-Security-Policy"))
	}
	s.Stop()
	s.Start()
	if a := alice.Do("GET", base+"/download/"+mxc, nil); !bytes.Equal(a.Body, img) {
		t.Error("after a restart the file is another one")
	}
}

func TestFederatedMedia(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t, func(o *homeserver.Options) {
		o.Media = homeserver.Media{MaxUpload: 1 << 20, MaxRemote: 1 << 20, MaxPixels: 10 << 20, DynamicThumbnails: true}
	})
	alice, bob := a.User("alice"), b.User("bob")
	img := picture(300, 300)
	mxc := upload(t, alice, a, "p.png", "image/png", img)
	for range 2 { // the second time from b's own copy
		if got := bob.Do("GET", "/_matrix/client/v1/media/download/"+mxc, nil); got.Status != 200 || !bytes.Equal(got.Body, img) {
			t.Fatalf("download over federation: %d %.200s", got.Status, got.Body)
		}
		a.Cut()
	}
	got := bob.Do("GET", "/_matrix/client/v1/media/thumbnail/"+mxc+"?width=32&height=32&method=crop", nil)
	if small, _, err := image.DecodeConfig(bytes.NewReader(got.Body)); got.Status != 200 || err != nil || small.Width >= 300 {
		t.Errorf("thumbnail over federation: %d, %v", got.Status, err)
	}
}

func TestUserDirectory(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	setDisplayName(t, s.User("wangxl"), "王小丽")
	for _, term := range []string{"wangx", "王小"} {
		r := alice.OK("POST", hstest.Path("user_directory", "search"), map[string]any{"search_term": term, "limit": 5})
		if r.Get("results.0.user_id").Str != "@wangxl:a.example" || r.Get("results.0.display_name").Str != "王小丽" {
			t.Errorf("%q finds %s", term, r.Raw)
		}
	}
}

// TestBadInput gives what clients get wrong to the server: it answers with the
// errcode that the specification names, and never with 500.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	room := alice.Room(nil)
	r := string(room)
	long := strings.Repeat("x", 70_000)
	for _, c := range []struct {
		name, method, path string
		body               any
		status             int
		code               string
	}{
		{"no JSON", "POST", hstest.Path("createRoom"), "{", 400, "M_NOT_JSON"},
		{"an array", "POST", hstest.Path("createRoom"), "[]", 400, "M_BAD_JSON"},
		{"a wrong type", "POST", hstest.Path("createRoom"), `{"name":5}`, 400, "M_BAD_JSON"},
		{"an unknown preset", "POST", hstest.Path("createRoom"), `{"preset":"odd"}`, 400, "M_INVALID_PARAM"},
		{"an unknown version", "POST", hstest.Path("createRoom"), `{"room_version":"99"}`, 400, "M_UNSUPPORTED_ROOM_VERSION"},
		{"a malformed guest", "POST", hstest.Path("createRoom"), `{"invite":["bob"]}`, 400, "M_INVALID_PARAM"},
		{"visibility", "POST", hstest.Path("createRoom"), `{"visibility":"odd"}`, 400, "M_INVALID_PARAM"},
		{"initial_state without a type", "POST", hstest.Path("createRoom"), `{"initial_state":[{"content":{}}]}`, 400, "M_INVALID_PARAM"},
		{"a message that is no object", "PUT", hstest.Path("rooms", r, "send", "m.room.message", "1"), `"hi"`, 400, "M_BAD_JSON"},
		{"a message that is no JSON", "PUT", hstest.Path("rooms", r, "send", "m.room.message", "2"), `{"a":}`, 400, "M_NOT_JSON"},
		{"invalid UTF-8", "PUT", hstest.Path("rooms", r, "send", "m.room.message", "3"), "{\"body\":\"\xff\"}", 400, "M_NOT_JSON"},
		{"a float", "PUT", hstest.Path("rooms", r, "send", "m.room.message", "4"), `{"n":1.5}`, 400, "M_BAD_JSON"},
		{"a huge number", "PUT", hstest.Path("rooms", r, "send", "m.room.message", "5"), `{"n":9007199254740992}`, 400, "M_BAD_JSON"},
		{"too long", "PUT", hstest.Path("rooms", r, "send", "m.room.message", "6"), text(long), 413, "M_TOO_LARGE"},
		{"too long a type", "PUT", hstest.Path("rooms", r, "send", long[:300], "7"), "{}", 413, "M_TOO_LARGE"},
		{"a malformed room", "PUT", hstest.Path("rooms", "nonsense", "send", "m.room.message", "8"), "{}", 400, "M_INVALID_PARAM"},
		{"an unknown room", "PUT", hstest.Path("rooms", "!x:a.example", "send", "m.room.message", "9"), "{}", 404, "M_NOT_FOUND"},
		{"a member event by hand", "PUT", hstest.Path("rooms", r, "state", "m.room.member", "@bob:a.example"), `{"membership":"odd"}`, 400, "M_BAD_JSON"},
		{"another's state key", "PUT", hstest.Path("rooms", r, "state", "x", "@bob:a.example"), "{}", 403, "M_FORBIDDEN"},
		{"a second create", "PUT", hstest.Path("rooms", r, "state", "m.room.create", ""), "{}", 400, "M_INVALID_PARAM"},
		{"no user", "POST", hstest.Path("rooms", r, "invite"), "{}", 400, "M_MISSING_PARAM"},
		{"a malformed user", "POST", hstest.Path("rooms", r, "kick"), `{"user_id":"bob"}`, 400, "M_INVALID_PARAM"},
		{"an unknown alias", "POST", hstest.Path("join", "#none:a.example"), "{}", 404, "M_NOT_FOUND"},
		{"a malformed alias", "POST", hstest.Path("join", "#none"), "{}", 400, "M_INVALID_PARAM"},
		{"a direction", "GET", hstest.Path("rooms", r, "messages") + "?dir=x", nil, 400, "M_INVALID_PARAM"},
		{"a token", "GET", hstest.Path("rooms", r, "messages") + "?dir=b&from=x", nil, 400, "M_INVALID_PARAM"},
		{"a limit", "GET", hstest.Path("rooms", r, "messages") + "?dir=b&limit=x", nil, 400, "M_INVALID_PARAM"},
		{"an unknown event", "GET", hstest.Path("rooms", r, "event", "$x"), nil, 404, "M_NOT_FOUND"},
		{"context of nothing", "GET", hstest.Path("rooms", r, "context", "$x"), nil, 404, "M_NOT_FOUND"},
		{"a timeout", "GET", hstest.Path("sync") + "?timeout=soon", nil, 400, "M_INVALID_PARAM"},
		{"a flag", "GET", hstest.Path("sync") + "?full_state=perhaps", nil, 400, "M_INVALID_PARAM"},
		{"presence", "GET", hstest.Path("sync") + "?set_presence=asleep", nil, 400, "M_INVALID_PARAM"},
		{"an unknown filter", "GET", hstest.Path("sync") + "?filter=12345", nil, 400, "M_INVALID_PARAM"},
		{"keys of nobody", "POST", hstest.Path("keys", "query"), `{"device_keys":[]}`, 400, "M_BAD_JSON"},
		{"no device_keys", "POST", hstest.Path("keys", "query"), `{}`, 400, "M_MISSING_PARAM"},
		{"messages to nobody", "PUT", hstest.Path("sendToDevice", "x", "1"), `{"messages":5}`, 400, "M_BAD_JSON"},
		{"an order", "PUT", hstest.Path("user", string(alice.UserID), "rooms", r, "tags", "u.x"), `{"order":"first"}`, 400, "M_BAD_JSON"},
		{"a name", "PUT", hstest.Path("profile", string(alice.UserID), "displayname"), `{"displayname":5}`, 400, "M_BAD_JSON"},
		{"a receipt of nothing", "POST", hstest.Path("rooms", r, "receipt", "m.read", "x"), "{}", 400, "M_INVALID_PARAM"},
		{"a log-in", "POST", hstest.Path("login"), `{"type":"m.login.odd"}`, 400, "M_UNKNOWN"},
		{"a refresh", "POST", hstest.Path("refresh"), `{}`, 400, "M_MISSING_PARAM"},
	} {
		t.Run(c.name, func(t *testing.T) {
			want(t, c.method+" "+c.path[:min(len(c.path), 100)], alice.Do(c.method, c.path, c.body), c.status, c.code)
		})
	}
	// Nothing at all, and rubbish, on everything.
	for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
		for _, path := range []string{
			hstest.Path("sync"), hstest.Path("createRoom"), hstest.Path("rooms", r, "send", "t", "1"), hstest.Path("rooms", r, "state", "t", "k"),
			hstest.Path("rooms", r, "typing", string(alice.UserID)), hstest.Path("rooms", r, "read_markers"), hstest.Path("keys", "upload"), hstest.Path("keys", "claim"),
			hstest.Path("keys", "device_signing", "upload"), hstest.Path("keys", "signatures", "upload"), hstest.Path("room_keys", "keys"), hstest.Path("room_keys", "version"),
			hstest.Path("user", string(alice.UserID), "filter"), hstest.Path("user_directory", "search"), hstest.Path("delete_devices"), hstest.Path("pushers", "set"),
			hstest.Path("account", "password"), hstest.Path("login"), hstest.Path("register"), hstest.Path("presence", string(alice.UserID), "status"),
		} {
			for _, body := range []string{"", "null", "5", "[]", `{"":{}}`, strings.Repeat("[", 20000), base64.StdEncoding.EncodeToString(picture(2, 2))} {
				if a := alice.Do(method, path, body); a.Status >= 500 {
					t.Errorf("%s %s with %.20q: %d %s", method, path, body, a.Status, a.Body)
				}
			}
		}
	}
}
