package appservice_test

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/astest"
)

func TestTransactions(t *testing.T) {
	w := newWorld(t)
	w.company()
	w.deliver()
	room, _ := w.svc.Rooms().UnitRoom("tech")
	leave := func(user string) map[string]any {
		return map[string]any{"events": []any{map[string]any{
			"type": "m.room.member", "room_id": room, "sender": user, "state_key": user, "event_id": "$" + user,
			"origin_server_ts": 1, "content": map[string]string{"membership": "leave"},
		}}}
	}
	push := func(path, token string, body any) (int, string) {
		t.Helper()
		b, _ := json.Marshal(body)
		req := httptest.NewRequest("PUT", path, bytes.NewReader(b))
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		rec := httptest.NewRecorder()
		w.svc.Handler().ServeHTTP(rec, req)
		var e struct{ Errcode string }
		_ = json.Unmarshal(rec.Body.Bytes(), &e)
		return rec.Code, e.Errcode
	}
	const path = "/_matrix/app/v1/transactions/"
	for _, tt := range []struct {
		path, token string
		body        any
		code        int
		errcode     string
	}{
		{path + "x1", "", leave("@003:example.com"), 401, "M_UNAUTHORIZED"},
		{path + "x1", "wrong", leave("@003:example.com"), 403, "M_FORBIDDEN"},
		{path + "x1", astest.ASToken, leave("@003:example.com"), 403, "M_FORBIDDEN"},
		{path + "x1?access_token=" + astest.HSToken, "", map[string]any{}, 200, ""},
		{path + "x2", astest.HSToken, []string{"no object"}, 400, "M_BAD_JSON"},
		{"/transactions/x3", astest.HSToken, map[string]any{"events": []any{"no event", map[string]any{"type": 5}}}, 200, ""},
	} {
		if code, errcode := push(tt.path, tt.token, tt.body); code != tt.code || errcode != tt.errcode {
			t.Errorf("%s with %q: %d %s", tt.path, tt.token, code, errcode)
		}
	}
	// the same transaction again, with other content, also after a restart: it has been taken in
	if code, _ := push(path+"y1", astest.HSToken, map[string]any{"events": []any{}}); code != 200 {
		t.Fatal(code)
	}
	push(path+"y1", astest.HSToken, leave("@003:example.com"))
	push(path+"y2", astest.HSToken, map[string]any{})
	push(path+"y1", astest.HSToken, leave("@003:example.com"))
	w.stop()
	w.start()
	push(path+"y1", astest.HSToken, leave("@003:example.com"))
	if st := w.wait(w.svc.Reconcile(true).Status().ID); st.Report.Operations != 0 {
		t.Errorf("a repeated transaction had an effect: %v", st.Report.ByKind)
	}
	push(path+"y3", astest.HSToken, leave("@003:example.com")) // believed: verifying finds him there, so nothing happens
	w.hs.Act(t, string(room), "@003:example.com", "leave", "")
	if st := w.wait(w.svc.Reconcile(false).Status().ID); st.Report.Operations != 0 {
		t.Errorf("who left was brought back: %v", st.Report.ByKind)
	}
	if st := w.wait(w.svc.Reconcile(true).Status().ID); st.Report.ByKind["join"] != 1 {
		t.Errorf("verifying did not bring him back: %v", st.Report.ByKind)
	}
}

func TestQueriesOfTheHomeserver(t *testing.T) {
	w := newWorld(t)
	w.company()
	for path, want := range map[string]int{
		"/_matrix/app/v1/users/@003:example.com":             200,
		"/_matrix/app/v1/users/@nobody:example.com":          404,
		"/users/@carillon:example.com":                       200,
		"/_matrix/app/v1/rooms/%23carillon_tech:example.com": 200,
		"/_matrix/app/v1/rooms/%23carillon_none:example.com": 404,
		"/rooms/%23other:example.com":                        404,
	} {
		req := httptest.NewRequest("GET", path, nil)
		req.Header.Set("Authorization", "Bearer "+astest.HSToken)
		rec := httptest.NewRecorder()
		w.svc.Handler().ServeHTTP(rec, req)
		if rec.Code != want {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
	req := httptest.NewRequest("POST", "/_matrix/app/v1/ping", strings.NewReader(`{"transaction_id":"x"}`))
	req.Header.Set("Authorization", "Bearer "+astest.HSToken)
	rec := httptest.NewRecorder()
	w.svc.Handler().ServeHTTP(rec, req)
	if rec.Code != 200 {
		t.Errorf("ping: %d", rec.Code)
	}
}

func TestPrivateReceipts(t *testing.T) {
	for _, counted := range []bool{false, true} {
		w := newWorld(t, func(o *appservice.Options) { o.PrivateReceipts = counted })
		w.company()
		room, _ := w.svc.Rooms().UnitRoom("tech")
		msg := w.hs.Say(t, string(room), "@002:example.com", "m.room.message", map[string]string{"msgtype": "m.text", "body": "x"})
		w.deliver()
		body := map[string]any{"events": []any{}, "de.sorunome.msc2409.ephemeral": []any{map[string]any{
			"type": "m.receipt", "room_id": room,
			"content": map[string]any{msg: map[string]any{"m.read.private": map[string]any{"@003:example.com": map[string]any{"ts": time.Now().UnixMilli()}}}},
		}}}
		if code := astest.Push(t.Context(), w.svc.Handler(), "private", body); code != 200 {
			t.Fatal(code)
		}
		out := w.must(w.hs.Token("@002:example.com"), "GET", "/messages/"+string(room)+"/"+msg+"/readers", nil, "")
		want := 0.0
		if counted {
			want = 1
		}
		if out["total_read"] != want {
			t.Errorf("counted %v: %v", counted, out)
		}
	}
}
