package appservice_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/appservice/astest"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
)

// hostileBodies are good bodies of requests, by route.
var hostileBodies = map[string]string{
	"POST /_carillon/v1/dings": `{"uuid":"u","kind":"text","body":"come","receivers":{"persons":["003"],"units":["tech"]},"fire_at":1,"expires_at":2}`,
	"PUT /_matrix/app/v1/transactions/{txnId}": `{"events":[{"type":"m.room.message","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$1","origin_server_ts":1,
		"content":{"msgtype":"m.text","body":"/ding @004 come","m.mentions":{"user_ids":["@004:example.com"]},"m.relates_to":{"rel_type":"m.reference","event_id":"$2","m.in_reply_to":{"event_id":"$3"}}}},
		{"type":"m.room.member","state_key":"@003:example.com","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$4","content":{"membership":"join"},"unsigned":{"prev_content":{"membership":"invite"}}}],
		"ephemeral":[{"type":"m.receipt","room_id":"!a:example.com","content":{"$1":{"m.read":{"@003:example.com":{"ts":1}}}}}],"de.sorunome.msc2409.ephemeral":[]}`,
	"POST /_matrix/app/v1/ping": `{"transaction_id":"1"}`,
}

// hostileEvents are events that the service acts upon.
var hostileEvents = []string{
	`{"type":"m.reaction","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$ownr","content":{"m.relates_to":{"rel_type":"m.annotation","event_id":"$1","key":"👀"}}}`,
	`{"type":"m.reaction","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$ownk","content":{"m.relates_to":{"rel_type":"m.annotation","event_id":"$1","key":"✅"}}}`,
	`{"type":"m.room.message","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$ownq","content":{"msgtype":"m.text","body":"!readers","m.relates_to":{"m.in_reply_to":{"event_id":"$1"}}}}`,
	`{"type":"m.room.message","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$ownc","content":{"msgtype":"m.text","body":"收到","m.relates_to":{"rel_type":"m.thread","event_id":"$2","m.in_reply_to":{"event_id":"$1"}}}}`,
	`{"type":"m.room.message","room_id":"!a:example.com","sender":"@004:example.com","event_id":"$ownd","origin_server_ts":1,"content":{"msgtype":"m.text","body":"!ding 003 come","formatted_body":"<b>!ding 003</b>","m.mentions":{"user_ids":["@003:example.com"]}}}`,
	`{"type":"im.carillon.ding.confirm","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$ownf","content":{"m.relates_to":{"rel_type":"m.reference","event_id":"$1"}}}`,
	`{"type":"m.room.redaction","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$x","redacts":"$1","content":{"redacts":"$1"}}`,
	`{"type":"m.room.encrypted","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$owny","content":{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"x"}}`,
	`{"type":"m.room.member","state_key":"@003:example.com","room_id":"!a:example.com","sender":"@003:example.com","event_id":"$ownm","content":{"membership":"join","displayname":"x"},"unsigned":{"prev_content":{"membership":"invite"}}}`,
}

func (w *world) hostile(t testing.TB) (*httpapitest.Hostile, []string) {
	api := w.svc.Handler().(*httpapi.API)
	admin := w.hs.Token("@004:example.com")
	routes := api.Paths()
	slices.Sort(routes)
	return &httpapitest.Hostile{
		T: t, Handler: api, Stranger: "@005:example.com", Brief: os.Getenv("CARILLON_TEST_HOSTILE") != "all",
		Allow: func(_, _ string, status int, code string) bool { return status == http.StatusBadGateway && code != "" },
		Prepare: func(r *http.Request, _ []byte) {
			token := admin
			if !strings.HasPrefix(r.URL.Path, "/_carillon/") {
				token = astest.HSToken
			}
			r.Header.Set("Authorization", "Bearer "+token)
			r.Header.Set("Content-Type", "application/json")
		},
	}, routes
}

// TestHostile tries every route of the service with what nobody should send.
func TestHostile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.company()
	h, routes := w.hostile(t)
	vars := map[string]string{"id": "003", "roomId": "!a:example.com", "eventId": "$1", "dingId": "1"}
	unit, _ := w.svc.Rooms().UnitRoom("tech")
	room := string(unit)
	for i, route := range routes {
		method, path, _ := strings.Cut(route, " ")
		good := []byte(strings.ReplaceAll(hostileBodies[route], "!a:example.com", room))
		vars["txnId"] = fmt.Sprint("t", i)
		h.Path(method, path, vars, "", good)
		h.Query(method, path, vars, map[string]string{"q": "x", "limit": "5", "from": "", "plan": "true", "force": "", "depth": "1", "unit": "tech", "format": "csv", "access_token": "x", "lang": "zh"}, good)
		if method == http.MethodGet {
			continue
		}
		h.Bodies(method, path, httpapitest.Fill(path, vars), "")
		if len(good) == 0 {
			continue
		}
		if !json.Valid(good) {
			t.Fatalf("%s: the good body is bad", route)
		}
		for why, b := range h.Mutations(good) {
			i++
			vars["txnId"] = fmt.Sprint("m", i, why[:1])
			status, answer := h.Send(method, path, httpapitest.Fill(path, vars), "", b, why)
			// A transaction that is refused comes again for ever.
			if strings.Contains(path, "/transactions/") && status != http.StatusOK && sound(b) {
				t.Errorf("a transaction is refused (%s): %d %s", why, status, answer)
			}
		}
	}
	// Events of people, who may write into them what they like.
	n := 0
	for _, good := range hostileEvents {
		good = strings.ReplaceAll(good, "!a:example.com", room)
		for why, b := range h.Mutations([]byte(good)) {
			n++
			// Each is an event of its own: one that is known already changes nothing.
			b = bytes.Replace(b, []byte(`"event_id":"$own`), fmt.Appendf(nil, `"event_id":"$%d`, n), 1)
			txn := fmt.Sprintf(`{"events":[%s]}`, b)
			path := fmt.Sprint("/_matrix/app/v1/transactions/e", n)
			if status, answer := h.Send("PUT", "/_matrix/app/v1/transactions/{txnId}", path, "", []byte(txn), why); status != http.StatusOK && sound([]byte(txn)) {
				t.Errorf("a transaction with an event of somebody's is refused (%s): %d %s", why, status, answer)
			}
		}
	}
	if n := w.svc.Handler().(*httpapi.API).Panics(); n > 0 {
		t.Errorf("%d handlers panicked", n)
	}
	t.Logf("%d requests to %d routes: %v", h.Sent, len(routes), h.Statuses)
}

// sound says whether a homeserver could send a transaction: JSON, with lists of
// objects where the specification has them.
func sound(b []byte) bool {
	var txn struct {
		Events    []map[string]any `json:"events"`
		Ephemeral []map[string]any `json:"ephemeral"`
		Older     []map[string]any `json:"de.sorunome.msc2409.ephemeral"`
	}
	return utf8.Valid(b) && json.Unmarshal(b, &txn) == nil
}

// FuzzRequests sends requests to every route of the service.
func FuzzRequests(f *testing.F) {
	w := newWorld(f)
	w.company()
	h, routes := w.hostile(f)
	for i, route := range routes {
		f.Add(uint16(i), "003", "limit=1&q=x", []byte(hostileBodies[route]))
	}
	n := 0
	f.Fuzz(func(t *testing.T, route uint16, variable, query string, body []byte) {
		if len(body) > 1<<16 {
			return
		}
		method, path, _ := strings.Cut(routes[int(route)%len(routes)], " ")
		values := map[string]string{}
		for _, v := range httpapitest.Variables(path) {
			values[v] = variable
		}
		if _, ok := values["txnId"]; ok {
			n++
			values["txnId"] += fmt.Sprint(n)
		}
		own := *h
		own.T = t
		own.Send(method, path, httpapitest.Fill(path, values), query, body, "fuzzed")
	})
}
