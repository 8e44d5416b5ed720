package hstest_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
)

// idServer is an identity server: it publishes addresses, keeps invitations, and tells homeservers of them.
type idServer struct {
	t       testing.TB
	name    string
	pem     []byte
	key     ed25519.PrivateKey
	client  *http.Client
	mu      sync.Mutex
	calls   int
	revoked bool
	trusts  bool                      // does not look at signatures
	closed  bool                      // does not unbind
	proven  map[string]string         // session to address
	bound   map[string]string         // address to user
	kept    map[string][]obj          // address to invitations
	tell    map[string]*hstest.Server // homeservers to tell
}

const idToken = "identity token"

func newIDServer(t testing.TB) *idServer {
	t.Helper()
	ca := httpapitest.NewAuthority(t)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &idServer{
		t: t, pem: ca.PEM, key: key, proven: map[string]string{}, bound: map[string]string{}, kept: map[string][]obj{},
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}, tell: map[string]*hstest.Server{},
	}
	srv := httptest.NewUnstartedServer(s)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Certificate("127.0.0.1")}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.name = srv.Listener.Addr().(*net.TCPAddr).String()
	return s
}

// option lets a homeserver reach the identity server.
func (s *idServer) option(o *homeserver.Options) {
	o.Federation.AllowPrivate = true
	o.Federation.ExtraCAs = append(append([]byte(nil), o.Federation.ExtraCAs...), s.pem...)
}

func (s *idServer) public() string {
	return base64.RawStdEncoding.EncodeToString(s.key.Public().(ed25519.PublicKey))
}

// sign signs a proof as an identity server does.
func (s *idServer) sign(v obj) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		s.t.Fatal(err)
	}
	signed, err := gomatrixserverlib.SignJSON(s.name, "ed25519:1", s.key, raw)
	if err != nil {
		s.t.Fatal(err)
	}
	return signed
}

func (s *idServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	say := func(status int, v any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	path := strings.TrimPrefix(r.URL.Path, "/_matrix/identity/v2")
	open := path == "/pubkey/isvalid" || path == "/3pid/unbind"
	if !open && r.Header.Get("Authorization") != "Bearer "+idToken {
		say(401, obj{"errcode": "M_UNAUTHORIZED", "error": "who are you?"})
		return
	}
	q := gjson.ParseBytes(body)
	switch r.Method + " " + path {
	case "GET /hash_details":
		say(200, obj{"lookup_pepper": "pepper", "algorithms": []string{"none", "sha256"}})
	case "POST /lookup":
		mappings := obj{}
		for address, user := range s.bound {
			sum := sha256.Sum256([]byte(address + " email pepper"))
			if h := base64.RawURLEncoding.EncodeToString(sum[:]); q.Get("addresses.0").Str == h && q.Get("pepper").Str == "pepper" {
				mappings[h] = user
			}
		}
		say(200, obj{"mappings": mappings})
	case "POST /store-invite":
		token := fmt.Sprintf("token%d", s.calls)
		address := q.Get("address").Str
		s.kept[address] = append(s.kept[address], obj{
			"medium": "email", "address": address, "room_id": q.Get("room_id").Str, "sender": q.Get("sender").Str, "token": token, "room_name": q.Get("room_name").Str,
		})
		valid := "https://" + s.name + "/_matrix/identity/v2/pubkey/isvalid"
		say(200, obj{"token": token, "display_name": "b...@m...", "public_keys": []obj{{"public_key": s.public(), "key_validity_url": valid}}})
	case "GET /pubkey/isvalid":
		say(200, obj{"valid": !s.revoked && r.URL.Query().Get("public_key") == s.public()})
	case "POST /3pid/bind":
		address := s.proven[q.Get("sid").Str+" "+q.Get("client_secret").Str]
		if address == "" {
			say(404, obj{"errcode": "M_NO_VALID_SESSION", "error": "no session"})
			return
		}
		user := q.Get("mxid").Str
		s.bound[address] = user
		say(200, obj{"medium": "email", "address": address, "mxid": user, "ts": 1, "not_before": 1, "not_after": 2, "signatures": obj{}})
		go s.onBind(address, user)
	case "POST /3pid/unbind":
		if s.closed {
			w.WriteHeader(http.StatusNotImplemented)
			return
		}
		if err := s.believes(r, body); err != nil && !s.trusts {
			say(403, obj{"errcode": "M_FORBIDDEN", "error": err.Error()})
			return
		}
		address := q.Get("threepid.address").Str
		if s.bound[address] != q.Get("mxid").Str {
			say(404, obj{"errcode": "M_NOT_FOUND", "error": "not bound"})
			return
		}
		delete(s.bound, address)
		say(200, obj{})
	default:
		say(404, obj{"errcode": "M_UNRECOGNIZED", "error": path})
	}
}

var xMatrix = regexp.MustCompile(`(origin|destination|key|sig)="([^"]*)"`)

// believes checks that a request is signed by the homeserver of its user.
func (s *idServer) believes(r *http.Request, body []byte) error {
	fields := map[string]string{}
	for _, m := range xMatrix.FindAllStringSubmatch(r.Header.Get("Authorization"), -1) {
		fields[m[1]] = m[2]
	}
	hs := s.tell[fields["origin"]]
	if hs == nil || fields["destination"] != s.name || !strings.HasSuffix(gjson.GetBytes(body, "mxid").Str, ":"+fields["origin"]) {
		return fmt.Errorf("not signed by the right server: %v", fields)
	}
	resp, err := http.Get(hs.URL + "/_matrix/key/v2/server")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	keys, _ := io.ReadAll(resp.Body)
	public, err := base64.RawStdEncoding.DecodeString(gjson.GetBytes(keys, "verify_keys."+gjsonKey(fields["key"])+".key").Str)
	if err != nil || len(public) != ed25519.PublicKeySize {
		return fmt.Errorf("the key of %s is not known: %w", fields["origin"], err)
	}
	doc, err := json.Marshal(obj{
		"method": r.Method, "uri": r.URL.RequestURI(), "origin": fields["origin"], "destination": fields["destination"], "content": json.RawMessage(body),
		"signatures": obj{fields["origin"]: obj{fields["key"]: fields["sig"]}},
	})
	if err != nil {
		return err
	}
	return gomatrixserverlib.VerifyJSON(fields["origin"], gomatrixserverlib.KeyID(fields["key"]), public, doc)
}

func gjsonKey(k string) string { return strings.NewReplacer(".", `\.`, ":", `\:`).Replace(k) }

// told is the body by which a homeserver hears of the invitations of an address.
func (s *idServer) told(address, user string) obj {
	invites := []obj{}
	for _, k := range s.kept[address] {
		invites = append(invites, obj{
			"medium": "email", "address": address, "mxid": user, "room_id": k["room_id"], "sender": k["sender"],
			"signed": s.sign(obj{"mxid": user, "token": k["token"]}),
		})
	}
	return obj{"medium": "email", "address": address, "mxid": user, "invites": invites}
}

func (s *idServer) onBind(address, user string) {
	s.mu.Lock()
	hs := s.tell[id.UserID(user).Homeserver()]
	body, _ := json.Marshal(s.told(address, user))
	s.mu.Unlock()
	if hs == nil {
		return
	}
	req, err := http.NewRequest("PUT", hs.URL+"/_matrix/federation/v1/3pid/onbind", bytes.NewReader(body))
	if err != nil {
		s.t.Error(err)
		return
	}
	if resp, err := http.DefaultClient.Do(req); err == nil { // else the test is over
		resp.Body.Close()
	}
}

// prove makes a session by which an address is proven to the identity server.
func (s *idServer) prove(sid, secret, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proven[sid+" "+secret] = address
}

func (s *idServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func (s *idServer) set(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

func (s *idServer) invitation(address string) obj {
	return obj{"id_server": s.name, "id_access_token": idToken, "medium": "email", "address": address}
}

// invitedTo waits until a user is invited to a room.
func invitedTo(u *hstest.User, room id.RoomID) {
	u.SyncUntil("an invitation", func(r *mautrix.RespSync) bool { return r.Rooms.Invite[room] != nil })
}

func TestInvitationsByAddressAcrossServers(t *testing.T) {
	t.Parallel()
	ids := newIDServer(t)
	a, b := hstest.Pair(t, ids.option)
	ids.tell[string(a.Name)], ids.tell[string(b.Name)] = a, b
	alice, carol, bob, mallory := a.User("alice"), a.User("carol"), b.User("bob"), b.User("mallory")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Name: "预算"})
	invite := hstest.Path("rooms", string(room), "invite")

	// Who may not invite does not get as far as the identity server.
	before := ids.count()
	carol.Refused(403, "M_FORBIDDEN", "POST", invite, ids.invitation("bob@mail.example"))
	alice.Refused(400, "M_MISSING_PARAM", "POST", invite, obj{"id_server": ids.name, "medium": "email", "address": "bob@mail.example"})
	alice.Refused(400, "M_INVALID_PARAM", "POST", invite, obj{"id_server": "http://x/", "id_access_token": "x", "medium": "email", "address": "bob@mail.example"})
	alice.Refused(400, "M_MISSING_PARAM", "POST", hstest.Path("rooms", string(room), "kick"), ids.invitation("bob@mail.example"))
	if ids.count() != before {
		t.Errorf("%d calls to the identity server", ids.count()-before)
	}
	bad := ids.invitation("bob@mail.example")
	bad["id_access_token"] = "wrong"
	alice.Refused(403, "M_UNAUTHORIZED", "POST", invite, bad) // not 401: the client's own token is good

	alice.OK("POST", invite, ids.invitation("Bob@Mail.example"))
	waiting := alice.OK("GET", hstest.Path("rooms", string(room), "state"), nil).Get(`#(type=="m.room.third_party_invite")`)
	if waiting.Get("content.display_name").Str != "b...@m..." || waiting.Get("content.public_keys.0.public_key").Str != ids.public() || strings.Contains(waiting.Raw, "bob@") {
		t.Fatal(waiting)
	}
	if k := ids.kept["bob@mail.example"]; len(k) != 1 || k[0]["room_name"] != "预算" {
		t.Errorf("kept %v", k)
	}

	// Nobody but who has proven the address, and nothing but what the identity server has signed.
	onbind := func(s *hstest.Server, edit func(raw string) string) hstest.Answer {
		ids.mu.Lock()
		body, _ := json.Marshal(ids.told("bob@mail.example", string(bob.UserID)))
		ids.mu.Unlock()
		return s.Do("", "PUT", "/_matrix/federation/v1/3pid/onbind", edit(string(body)))
	}
	change := func(path string, v any) func(string) string {
		return func(raw string) string {
			out, err := sjson.Set(raw, path, v)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
	want(t, "another user", onbind(b, func(raw string) string {
		return strings.ReplaceAll(raw, string(bob.UserID), string(mallory.UserID))
	}), 403, "M_FORBIDDEN")
	want(t, "another sender", onbind(b, change("invites.0.sender", string(carol.UserID))), 403, "M_FORBIDDEN")
	want(t, "another token", onbind(b, change("invites.0.signed.token", "other")), 403, "M_FORBIDDEN")
	want(t, "no user of this server", onbind(a, func(raw string) string { return raw }), 404, "M_NOT_FOUND")
	want(t, "invites for somebody else", onbind(b, change("invites.0.mxid", string(mallory.UserID))), 400, "M_INVALID_PARAM")
	want(t, "nonsense", b.Do("", "PUT", "/_matrix/federation/v1/3pid/onbind", `{"mxid":"bob"}`), 400, "M_INVALID_PARAM")
	ids.set(func() { ids.revoked = true })
	want(t, "a key that is no longer in force", onbind(b, func(raw string) string { return raw }), 403, "M_FORBIDDEN")
	ids.set(func() { ids.revoked = false })
	if m := alice.Do("GET", hstest.Path("rooms", string(room), "state", "m.room.member", string(mallory.UserID)), nil); m.Status != 404 {
		t.Errorf("mallory: %s", m.Body)
	}

	// Bob proves the address, publishes it, and is invited.
	ids.prove("sid", "secret", "bob@mail.example")
	bob.OK("POST", hstest.Path("account", "3pid", "bind"), obj{"id_server": ids.name, "id_access_token": idToken, "sid": "sid", "client_secret": "secret"})
	invitedTo(bob, room)
	var member gjson.Result // bob's server has it first
	a.Eventually("bob's membership", func() bool {
		got := alice.Do("GET", hstest.Path("rooms", string(room), "state", "m.room.member", string(bob.UserID)), nil)
		member = gjson.ParseBytes(got.Body)
		return got.Status == 200
	})
	if member.Get("membership").Str != "invite" || member.Get("third_party_invite.signed.mxid").Str != string(bob.UserID) || member.Get("third_party_invite.display_name").Str != "b...@m..." {
		t.Error(member)
	}
	if _, err := bob.JoinRoomByID(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	alice.Say(room, "欢迎")
	bob.Hears(room, "欢迎")
	// Once he is banned, no proof brings him back.
	alice.OK("POST", hstest.Path("rooms", string(room), "ban"), obj{"user_id": bob.UserID})
	want(t, "the invitation of somebody banned", onbind(b, func(raw string) string { return raw }), 403, "M_FORBIDDEN")

	// Now that the address is known, people are invited as who they are, at the making of a room too.
	second := alice.OK("POST", hstest.Path("createRoom"), obj{"invite_3pid": []obj{ids.invitation("bob@mail.example")}}).Get("room_id").Str
	invitedTo(bob, id.RoomID(second))
	alice.Refused(400, "M_MISSING_PARAM", "POST", hstest.Path("createRoom"), obj{"invite_3pid": []obj{{"medium": "email"}}})

	// Taken back: by the right server alone.
	unbind := hstest.Path("account", "3pid", "unbind")
	address := obj{"medium": "email", "address": "bob@mail.example"}
	if r := mallory.OK("POST", unbind, address); r.Get("id_server_unbind_result").Str != "no-support" {
		t.Error(r)
	}
	if a := mallory.Do("POST", unbind, obj{"medium": "email", "address": "bob@mail.example", "id_server": ids.name}); a.Status != 404 || a.Code() != "M_NOT_FOUND" {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if r := bob.OK("POST", unbind, address); r.Get("id_server_unbind_result").Str != "success" {
		t.Error(r)
	}
	if len(ids.bound) != 0 {
		t.Errorf("still bound: %v", ids.bound)
	}
	if r := bob.OK("POST", unbind, address); r.Get("id_server_unbind_result").Str != "no-support" {
		t.Error(r)
	}
}

func TestProofsBroughtByClients(t *testing.T) {
	t.Parallel()
	ids := newIDServer(t)
	s := hstest.New(t, ids.option, func(o *homeserver.Options) { o.Federation.Enabled = true })
	ids.tell[string(s.Name)] = s
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat"})
	alice.OK("POST", hstest.Path("rooms", string(room), "invite"), ids.invitation("bob@mail.example"))
	token := ids.kept["bob@mail.example"][0]["token"].(string)
	join := hstest.Path("rooms", string(room), "join")
	bob.Refused(403, "M_FORBIDDEN", "POST", join, obj{})
	bob.Refused(400, "M_BAD_JSON", "POST", join, obj{"third_party_signed": obj{"mxid": bob.UserID}})
	forged := obj{"sender": alice.UserID, "mxid": bob.UserID, "token": token, "signatures": obj{ids.name: obj{"ed25519:1": "c2lnbmF0dXJl"}}}
	bob.Refused(403, "M_FORBIDDEN", "POST", join, obj{"third_party_signed": forged})
	// The signature covers the sender too: what identity servers give to clients.
	bob.OK("POST", join, obj{"third_party_signed": ids.sign(obj{"sender": alice.UserID, "mxid": bob.UserID, "token": token})})
	bob.Say(room, "我来了")
	for _, version := range []string{"1", "6", "10", "11"} { // their rules and forms of events differ
		room := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", RoomVersion: id.RoomVersion(version)})
		alice.OK("POST", hstest.Path("rooms", string(room), "invite"), ids.invitation("bob@mail.example"))
		kept := ids.kept["bob@mail.example"]
		proof := ids.sign(obj{"mxid": bob.UserID, "token": kept[len(kept)-1]["token"]})
		signed, err := sjson.SetBytes(proof, "sender", alice.UserID) // told beside what is signed
		if err != nil {
			t.Fatal(err)
		}
		bob.OK("POST", hstest.Path("rooms", string(room), "join"), obj{"third_party_signed": json.RawMessage(signed)})
	}

	// What was published is taken back when the address goes, and when the account closes.
	post := func(u *hstest.User, path string, body obj) gjson.Result {
		return u.OK("POST", hstest.Path("account", path), body)
	}
	bind := func(u *hstest.User, sid, address string) {
		ids.prove(sid, "s", address)
		u.OK("POST", hstest.V3+"/account/3pid/bind", obj{"id_server": ids.name, "id_access_token": idToken, "sid": sid, "client_secret": "s"})
	}
	bob.Refused(404, "M_NO_VALID_SESSION", "POST", hstest.V3+"/account/3pid/bind", obj{"id_server": ids.name, "id_access_token": idToken, "sid": "x", "client_secret": "s"})
	bob.Refused(403, "M_THREEPID_AUTH_FAILED", "POST", hstest.V3+"/account/3pid", obj{"three_pid_creds": obj{"id_server": ids.name, "id_access_token": idToken, "sid": "x", "client_secret": "s"}})
	bob.Refused(400, "M_MISSING_PARAM", "POST", hstest.V3+"/account/3pid/bind", obj{"sid": "x", "client_secret": "s"})
	bob.Refused(502, "M_UNKNOWN", "POST", hstest.V3+"/account/3pid/bind", obj{"id_server": "127.0.0.1:1", "id_access_token": "x", "sid": "x", "client_secret": "s"})
	bind(bob, "one", "bob@mail.example")
	if r := bob.OK("POST", hstest.V3+"/account/3pid/delete", obj{"medium": "email", "address": "bob@mail.example"}); r.Get("id_server_unbind_result").Str != "success" || len(ids.bound) != 0 {
		t.Error(r, ids.bound)
	}
	bind(bob, "two", "bob@mail.example")
	ids.set(func() { ids.closed = true })
	if r := bob.OK("POST", hstest.V3+"/account/3pid/unbind", obj{"medium": "email", "address": "bob@mail.example"}); r.Get("id_server_unbind_result").Str != "no-support" {
		t.Error(r)
	}
	ids.set(func() { ids.closed = false })
	if r := post(bob, "deactivate", obj{"auth": passwordOf(bob, "")}); r.Get("id_server_unbind_result").Str != "success" || len(ids.bound) != 0 {
		t.Error(r, ids.bound)
	}
}

// Identity servers on the own network are out of reach, whatever a client names.
func TestIdentityServersAreGuarded(t *testing.T) {
	t.Parallel()
	ids := newIDServer(t)
	s := hstest.New(t, func(o *homeserver.Options) { o.Federation.ExtraCAs = bytes.Clone(ids.pem) })
	alice := s.User("alice")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat"})
	alice.Refused(502, "M_UNKNOWN", "POST", hstest.Path("rooms", string(room), "invite"), ids.invitation("bob@mail.example"))
	alice.Refused(502, "M_UNKNOWN", "POST", hstest.V3+"/account/3pid/bind", obj{"id_server": ids.name, "id_access_token": idToken, "sid": "x", "client_secret": "s"})
	if ids.count() != 0 {
		t.Error("the identity server was reached")
	}
	for _, opt := range []func(*homeserver.Options){
		func(o *homeserver.Options) { o.Contacts.IdentityServers = []string{"id.example"} },
		func(o *homeserver.Options) { o.Contacts.NoIdentity = true },
	} {
		s := hstest.New(t, ids.option, opt)
		alice := s.User("alice")
		alice.Refused(400, "M_SERVER_NOT_TRUSTED", "POST", hstest.V3+"/account/3pid/bind", obj{"id_server": ids.name, "id_access_token": idToken, "sid": "x", "client_secret": "s"})
	}
	if ids.count() != 0 {
		t.Error("an identity server that is not trusted was asked")
	}
}
