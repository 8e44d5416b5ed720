package hstest_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
)

// peer is a server that has gone bad: it is in a room with another and signs
// whatever comes to its mind.
type peer struct {
	t          testing.TB
	good, bad  *hstest.Server
	key        *serverkeys.Own // of the bad one
	alice, bob *hstest.User    // of the good and the bad one
	room       string
	message    []byte // an event of bob's that the good server has yet to see
	id         string // of that event
	h          *httpapitest.Hostile
}

func newPeer(t testing.TB) *peer {
	var dirs []string
	good, bad := hstest.Pair(t, func(o *homeserver.Options) { dirs = append(dirs, o.DataDir) })
	var keys [2]*serverkeys.Own
	for i, s := range []*hstest.Server{good, bad} {
		var err error
		if keys[i], err = serverkeys.Load(dirs[i], s.Name); err != nil {
			t.Fatal(err)
		}
	}
	p := &peer{t: t, good: good, bad: bad, key: keys[1], alice: good.User("alice"), bob: bad.User("bob")}
	room := p.alice.Room(nil)
	join(p.bob, room, good)
	good.Eventually("bob is in", func() bool { return membership(p.alice, room, p.bob.UserID) == "join" })
	p.room = string(room)
	good.Cut() // what bob says now is not heard
	p.id = send(p.bob, room, "unheard", "unheard")
	p.message = p.fetch(keys[0], "/_matrix/federation/v1/event/"+url.PathEscape(p.id))
	good.Heal()
	p.h = &httpapitest.Hostile{
		T: t, Handler: good.Handler(), Stranger: string(p.alice.UserID), Brief: brief(),
		Prepare: func(r *http.Request, body []byte) { sign(r, p.key, good.Name, body) },
		Allow: func(_, _ string, status int, code string) bool {
			return status == http.StatusNotImplemented || status == http.StatusBadGateway && code != "" || status == http.StatusGatewayTimeout
		},
	}
	return p
}

// fetch gets an event from the bad server, as the good one would.
func (p *peer) fetch(as *serverkeys.Own, path string) []byte {
	p.t.Helper()
	h := &httpapitest.Hostile{T: p.t, Handler: p.bad.Handler(), Prepare: func(r *http.Request, body []byte) { sign(r, as, p.bad.Name, body) }}
	status, b := h.Send(http.MethodGet, path, path, "", nil, "fetching")
	if status != http.StatusOK {
		p.t.Fatalf("%s: %d %s", path, status, b)
	}
	return []byte(gjson.GetBytes(b, "pdus.0").Raw)
}

// sign signs a request as a server; a body that is no JSON stays without.
func sign(r *http.Request, key *serverkeys.Own, to matrix.ServerName, body []byte) {
	object := map[string]any{"method": r.Method, "uri": r.RequestURI, "origin": key.Server(), "destination": to}
	if json.Valid(body) {
		object["content"] = json.RawMessage(body)
	}
	b, err := json.Marshal(object)
	if err != nil {
		return
	}
	sig, err := key.Signature(b)
	if err != nil {
		sig = "none"
	}
	if len(body) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Authorization", fmt.Sprintf(`X-Matrix origin="%s",destination="%s",key="%s",sig="%s"`, key.Server(), to, key.KeyID(), sig))
}

// seal gives an event the hash and the signature that make it the bad server's;
// what cannot be sealed stays as it is.
func (p *peer) seal(event []byte) []byte { return p.sealAs("12", event) }

// sealAs is seal for an event of a room of some version.
func (p *peer) sealAs(room gomatrixserverlib.RoomVersion, event []byte) []byte {
	if !gjson.ParseBytes(event).IsObject() {
		return event
	}
	bare := event
	for _, k := range []string{"unsigned", "signatures", "hashes"} {
		b, err := sjson.DeleteBytes(bare, k)
		if err != nil {
			return event
		}
		bare = b
	}
	canonical, err := matrix.CanonicalJSON(bare, false)
	if err != nil {
		return event
	}
	sum := sha256.Sum256(canonical)
	hashed, err := sjson.SetBytes(canonical, "hashes.sha256", base64.RawStdEncoding.EncodeToString(sum[:]))
	if err != nil {
		return event
	}
	version, err := gomatrixserverlib.GetRoomVersion(room)
	if err != nil {
		return event
	}
	redacted, err := version.RedactEventJSON(hashed)
	if err != nil {
		return event
	}
	sig, err := p.key.Signature(redacted)
	if err != nil {
		return event
	}
	signed, err := matrix.AddSignature(hashed, p.key.Server(), string(p.key.KeyID()), sig)
	if err != nil {
		return event
	}
	return signed
}

// transactions are such as servers send.
func (p *peer) transaction(pdus []json.RawMessage, edus ...map[string]any) []byte {
	b, err := json.Marshal(map[string]any{"origin": p.bad.Name, "origin_server_ts": 1, "pdus": pdus, "edus": edus})
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p *peer) edus() []map[string]any {
	bob := string(p.bob.UserID)
	edu := func(typ string, content map[string]any) map[string]any {
		return map[string]any{"edu_type": typ, "content": content}
	}
	return []map[string]any{
		edu("m.typing", map[string]any{"room_id": p.room, "user_id": bob, "typing": true}),
		edu("m.presence", map[string]any{"push": []map[string]any{{"user_id": bob, "presence": "online", "last_active_ago": 1, "currently_active": true}}}),
		edu("m.receipt", map[string]any{p.room: map[string]any{"m.read": map[string]any{bob: map[string]any{"data": map[string]any{"ts": 1}, "event_ids": []string{p.id}}}}}),
		edu("m.device_list_update", map[string]any{"user_id": bob, "device_id": "D", "stream_id": 5, "prev_id": []int{4}, "device_display_name": "d", "keys": map[string]any{"user_id": bob}}),
		edu("m.signing_key_update", map[string]any{"user_id": bob, "master_key": map[string]any{"user_id": bob, "usage": []string{"master"}, "keys": map[string]any{"ed25519:x": "x"}}}),
		edu("m.direct_to_device", map[string]any{"sender": bob, "type": "m.x", "message_id": "1", "messages": map[string]any{string(p.alice.UserID): map[string]any{"*": map[string]any{"a": 1}}}}),
	}
}

// bodies are good bodies of the requests that servers make, by route.
func (p *peer) bodies() map[string][]byte {
	const v1, v2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
	message := json.RawMessage(p.message)
	out := map[string]any{
		"PUT " + v2 + "/invite/{roomId}/{eventId}": map[string]any{"event": message, "room_version": "12", "invite_room_state": []any{message}},
		"PUT " + v1 + "/invite/{roomId}/{eventId}": message, "PUT " + v2 + "/send_join/{roomId}/{eventId}": message,
		"PUT " + v1 + "/send_leave/{roomId}/{eventId}": message, "PUT " + v1 + "/send_knock/{roomId}/{eventId}": message,
		"PUT " + v1 + "/exchange_third_party_invite/{roomId}": map[string]any{
			"type": "m.room.member", "room_id": p.room, "sender": p.bob.UserID, "state_key": p.alice.UserID,
			"content": map[string]any{"membership": "invite", "third_party_invite": map[string]any{"signed": map[string]any{"mxid": p.alice.UserID, "token": "t", "signatures": map[string]any{}}}},
		},
		"POST " + v1 + "/get_missing_events/{roomId}": map[string]any{"earliest_events": []string{p.id}, "latest_events": []string{p.id}, "limit": 10, "min_depth": 1},
		"POST " + v1 + "/publicRooms":                 map[string]any{"limit": 10, "filter": map[string]any{"generic_search_term": "x"}, "include_all_networks": true},
		"POST " + v1 + "/user/keys/query":             map[string]any{"device_keys": map[string]any{string(p.alice.UserID): []string{}}},
		"POST " + v1 + "/user/keys/claim":             map[string]any{"one_time_keys": map[string]any{string(p.alice.UserID): map[string]any{"D": "signed_curve25519"}}},
		"POST /_matrix/key/v2/query":                  map[string]any{"server_keys": map[string]any{string(p.good.Name): map[string]any{"ed25519:x": map[string]any{"minimum_valid_until_ts": 1}}}},
	}
	made := map[string][]byte{}
	for k, v := range out {
		b, err := json.Marshal(v)
		if err != nil {
			p.t.Fatal(err)
		}
		made[k] = b
	}
	made["PUT "+v1+"/send/{txnId}"] = p.transaction([]json.RawMessage{message}, p.edus()...)
	return made
}

func (p *peer) vars() map[string]string {
	return map[string]string{
		"roomId": p.room, "eventId": p.id, "userId": string(p.alice.UserID), "txnId": "1", "mediaId": "x", "serverName": string(p.good.Name), "keyId": "ed25519:x",
		"queryType": "profile",
	}
}

// routes are those of the good server for other servers.
func (p *peer) routes() (list []string) {
	for _, r := range p.good.Handler().(*httpapi.API).Paths() {
		if _, path, _ := strings.Cut(r, " "); strings.HasPrefix(path, "/_matrix/federation/") || strings.HasPrefix(path, "/_matrix/key/") {
			list = append(list, r)
		}
	}
	slices.Sort(list)
	return list
}

// TestHostileServers has a server with a valid key send what nobody should.
func TestHostileServers(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	bodies, vars := p.bodies(), p.vars()
	params := map[string]string{"ver": "12", "limit": "5", "event_id": p.id, "v": p.id, "ts": "1", "dir": "b", "user_id": string(p.alice.UserID), "room_alias": "#x:y", "suggested_only": "true", "since": "", "field": "displayname"}
	n := 0
	for _, route := range p.routes() {
		method, path, _ := strings.Cut(route, " ")
		good := bodies[route]
		p.h.Path(method, path, vars, "ver=12", good)
		p.h.Query(method, path, vars, params, good)
		if method == http.MethodGet {
			continue
		}
		at := func() string {
			n++
			vars["txnId"] = fmt.Sprint("h", n)
			return httpapitest.Fill(path, vars)
		}
		p.h.Bodies(method, path, at(), "")
		if good != nil {
			p.h.Body(method, path, at(), "", good)
		}
	}
	// Events with odd parts, well sealed, each in a transaction of its own.
	const sendPath = "/_matrix/federation/v1/send/{txnId}"
	related, err := sjson.SetRawBytes(p.message, "content", []byte(`{"msgtype":"m.text","body":"x","m.new_content":{"body":"y"},"m.mentions":{"user_ids":["`+string(p.alice.UserID)+`"]},"m.relates_to":{"rel_type":"m.thread","event_id":"`+p.id+`","key":"k","m.in_reply_to":{"event_id":"`+p.id+`"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	sealed := p.h.Mutations(p.message)
	for why, event := range p.h.Mutations(related) {
		sealed["related "+why] = event
	}
	for why, event := range sealed {
		n++
		body := []byte(`{"origin":"` + string(p.bad.Name) + `","origin_server_ts":1,"edus":[],"pdus":[`)
		body = append(append(body, p.seal(event)...), `]}`...)
		// A transaction that is refused comes again for ever.
		if status, a := p.h.Send("PUT", sendPath, "/_matrix/federation/v1/send/s"+fmt.Sprint(n), "", body, "a sealed event, "+why); status != http.StatusOK && sound(body) {
			t.Errorf("a transaction is refused (%s): %d %s", why, status, a)
		}
	}
	for _, edu := range p.edus() {
		content, err := json.Marshal(edu)
		if err != nil {
			t.Fatal(err)
		}
		for why, changed := range p.h.Mutations(content) {
			n++
			body := []byte(`{"origin":"` + string(p.bad.Name) + `","origin_server_ts":1,"pdus":[],"edus":[` + string(changed) + `]}`)
			if status, a := p.h.Send("PUT", sendPath, "/_matrix/federation/v1/send/e"+fmt.Sprint(n), "", body, "an EDU, "+why); status != http.StatusOK && sound(body) {
				t.Errorf("a transaction is refused (%s): %d %s", why, status, a)
			}
		}
	}
	if n := p.good.Handler().(*httpapi.API).Panics(); n > 0 {
		t.Errorf("%d handlers panicked", n)
	}
	// The good server is none the worse for it.
	send(p.alice, roomFor(p.room), "after", "still here")
	p.alice.RawSync("")
	t.Logf("%d requests to %d routes: %v", p.h.Sent, len(p.routes()), p.h.Statuses)
}

// sound says whether a body is a transaction in form.
func sound(body []byte) bool {
	var txn struct {
		PDUs []map[string]any `json:"pdus"`
		EDUs []struct {
			Type    string         `json:"edu_type"`
			Content map[string]any `json:"content"`
		} `json:"edus"`
	}
	return utf8.Valid(body) && json.Unmarshal(body, &txn) == nil
}

// FuzzServers is FuzzRequests from another server; where seal is set, the events
// of a transaction get hash and signature.
func FuzzServers(f *testing.F) {
	p := newPeer(f)
	routes, bodies, vars := p.routes(), p.bodies(), p.vars()
	names := map[string]string{"ALICE": string(p.alice.UserID), "BOB": string(p.bob.UserID), "ROOM": p.room, "EVENT": p.id, "GOOD": string(p.good.Name), "BAD": string(p.bad.Name)}
	order := []string{"ALICE", "BOB", "ROOM", "EVENT", "GOOD", "BAD"}
	replace := func(s string, back bool) string {
		for _, symbol := range order {
			if back {
				s = strings.ReplaceAll(s, names[symbol], symbol)
			} else {
				s = strings.ReplaceAll(s, symbol, names[symbol])
			}
		}
		return s
	}
	for i, r := range routes {
		_, path, _ := strings.Cut(r, " ")
		var list []string
		for _, v := range httpapitest.Variables(path) {
			list = append(list, replace(vars[v], true))
		}
		f.Add(uint16(i), strings.Join(list, "\x1f"), "ver=12&limit=5&event_id=EVENT&v=EVENT&ts=1&dir=b&user_id=ALICE", []byte(replace(string(bodies[r]), true)), true)
	}
	n := 0
	f.Fuzz(func(t *testing.T, route uint16, variables, query string, body []byte, seal bool) {
		if len(body) > 1<<16 {
			return
		}
		method, path, _ := strings.Cut(routes[int(route)%len(routes)], " ")
		values := map[string]string{}
		for i, v := range strings.Split(replace(variables, false), "\x1f") {
			if all := httpapitest.Variables(path); i < len(all) {
				values[all[i]] = v
			}
		}
		if _, ok := values["txnId"]; ok {
			n++
			values["txnId"] += fmt.Sprint(n)
		}
		body = []byte(replace(string(body), false))
		if seal && json.Valid(body) {
			switch {
			case strings.HasSuffix(path, "/send/{txnId}"):
				for i, e := range gjson.GetBytes(body, "pdus").Array() {
					if b, err := sjson.SetRawBytes(body, fmt.Sprintf("pdus.%d", i), p.seal([]byte(e.Raw))); err == nil && json.Valid(b) {
						body = b
					}
				}
			case strings.HasSuffix(path, "/{eventId}"):
				body = p.seal(body)
			}
		}
		h := *p.h
		h.T = t
		h.Send(method, path, httpapitest.Fill(path, values), query, body, "fuzzed")
		if p.good.Handler().(*httpapi.API).Panics() > 0 {
			t.Fatal("a handler panicked")
		}
	})
}
