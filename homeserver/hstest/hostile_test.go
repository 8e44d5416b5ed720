package hstest_test

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
)

// unreachable excuses what cannot be done without somebody else: a far server, a
// file that is still to come, an application service.
func unreachable(_, _ string, status int, code string) bool {
	return (status == http.StatusBadGateway || status == http.StatusGatewayTimeout) && code != ""
}

// brief says that only a part is sent each time; CARILLON_TEST_HOSTILE=all sends
// all of it.
func brief() bool { return os.Getenv("CARILLON_TEST_HOSTILE") != "all" }

// TestHostilePaths tries every route of the server, as its own table has them,
// with variables, parameters and bodies that nobody should send.
func TestHostilePaths(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	w.discovery()
	w.rooms()
	w.members()
	w.messages()
	event := w.ok(w.bob, "sendMessage", w.room, "m.room.message", "hostile", hello("still here")).Get("event_id").Str
	vars := map[string]string{
		"roomId": w.room, "roomIdOrAlias": w.room, "roomAlias": "#plans:a.example", "eventId": event, "userId": string(w.alice.UserID), "stateKey": "",
		"eventType": "m.room.topic", "txnId": "hostile", "keyName": "displayname", "deviceId": "NOTHING", "receiptType": "m.read", "relType": "m.thread",
		"serverName": "a.example", "mediaId": "x", "kind": "content", "ruleId": "x", "type": "org.example", "tag": "u.x", "protocol": "irc", "filterId": "1",
		"appserviceId": "irc", "version": "1", "sessionId": "s", "networkId": "libera",
	}
	api := w.s.Handler().(*httpapi.API)
	token := w.alice.AccessToken
	h := &httpapitest.Hostile{
		T: t, Handler: api, Stranger: string(w.bob.UserID), Allow: unreachable, Brief: brief(),
		Prepare: func(r *http.Request, _ []byte) { r.Header.Set("Authorization", "Bearer "+token) },
	}
	params := specParams(t)
	for _, route := range api.Paths() {
		method, path, _ := strings.Cut(route, " ")
		if strings.HasSuffix(path, "/logout") || strings.HasSuffix(path, "/logout/all") || strings.HasSuffix(path, "/deactivate") {
			token = w.s.User("leaver").Login("").AccessToken // it is used up
		}
		switch {
		case strings.Contains(path, "/admin/"):
			token, vars["userId"] = w.chief.AccessToken, string(w.carol.UserID) // whom it may be the end of
		case strings.Contains(path, "/appservice/"):
			token = "as-secret"
		case token != w.alice.AccessToken && !strings.Contains(path, "/logout") && !strings.Contains(path, "/deactivate"):
			token, vars["userId"] = w.alice.AccessToken, string(w.alice.UserID)
		}
		h.Path(method, path, vars, "timeout=0", []byte("{}"))
		if method != http.MethodGet {
			h.Bodies(method, path, httpapitest.Fill(path, vars), "")
		}
		names := params[method+" "+path]
		if names == nil {
			names = []string{"from", "since", "limit", "filter"}
		}
		good := map[string]string{}
		for _, n := range names {
			if n != "timeout" && n != "timeout_ms" { // a long wait is no mistake
				good[n] = map[string]string{"dir": "b", "width": "32", "height": "32", "room_id": w.room, "url": "http://127.0.0.1:1/"}[n]
			}
		}
		h.Query(method, path, vars, good, nil)
	}
	if n := api.Panics(); n > 0 {
		t.Errorf("%d handlers panicked", n)
	}
	t.Logf("%d requests to %d routes: %v", h.Sent, len(api.Paths()), h.Statuses)
}

// specParams are the parameters of each operation, by method and path.
func specParams(t testing.TB) map[string][]string {
	out := map[string][]string{}
	for _, o := range loadSpec(t).ops {
		for _, q := range o.query {
			key := o.method + " " + o.path
			if !slices.Contains(out[key], strings.TrimSuffix(q, "!")) {
				out[key] = append(out[key], strings.TrimSuffix(q, "!"))
			}
		}
	}
	return out
}

// TestHostileBodies walks all endpoints; each body that the walk sends is sent
// before with each of its parts replaced by what does not belong there.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	api := w.s.Handler().(*httpapi.API)
	h := &httpapitest.Hostile{T: t, Handler: api, Stranger: string(w.bob.UserID), Allow: unreachable, Brief: brief()}
	w.lenient = true
	w.before = func(o *operation, path, params, token string, content []byte) {
		if len(content) == 0 || !json.Valid(content) || !strings.HasPrefix(string(content), "{") {
			return
		}
		h.Prepare = func(r *http.Request, _ []byte) {
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
		}
		h.Body(o.method, o.path, path, strings.TrimPrefix(params, "?"), content)
	}
	w.all()
	if n := api.Panics(); n > 0 {
		t.Errorf("%d handlers panicked", n)
	}
	t.Logf("%d requests: %v", h.Sent, h.Statuses)
}
