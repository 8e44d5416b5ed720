package hstest_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
)

// federationQuirks are places where the OpenAPI files of v1.19 contradict the text.
var federationQuirks = []quirk{
	{
		"joining, knocking, leaving: the origin of an event is asked for, which the event format of no room version has any more",
		`"required":["state_key","sender","origin","origin_server_ts",`, `"required":["state_key","sender","origin_server_ts",`,
	},
	{"inviting: the same", `"required":["state_key","origin","origin_server_ts",`, `"required":["state_key","origin_server_ts",`},
}

// fedWalk holds what servers say to each other against the specification.
type fedWalk struct {
	t     *testing.T
	spec  *apiSpec
	paths []*regexp.Regexp // of spec.ops

	mu                sync.Mutex
	succeeded, failed map[string]bool
	edus              map[string]bool
	mismatches        map[string]string
}

func newFedWalk(t *testing.T, servers ...*hstest.Server) *fedWalk {
	w := &fedWalk{
		t: t, spec: readSpec(t, "server-server", "federation.json", federationQuirks), succeeded: map[string]bool{}, failed: map[string]bool{},
		edus: map[string]bool{}, mismatches: map[string]string{},
	}
	for _, o := range w.spec.ops {
		w.paths = append(w.paths, regexp.MustCompile("^"+regexp.MustCompile(`\\\{\w+\\\}`).ReplaceAllString(regexp.QuoteMeta(o.path), "[^/]+")+"$"))
	}
	for _, s := range servers {
		s.Watch(w.see)
	}
	return w
}

// see takes down an exchange.
func (w *fedWalk) see(x hstest.Exchange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var op *operation
	for i, o := range w.spec.ops {
		if o.method == x.Request.Method && w.paths[i].MatchString(x.Request.URL.EscapedPath()) {
			op = o
			break
		}
	}
	if op == nil {
		return // an older version of an endpoint, or an unstable one
	}
	if x.Answer.Status < 400 {
		w.succeeded[op.id] = true
		if op.id == "queryProfile" || op.id == "queryRoomDirectory" {
			w.succeeded["queryInfo"] = true // which stands for both
		}
	} else {
		w.failed[op.id] = true
	}
	if err := w.check(op, x); err != nil {
		w.mismatches[op.id] = fmt.Sprintf("%s %s %.2000s: %d %.2000s: %v", op.method, x.Request.RequestURI, x.Body, x.Answer.Status, x.Answer.Body, err)
	}
}

func (w *fedWalk) check(op *operation, x hstest.Exchange) error {
	if err := w.spec.check(op, x.Answer); err != nil {
		return fmt.Errorf("the answer: %w", err)
	}
	if x.Answer.Status >= 400 { // what was asked need not be right then
		return nil
	}
	for _, q := range op.query {
		if name, needed := strings.CutSuffix(q, "!"); needed && !x.Request.URL.Query().Has(name) {
			return fmt.Errorf("the request has no %s", name)
		}
	}
	if op.request == nil {
		return nil
	}
	if t := x.Request.Header.Get("Content-Type"); t != "application/json" {
		return fmt.Errorf("the request is of type %q", t)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(x.Body))
	if err != nil {
		return fmt.Errorf("the request: %w", err)
	}
	if err := op.request.Validate(v); err != nil {
		return fmt.Errorf("the request: %w", err)
	}
	if op.id != "sendTransaction" {
		return nil
	}
	var bad error
	gjson.GetBytes(x.Body, "edus").ForEach(func(_, edu gjson.Result) bool {
		typ := edu.Get("edu_type").Str
		schema := w.spec.edus[typ]
		if schema == nil {
			bad = fmt.Errorf("the EDU %s is not in the specification", typ)
			return false
		}
		w.edus[typ] = true
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(edu.Raw))
		if err == nil {
			err = schema.Validate(v)
		}
		if err != nil {
			bad = fmt.Errorf("the EDU %s: %w", edu.Raw, err)
		}
		return bad == nil
	})
	return bad
}

// fedSite is a server whose key the test has too.
type fedSite struct {
	*hstest.Server
	key *serverkeys.Own
}

// ask makes a request of a site as another, signed or not.
func (w *fedWalk) ask(from *fedSite, to *hstest.Server, method, path string, content any) gjson.Result {
	w.t.Helper()
	var b []byte
	if content != nil {
		b, _ = json.Marshal(content) // of the test's own making
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, "https://"+string(to.Name)+path, bytes.NewReader(b))
	if err != nil {
		w.t.Fatal(err)
	}
	req.RequestURI = path
	if from != nil {
		sign(req, from.key, to.Name, b)
	} else if b != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.RequestURI = ""
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := hstest.ReadAnswer(resp)
	if err != nil {
		w.t.Fatal(err)
	}
	return gjson.ParseBytes(a.Body)
}

// TestEveryFederationEndpoint has two servers and their people use each endpoint of the server-server API, and holds
// each request, each EDU and each answer against its OpenAPI schema.
func TestEveryFederationEndpoint(t *testing.T) {
	t.Parallel()
	ids := newIDServer(t)
	var dirs []string
	a, b := hstest.Pair(t, ids.option, func(o *homeserver.Options) {
		dirs = append(dirs, o.DataDir)
		o.PolicyServer.Enabled = true
		o.Federation.WellKnown = string(o.ServerName)
		o.Media = homeserver.Media{MaxUpload: 1 << 20, MaxRemote: 1 << 20, MaxPixels: 10 << 20, DynamicThumbnails: true}
	})
	ids.tell[string(a.Name)], ids.tell[string(b.Name)] = a, b
	key, err := serverkeys.Load(dirs[1], b.Name)
	if err != nil {
		t.Fatal(err)
	}
	w := newFedWalk(t, a, b)
	other := &fedSite{b, key}
	w.rooms(a, b, other)
	w.lookups(a, b, other)
	w.people(a, b, other, ids)
	w.strangers(a, other)
	w.edu(a, b)
	w.report()
}

func (w *fedWalk) report() {
	w.mu.Lock()
	defer w.mu.Unlock()
	complete := 0
	for _, o := range w.spec.ops {
		switch bad := w.mismatches[o.id]; {
		case bad != "":
			w.t.Errorf("%s: %s", o.id, bad)
		case !w.succeeded[o.id]:
			w.t.Errorf("%s %s (%s) was never called with success", o.method, o.path, o.id)
		case !w.failed[o.id] && o.auth != "none" && o.id != "queryInfo":
			w.t.Errorf("%s %s (%s) was never called without success", o.method, o.path, o.id)
		default:
			complete++
		}
	}
	for typ := range w.spec.edus {
		if !w.edus[typ] {
			w.t.Errorf("no %s was sent", typ)
		}
	}
	w.t.Logf("%d of %d, %d mismatches, EDUs %v", complete, len(w.spec.ops), len(w.mismatches), w.edus)
}

// rooms: people of b come into rooms of a in all ways there are.
func (w *fedWalk) rooms(a, b *hstest.Server, other *fedSite) {
	t := w.t
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Name: "open", RoomAliasName: "open"})
	for i := range 5 {
		alice.Say(room, fmt.Sprint("before ", i))
	}
	bob.OK("POST", hstest.Path("join", "#open:"+string(a.Name)), obj{}) // queryRoomDirectory, makeJoin, sendJoinV2
	said := alice.Say(room, "hello")
	bob.Hears(room, "hello")
	bob.OK("GET", hstest.Path("rooms", string(room), "messages")+"?dir=b&limit=50", nil) // backfillRoom
	const fed = "/_matrix/federation/v1/"
	at := url.PathEscape(string(room))
	event := url.PathEscape(string(said))
	w.ask(other, a, "GET", fed+"event/"+event, nil)
	w.ask(other, a, "GET", fed+"event_auth/"+at+"/"+event, nil)
	w.ask(other, a, "GET", fed+"state/"+at+"?event_id="+url.QueryEscape(string(said)), nil)
	w.ask(other, a, "GET", fed+"state_ids/"+at+"?event_id="+url.QueryEscape(string(said)), nil)
	w.ask(other, a, "GET", fed+"backfill/"+at+"?limit=10&v="+url.QueryEscape(string(said)), nil)
	create := alice.OK("GET", hstest.Path("rooms", string(room), "state"), nil).Get(`#(type=="m.room.create").event_id`).Str
	w.ask(other, a, "POST", fed+"get_missing_events/"+at, obj{"earliest_events": []string{create}, "latest_events": []id.EventID{said}, "limit": 10, "min_depth": 0})
	bob.OK("GET", "/_matrix/client/v1/rooms/"+at+"/timestamp_to_event?ts=1&dir=f", nil)
	w.ask(other, a, "GET", fed+"timestamp_to_event/"+at+"?ts=1&dir=f", nil)

	// Invited, and gone again without having come.
	private := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Name: "private"})
	alice.OK("POST", hstest.Path("rooms", string(private), "invite"), obj{"user_id": bob.UserID}) // sendInviteV2
	invitedTo(bob, private)
	bob.OK("POST", hstest.Path("rooms", string(private), "leave"), obj{}) // makeLeave, sendLeaveV2
	knock := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Name: "knock"})
	alice.OK("PUT", hstest.Path("rooms", string(knock), "state", "m.room.join_rules", ""), obj{"join_rule": "knock"})
	bob.OK("POST", hstest.Path("knock", string(knock))+"?via="+url.QueryEscape(string(a.Name)), obj{"reason": "let me in"}) // makeKnock, sendKnock
	w.invite1(a, other, alice)

	// A space, and what is in it.
	space := alice.OK("POST", hstest.Path("createRoom"), obj{"preset": "public_chat", "creation_content": obj{"type": "m.space"}, "name": "space"}).Get("room_id").Str
	alice.OK("PUT", hstest.Path("rooms", space, "state", "m.space.child", string(room)), obj{"via": []matrix.ServerName{a.Name}})
	w.ask(other, a, "GET", fed+"hierarchy/"+url.PathEscape(space)+"?suggested_only=false", nil)

	// A room whose events a judges for b.
	judged := bob.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"})
	joinVia(t, alice, judged, b)
	keys := a.Do("", "GET", "/.well-known/matrix/policy_server", nil)
	bob.OK("PUT", hstest.Path("rooms", string(judged), "state", "m.room.policy", ""), obj{"via": a.Name, "public_keys": json.RawMessage(keys.Get("public_keys").Raw)})
	a.Eventually("the policy", func() bool {
		return alice.Do("GET", hstest.Path("rooms", string(judged), "state", "m.room.policy", ""), nil).Status == 200
	})
	bob.Say(judged, "is this right?") // askPolicyServerToSign
}

// invite1 is the first version of inviting, which servers of old use, in a room of old.
func (w *fedWalk) invite1(a *hstest.Server, other *fedSite, alice *hstest.User) {
	w.t.Helper()
	p := &peer{t: w.t, key: other.key}
	event := map[string]any{
		"type": "m.room.member", "room_id": "!old:" + string(other.Name), "sender": "@bob:" + string(other.Name), "state_key": alice.UserID,
		"content": obj{"membership": "invite"}, "origin_server_ts": time.Now().UnixMilli(), "depth": 5, "auth_events": []any{}, "prev_events": []any{}, "event_id": "$old:" + string(other.Name),
		"origin": other.Name,
	}
	raw, err := json.Marshal(event)
	if err != nil {
		w.t.Fatal(err)
	}
	w.ask(other, a, "PUT", "/_matrix/federation/v1/invite/"+url.PathEscape("!old:"+string(other.Name))+"/"+url.PathEscape("$old:"+string(other.Name)), json.RawMessage(p.sealAs("1", raw)))
}

// lookups need no room.
func (w *fedWalk) lookups(a, b *hstest.Server, other *fedSite) {
	alice, bob := a.User("alice"), b.User("bob")
	alice.OK("PUT", hstest.Path("directory", "list", "room", string(alice.Room(nil))), obj{"visibility": "public"})
	bob.OK("GET", hstest.Path("publicRooms")+"?server="+url.QueryEscape(string(a.Name)), nil)
	bob.OK("POST", hstest.Path("publicRooms")+"?server="+url.QueryEscape(string(a.Name)), obj{"filter": obj{"generic_search_term": ""}})
	w.ask(other, a, "GET", "/_matrix/federation/v1/publicRooms?limit=2", nil)
	w.ask(other, a, "GET", "/_matrix/federation/v1/version", nil)
	w.ask(nil, a, "GET", "/.well-known/matrix/server", nil)
	w.ask(nil, a, "GET", "/_matrix/key/v2/server", nil)
	w.ask(nil, a, "GET", "/_matrix/key/v2/query/"+url.PathEscape(string(b.Name)), nil)
	w.ask(nil, a, "POST", "/_matrix/key/v2/query", obj{"server_keys": obj{string(b.Name): obj{}}})
	alice.OK("PUT", hstest.Path("profile", string(alice.UserID), "displayname"), obj{"displayname": "Alice"})
	bob.OK("GET", hstest.Path("profile", string(alice.UserID)), nil)
	w.ask(other, a, "GET", "/_matrix/federation/v1/query/profile?user_id="+url.QueryEscape(string(alice.UserID))+"&field=displayname", nil)
	token := alice.OK("POST", hstest.Path("user", string(alice.UserID), "openid", "request_token"), obj{}).Get("access_token").Str
	w.ask(nil, a, "GET", "/_matrix/federation/v1/openid/userinfo?access_token="+url.QueryEscape(token), nil)
	w.ask(nil, a, "GET", "/_matrix/federation/v1/openid/userinfo?access_token=wrong", nil)

	// Files.
	up, err := alice.UploadBytes(w.t.Context(), picture(64, 64), "image/png")
	if err != nil {
		w.t.Fatal(err)
	}
	mxc := string(a.Name) + "/" + up.ContentURI.FileID
	for _, path := range []string{"download/" + mxc, "thumbnail/" + mxc + "?width=32&height=32"} {
		if got := bob.Do("GET", "/_matrix/client/v1/media/"+path, nil); got.Status != 200 {
			w.t.Errorf("%s: %d %s", path, got.Status, got.Body)
		}
	}
	w.ask(other, a, "GET", "/_matrix/federation/v1/media/thumbnail/"+up.ContentURI.FileID+"?width=32&height=32", nil)
}

// people: their keys, and invitations by their addresses.
func (w *fedWalk) people(a, b *hstest.Server, other *fedSite, ids *idServer) {
	alice, bob := a.User("alice"), b.User("bob")
	uploadKeys(w.t, alice, 3)
	bob.OK("POST", hstest.V3+"/keys/query", obj{"device_keys": obj{string(alice.UserID): []string{}}})
	bob.OK("POST", hstest.V3+"/keys/claim", obj{"one_time_keys": obj{string(alice.UserID): obj{string(alice.DeviceID): "signed_curve25519"}}})
	w.ask(other, a, "GET", "/_matrix/federation/v1/user/devices/"+url.PathEscape(string(alice.UserID)), nil)

	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Name: "by address"})
	alice.OK("POST", hstest.Path("rooms", string(room), "invite"), ids.invitation("bob@mail.example"))
	ids.prove("sid", "secret", "bob@mail.example")
	bob.OK("POST", hstest.Path("account", "3pid", "bind"), obj{"id_server": ids.name, "id_access_token": idToken, "sid": "sid", "client_secret": "secret"})
	invitedTo(bob, room) // exchangeThirdPartyInvite
	ids.mu.Lock()
	told := ids.told("bob@mail.example", string(bob.UserID))
	ids.mu.Unlock()
	w.ask(nil, b, "PUT", "/_matrix/federation/v1/3pid/onbind", told)
}

// strangers get nothing without a signature.
func (w *fedWalk) strangers(a *hstest.Server, other *fedSite) {
	for _, o := range w.spec.ops {
		if o.auth == "none" {
			continue
		}
		path := regexp.MustCompile(`\{\w+\}`).ReplaceAllString(o.path, "x")
		var content any
		if o.method != http.MethodGet {
			content = obj{}
		}
		got := w.ask(nil, a, o.method, path, content)
		if code := got.Get("errcode").Str; code != "M_UNAUTHORIZED" && o.id != "queryInfo" {
			w.t.Errorf("%s without a signature: %s", o.id, got)
		}
		w.ask(other, a, o.method, path, content)
	}
}

// edu: what is told besides events.
func (w *fedWalk) edu(a, b *hstest.Server) {
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	joinVia(w.t, bob, room, a)
	said := alice.Say(room, "read this")
	bob.Hears(room, "read this")
	bob.OK("POST", hstest.Path("rooms", string(room), "receipt", "m.read", string(said)), obj{"thread_id": "main"})
	bob.OK("PUT", hstest.Path("rooms", string(room), "typing", string(bob.UserID)), obj{"typing": true, "timeout": 30000})
	bob.OK("PUT", hstest.Path("presence", string(bob.UserID), "status"), obj{"presence": "unavailable", "status_msg": "away"})
	bob.OK("PUT", hstest.V3+"/sendToDevice/m.x/1", obj{"messages": obj{string(alice.UserID): obj{"*": obj{"a": 1}}}})
	uploadKeys(w.t, bob, 1)
	crossSign(w.t, bob)
	for typ := range w.spec.edus {
		a.Eventually(typ, func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.edus[typ]
		})
	}
}
