package ding_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/astest"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// office is the whole service beside a homeserver, with the company of the other stories imported.
type office struct {
	t   *testing.T
	hs  *astest.Server
	svc *appservice.Service
}

func openOffice(t *testing.T) *office {
	t.Helper()
	o := &office{t: t, hs: astest.New()}
	reg := appservice.NewRegistration(astest.ServerName, "")
	reg.ASToken, reg.HSToken = astest.ASToken, astest.HSToken
	var err error
	o.svc, err = appservice.New(t.Context(), appservice.Options{
		DB: sqldbtest.Open(t), ServerName: astest.ServerName, Registration: reg, Transport: mxclient.NewHandlerTransport(o.hs), PublicURL: "https://c.cn",
	})
	if err != nil {
		t.Fatal(err)
	}
	o.hs.Attach(o.svc.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := o.svc.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	plan, problems := o.svc.Org().PlanWith(company(), org.PlanOptions{Force: true})
	if plan == nil {
		t.Fatal(problems)
	}
	if _, err := o.svc.Org().Apply(t.Context(), plan, "test"); err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodPost, "/_carillon/v1/org/reconcile", strings.NewReader("{}"))
	w := httptest.NewRecorder()
	o.svc.Operator().ServeHTTP(w, req)
	o.eventually("the rooms are there", func() bool { return o.department("tech") != "" && len(o.hs.Joined(o.department("sales"))) >= 4 })
	return o
}

func (o *office) user(p string) string { return "@" + p + ":" + astest.ServerName }

func (o *office) department(code string) string {
	return o.hs.RoomByAlias("#carillon_" + code + ":" + astest.ServerName)
}

func (o *office) eventually(what string, ok func() bool) {
	o.t.Helper()
	for range 1000 {
		if err := o.hs.Deliver(o.t.Context()); err != nil {
			o.t.Fatal(err)
		}
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	o.t.Fatalf("it never happened that %s", what)
}

func (o *office) say(person, room, text, replyTo string) string {
	o.t.Helper()
	c := map[string]any{"msgtype": "m.text", "body": text}
	if replyTo != "" {
		c["m.relates_to"] = map[string]any{"m.in_reply_to": map[string]any{"event_id": replyTo}}
	}
	return o.hs.Say(o.t, room, o.user(person), "m.room.message", c)
}

// told waits until the bot has said something to a person, and returns the event's ID and room.
func (o *office) told(person string, parts ...string) (event, room string) {
	o.t.Helper()
	o.eventually(person+" is told "+strings.Join(parts, " "), func() bool {
		for _, r := range o.hs.RoomsOf(o.user(person)) {
			if len(o.hs.Joined(r)) != 2 {
				continue
			}
			for _, ev := range o.hs.Events(r) {
				var c struct{ Body string }
				if ev.Type != "m.room.message" || json.Unmarshal(ev.Content, &c) != nil {
					continue
				}
				all := true
				for _, p := range parts {
					all = all && strings.Contains(c.Body, p)
				}
				if all {
					event, room = ev.ID, r
				}
			}
		}
		return event != ""
	})
	return event, room
}

func (o *office) get(person, path string) (int, map[string]any) {
	o.t.Helper()
	req := httptest.NewRequest(http.MethodGet, "/_carillon/v1"+path, nil)
	req.Header.Set("Authorization", "Bearer "+o.hs.Token(o.user(person)))
	w := httptest.NewRecorder()
	o.svc.Handler().ServeHTTP(w, req)
	var out map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		o.t.Fatal(err)
	}
	return w.Code, out
}

// A day in the office: a message, who has read it, a DING to the rest, their confirmations.
func TestADayInTheOffice(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	sales := o.department("sales") // li, wang, w1
	msg := o.say("wang", sales, "月底前交数据", "")
	o.hs.Read(sales, o.user("w1"), msg, "main")
	if err := o.hs.Deliver(t.Context()); err != nil { // receipts of a transaction are taken in after its events
		t.Fatal(err)
	}
	o.hs.Say(t, sales, o.user("wang"), "m.reaction", map[string]any{"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": msg, "key": "👀"}})
	o.told("wang", "已读 (1)：张伟", "未读", "李四")
	code, page := o.get("wang", "/messages/"+url.PathEscape(sales)+"/"+url.PathEscape(msg)+"/readers?state=unread")
	if code != 200 || page["total_read"] != 1.0 {
		t.Fatalf("%d %v", code, page)
	}
	if code, _ := o.get("w1", "/messages/"+url.PathEscape(sales)+"/"+url.PathEscape(msg)+"/readers"); code != 403 {
		t.Errorf("a colleague sees the names: %d", code)
	}
	o.say("wang", sales, "!ding", msg)
	ding, room := o.told("li", "王五 DING：请查看这条消息")
	o.told("wang", "我的 DING", "已有 1 人读过消息")
	o.hs.Say(t, room, o.user("li"), "m.reaction", map[string]any{"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": ding, "key": "✅"}})
	_, room2 := o.told("chief", "王五 DING：请查看这条消息") // who stands in for the manager whom sales lack
	o.say("chief", room2, "收到", "")
	o.told("wang", "全部确认")
	o.eventually("the confirmation is recorded in li's room", func() bool {
		for _, ev := range o.hs.Events(room) {
			if ev.Type == "im.carillon.ding.confirm" {
				return true
			}
		}
		return false
	})
	code, list := o.get("li", "/dings?box=received")
	if dings, _ := list["dings"].([]any); code != 200 || len(dings) != 1 || dings[0].(map[string]any)["mine"].(map[string]any)["state"] != "confirmed" {
		t.Errorf("%d %v", code, list)
	}
	o.say("chief", o.department("hq"), "!ding all 明天停电", "")
	for _, p := range []string{"mei", "zhang", "li", "wang", "w1", "w2"} {
		o.told(p, "总管 DING：明天停电")
	}
}
