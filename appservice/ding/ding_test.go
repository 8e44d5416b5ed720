package ding_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/ding"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

func TestSendAndConfirm(t *testing.T) {
	t.Parallel()
	s := tell(t)
	s.ding("mei", "三点开会 <1号楼>", ding.Receivers{Persons: []string{"zhang", "zhao", "mei", "qian"}, Units: []string{"web", "sales"}})
	e := s.notice("zhang", "三点开会")
	if want := "梅主管 DING：三点开会 <1号楼>\n点 ✅ 或回复“收到”确认"; e.body() != want {
		t.Errorf("%q, want %q", e.body(), want)
	}
	if f := e.content["formatted_body"].(string); !strings.HasPrefix(f, "<strong>梅主管 DING：</strong>三点开会 &lt;1号楼&gt;<br>") {
		t.Errorf("formatted %q", f)
	}
	if m := e.content["m.mentions"].(map[string]any)["user_ids"].([]any); len(m) != 1 || m[0] != user("zhang") {
		t.Errorf("mentions %v", m)
	}
	records := s.w.find("!zhang", "im.carillon.ding", "")
	if len(records) != 1 || e.content["m.relates_to"].(map[string]any)["event_id"] != records[0].id {
		t.Errorf("the message must relate to its record")
	}
	s.cardShows("mei", "发给 4 人", "赵六（已离职）", "梅主管（本人）", "钱七（未入职）", "孙八（已停用）")
	s.reacts("zhang", e.id, "👍🏽\ufe0f")
	s.says("li", "!li", "> <"+bot+"> quote\n\nOK！", s.notice("li", "三点").id)
	s.notice("w1", "三点")
	s.event("im.carillon.ding.confirm", "w1", "!w1", `{"ding_id":"`+e.content["im.carillon.ding"].(map[string]any)["ding_id"].(string)+`"}`)
	s.cardShows("mei", "已确认 3，未确认 1", "未确认：王五")
	s.notice("wang", "三点")
	s.says("wang", "!wang", "收到", "") // the only one open
	s.cardShows("mei", "全部确认，用时", "已确认 4，未确认 0")
	s.eventually("all confirmations are recorded", func() bool { return len(s.w.find("", "im.carillon.ding.confirm", "")) == 4 })
	if n := len(s.w.find("!li", "im.carillon.ding", "")); n != 1 {
		t.Errorf("li, named by two units, received %d", n)
	}
}

func TestWhatDoesNotConfirm(t *testing.T) {
	s := tell(t)
	id := s.ding("mei", "one", to("zhang", "li"))
	e := s.notice("zhang", "one")
	s.reacts("li", e.id, "✅") // another's message, another's room
	s.event("m.reaction", "li", "!zhang", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"`+e.id+`","key":"✅"}}`)
	s.reacts("zhang", e.id, "❌")
	s.reacts("zhang", "$unknown", "✅")
	s.says("zhang", "!zhang", "收到吗", e.id)
	s.says("zhang", "!hall", "收到", "")
	s.event("m.room.message", "zhang", "!zhang", `{"msgtype":"m.notice","body":"收到"}`)
	s.event("im.carillon.ding.confirm", "zhang", "!zhang", `{"ding_id":7}`)
	s.event("im.carillon.ding.confirm", "zhang", "!zhang", `{"ding_id":"none"}`)
	s.event("im.carillon.ding.confirm", "wang", "!wang", `{"ding_id":"`+id+`"}`)
	s.event("m.room.message", "zhang", "!zhang", `[]`)
	if n := s.counts(id); n.Confirmed != 0 {
		t.Fatalf("%+v", n)
	}
	s.ding("chief", "two", to("zhang"))
	s.notice("zhang", "two")
	s.says("zhang", "!zhang", "收到", "")
	s.told("zhang", "你有 2 条未确认的 DING")
	if n := s.counts(id); n.Confirmed != 0 {
		t.Errorf("a word that could mean either confirmed one: %+v", n)
	}
	_, _, err := s.Confirm(t.Context(), as("wang"), id)
	s.code(err, "M_NOT_FOUND")
}

// counts reads the figures through the API's eyes.
func (s *story) counts(id string) ding.Counts {
	s.t.Helper()
	return s.show("chief", id).Counts
}

func TestFirstConfirmationStands(t *testing.T) {
	s := tell(t)
	id := s.ding("mei", "x", to("zhang", "li"))
	e := s.notice("zhang", "x")
	first, late, err := s.Confirm(t.Context(), as("zhang"), id)
	if err != nil || late {
		t.Fatal(err)
	}
	s.wait(time.Hour)
	ev := s.reacts("zhang", e.id, "✅")
	s.take(ev, ev)
	again, _, err := s.Confirm(t.Context(), as("zhang"), id)
	if err != nil || again != first {
		t.Errorf("confirmed at %d, then at %d: %v", first, again, err)
	}
	s.restart()
	if again, _, err = s.Confirm(t.Context(), as("zhang"), id); err != nil || again != first {
		t.Errorf("after a restart confirmed at %d, not %d: %v", again, first, err)
	}
	if n := s.counts(id); n.Confirmed != 1 {
		t.Errorf("%+v", n)
	}
}

func TestRecall(t *testing.T) {
	t.Parallel()
	s := tell(t)
	s.w.fail = func(room, _ string) error {
		if room == "!wang" {
			return errors.New("unreachable") // wang's stays queued
		}
		return nil
	}
	id := s.ding("mei", "oops", to("zhang", "li", "wang"))
	e := s.notice("zhang", "oops")
	s.notice("li", "oops")
	s.eventually("two are out", func() bool { return s.counts(id).WentOut == 2 })
	if _, _, err := s.Confirm(t.Context(), as("li"), id); err != nil {
		t.Fatal(err)
	}
	s.code(s.Recall(t.Context(), as("zhang"), id), "M_FORBIDDEN")
	s.code(s.Recall(t.Context(), as("w1"), id), "M_NOT_FOUND")
	for range 2 {
		if err := s.Recall(t.Context(), as("mei"), id); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"zhang", "li"} {
		s.told(p, "* 梅主管 撤回了这条 DING")
	}
	if es := s.w.find("!zhang", "m.room.message", "撤回"); len(es) != 1 || es[0].edits() != e.id {
		t.Errorf("retracted by %d edits", len(es))
	}
	s.cardShows("mei", "已撤回；撤回前已送达 2 人")
	s.w.mu.Lock()
	s.w.fail = nil // by now no attempt of before is under way
	s.w.mu.Unlock()
	s.reacts("zhang", e.id, "✅")
	n := s.counts(id)
	if n.Recalled != 2 || n.Confirmed != 1 || n.Late != 1 || n.WentOut != 2 {
		t.Errorf("%+v", n)
	}
	s.cardShows("mei", "结束后确认 1")
	s.restart()
	time.Sleep(50 * time.Millisecond)
	if len(s.w.find("!wang", "m.room.message", "")) != 0 {
		t.Error("a recalled DING was sent")
	}
	if after := s.counts(id); after != n {
		t.Errorf("after a restart %+v", after)
	}
}

// Who has a client that shows the record of a DING itself may react to that.
func TestTheRecordIsConfirmed(t *testing.T) {
	t.Parallel()
	s := tell(t)
	id := s.ding("mei", "come", to("zhang", "li"))
	s.notice("zhang", "come")
	s.notice("li", "come")
	s.reacts("zhang", s.w.find("!zhang", "im.carillon.ding", "")[0].id, "✅")
	s.eventually("one has confirmed", func() bool { return s.counts(id).Confirmed == 1 })
	s.reacts("li", s.w.find("!zhang", "im.carillon.ding", "")[0].id, "✅") // not his
	if n := s.counts(id); n.Confirmed != 1 {
		t.Errorf("%+v", n)
	}
}

// A message that is on its way while its DING is recalled is retracted too.
func TestRecallWhileSending(t *testing.T) {
	for _, crash := range []bool{false, true} {
		s := tell(t)
		hold := make(chan struct{})
		cut := false
		s.w.cut = func(txn string) bool {
			if strings.HasSuffix(txn, "/d/zhang/1") && !cut {
				cut = true
				<-hold
				return crash // the event is in the room, its answer is lost
			}
			return false
		}
		id := s.ding("mei", "oops", to("zhang"))
		time.Sleep(50 * time.Millisecond) // the send hangs with the world's lock held
		done := make(chan error, 1)
		go func() { done <- s.Recall(context.Background(), as("mei"), id) }()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if crash {
			go func() { time.Sleep(20 * time.Millisecond); close(hold) }()
			s.restart()
			// the homeserver's next transaction shows that it went out
			es := s.w.find("!zhang", "m.room.message", "oops")
			if len(es) == 0 {
				t.Fatal("not sent")
			}
			s.take(&mxclient.Event{ID: es[0].id, Room: "!zhang", Sender: bot, Type: "m.room.message", TS: time.Now().UnixMilli(), Content: es[0].raw})
		} else {
			close(hold)
		}
		s.told("zhang", "* 梅主管 撤回了这条 DING")
		s.eventually("it is known that it went out", func() bool { n := s.counts(id); return n.Recalled == 1 && n.WentOut == 1 })
	}
}

func TestScheduled(t *testing.T) {
	s := tell(t)
	at := s.now().Add(time.Hour).UnixMilli()
	make := func(uuid, body string) string {
		id, _, err := s.Create(t.Context(), as("mei"), ding.Request{UUID: uuid, Body: body, Receivers: ding.Receivers{Units: []string{"sales"}}, FireAt: at})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	id := make("a", "later")
	recalled := make("b", "never")
	s.cardShows("mei", "定时于")
	if err := s.Recall(t.Context(), as("mei"), recalled); err != nil {
		t.Fatal(err)
	}
	s.restart()
	imp := company() // people move meanwhile
	imp.People[4].Posts = []org.Post{{Unit: "tech", Main: true}}
	imp.People[2].Posts = []org.Post{{Unit: "sales", Main: true}}
	s.apply(imp)
	s.wait(time.Hour + time.Minute)
	s.restart() // the clock has jumped; a timer would wait
	s.notice("zhang", "later")
	if len(s.w.find("!wang", "m.room.message", "later")) != 0 {
		t.Error("sent to one who has moved away")
	}
	s.eventually("it is open", func() bool { return s.show("mei", id).State == ding.Open })
	s.restart()
	s.restart()
	if n := len(s.w.find("!zhang", "im.carillon.ding", "")); n != 1 {
		t.Errorf("fired %d times", n)
	}
	if got := s.show("mei", recalled).State; got != ding.Recalled {
		t.Errorf("recalled before its time, and %s", got)
	}
}

func TestScheduledMissedCancelledRefused(t *testing.T) {
	s := tell(t)
	make := func(sender string, r ding.Receivers, in time.Duration) string {
		id, _, err := s.Create(t.Context(), as(sender), ding.Request{Body: "later", Receivers: r, FireAt: s.now().Add(in).UnixMilli()})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	missed := make("mei", to("zhang"), time.Hour)
	cancelled := make("wang", to("zhang"), 2*time.Hour)
	refused := make("mei", to("w1"), 2*time.Hour)
	s.stop()
	s.wait(2*time.Hour + time.Minute)
	s.open()
	imp := company()
	for _, p := range imp.People {
		if p.ID == "wang" || p.ID == "w1" {
			p.Left = "2020-02-02"
		}
	}
	s.apply(imp)
	s.db.Close()
	s.start()
	for id, want := range map[string]ding.State{missed: ding.Missed, cancelled: ding.Cancelled, refused: ding.Refused} {
		s.eventually(string(want), func() bool { return s.show("chief", id).State == want })
		s.code(s.Recall(t.Context(), as("chief"), id), "IM_CARILLON_DING_OVER")
	}
	if len(s.w.find("!zhang", "m.room.message", "later")) != 0 {
		t.Error("a DING was sent that must not be")
	}
	s.cardShows("mei", "没有发出")
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	s := tell(t)
	id := s.ding("mei", "soon", to("zhang", "li"))
	e := s.notice("zhang", "soon")
	s.notice("li", "soon")
	s.wait(73 * time.Hour)
	s.restart()
	s.eventually("it has expired", func() bool { return s.show("mei", id).State == ding.Expired })
	s.cardShows("mei", "已过期")
	s.reacts("zhang", e.id, "✅")
	if n := s.counts(id); n.Late != 1 || n.Confirmed != 0 || n.Sent != 2 {
		t.Errorf("%+v", n)
	}
	s.cardShows("mei", "结束后确认 1")
}

func TestUUID(t *testing.T) {
	s := tell(t)
	req := ding.Request{UUID: "u", Body: "once", Receivers: to("zhang")}
	ids := make(chan string, 8)
	for range 8 {
		go func() {
			id, _, err := s.Create(context.Background(), as("mei"), req)
			if err != nil {
				t.Error(err)
			}
			ids <- id
		}()
	}
	first := <-ids
	for range 7 {
		if id := <-ids; id != first {
			t.Errorf("two DINGs: %s and %s", first, id)
		}
	}
	if id, created, err := s.Create(t.Context(), as("chief"), req); err != nil || !created || id == first {
		t.Errorf("another sender's UUID is another: %s %v", id, err)
	}
	s.notice("zhang", "总管 DING")
	if n := len(s.w.find("!zhang", "im.carillon.ding", "")); n != 2 {
		t.Errorf("%d messages", n)
	}
}

func TestWhoMayDing(t *testing.T) {
	s := tellWith(t, company(), ding.Options{MaxReceivers: 2, PerMinute: 50})
	all := ding.Receivers{Everybody: true}
	for _, c := range []struct {
		sender string
		kind   string
		r      ding.Receivers
		code   string
	}{
		{"zhang", "", to("li", "wang"), ""},
		{"zhang", "", to("li", "wang", "w1"), "M_FORBIDDEN"},
		{"zhang", "", all, "M_FORBIDDEN"},
		{"zhang", "emergency", to("li"), "M_FORBIDDEN"},
		{"mei", "emergency", to("li"), ""},
		{"mei", "", ding.Receivers{Units: []string{"tech"}, Persons: []string{"wang", "w1"}}, ""},
		{"mei", "", ding.Receivers{Units: []string{"tech"}, Persons: []string{"wang", "w1", "w2"}}, "M_FORBIDDEN"},
		{"chief", "", all, ""},
		{"zhao", "", to("li"), "M_FORBIDDEN"},
		{"qian", "", to("li"), "M_FORBIDDEN"},
		{"sun", "", to("li"), "M_FORBIDDEN"},
		{"nobody", "", to("li"), "M_FORBIDDEN"},
		{"zhang", "", ding.Receivers{UnreadOf: &ding.Source{Room: "!hall", Event: "$secret"}}, "M_FORBIDDEN"},
		{"zhang", "", ding.Receivers{UnreadOf: &ding.Source{Room: "!else", Event: "$m"}}, "M_NOT_FOUND"},
		{"zhang", "", ding.Receivers{UnreadOf: &ding.Source{Room: "hall", Event: "$m"}}, "M_INVALID_PARAM"},
		{"zhang", "", to("zhang"), "IM_CARILLON_NO_RECEIVERS"},
		{"zhang", "", to("张伟"), "M_INVALID_PARAM"},
		{"zhang", "", to("谁"), "M_INVALID_PARAM"},
		{"zhang", "", to("@li:other.cn"), "M_INVALID_PARAM"},
		{"zhang", "", to("@li:c.cn", "李四"), ""},
		{"zhang", "", ding.Receivers{Units: []string{"财务部"}}, "M_INVALID_PARAM"},
		{"zhang", "", ding.Receivers{}, "M_MISSING_PARAM"},
		{"zhang", "shout", to("li"), "M_INVALID_PARAM"},
	} {
		_, _, err := s.Create(t.Context(), as(c.sender), ding.Request{Body: "x", Kind: c.kind, Receivers: c.r})
		if c.code == "" && err != nil || c.code != "" {
			if c.code == "" {
				t.Errorf("%s %s %+v: %v", c.sender, c.kind, c.r, err)
			} else {
				s.code(err, c.code)
			}
		}
	}
	now := s.now()
	for _, req := range []ding.Request{
		{Receivers: to("li")},
		{Body: strings.Repeat("长", 2001), Receivers: to("li")},
		{Body: "\xff", Receivers: to("li")},
		{Body: "x", Receivers: to("li"), FireAt: now.Add(-time.Hour).UnixMilli()},
		{Body: "x", Receivers: to("li"), FireAt: now.AddDate(2, 0, 0).UnixMilli()},
		{Body: "x", Receivers: to("li"), ExpiresAt: now.Add(time.Second).UnixMilli()},
		{Body: "x", Receivers: to("li"), ExpiresAt: now.AddDate(1, 0, 0).UnixMilli()},
		{Body: "x", Receivers: to("li"), UUID: strings.Repeat("u", 129)},
	} {
		if _, _, err := s.Create(t.Context(), as("mei"), req); err == nil {
			t.Errorf("accepted %+v", req)
		}
	}
}

func TestQuota(t *testing.T) {
	s := tellWith(t, company(), ding.Options{PerMinute: 3})
	for range 3 {
		s.ding("mei", "x", to("zhang"))
	}
	_, _, err := s.Create(t.Context(), as("mei"), ding.Request{Body: "x", Receivers: to("zhang")})
	s.code(err, "M_LIMIT_EXCEEDED")
	if _, _, err := s.Create(t.Context(), as("mei"), ding.Request{Body: "x", Kind: ding.Emergency, Receivers: to("zhang")}); err != nil {
		t.Errorf("an emergency has no quota: %v", err)
	}
	s.ding("chief", "x", to("zhang"))
	s.wait(time.Minute + time.Second)
	s.ding("mei", "x", to("zhang"))
}

func TestUnreadOfAMessage(t *testing.T) {
	s := tell(t)
	s.w.unread, s.w.read = []string{user("zhang"), user("li"), user("zhao"), "@guest:other.cn"}, 37
	s.says("mei", "!hall", "> <@mei:c.cn> 通知\n\n!ding", "$m")
	e := s.notice("zhang", "梅主管 DING：请查看这条消息")
	if !strings.Contains(e.body(), "https://matrix.to/#/%21hall/$m") {
		t.Errorf("%q does not lead to the message", e.body())
	}
	s.notice("li", "DING")
	s.cardShows("mei", "39 人中已有 37 人读过消息", "赵六（已离职）", "@guest:other.cn（不在通讯录）")
	s.w.unread = nil
	s.says("mei", "!hall", "!ding", "$m")
	s.told("mei", "都已读过")
	s.says("zhang", "!hall", "!ding 快看", "$secret")
	s.told("zhang", "没有权限这样做")
}

func TestCommands(t *testing.T) {
	s := tellWith(t, company(), ding.Options{PerMinute: 100})
	ev := s.says("mei", "!hall", "！DING @张三、@li:c.cn 下班前交报告", "")
	s.notice("zhang", "下班前交报告")
	s.notice("li", "下班前交报告")
	s.take(ev, ev)
	s.says("chief", "!chief", "!ding unit:市场部 周会", "")
	s.notice("w1", "周会")
	s.event("m.room.message", "mei", "!hall", `{"msgtype":"m.text","body":"!ding 王五 你好","format":"org.matrix.custom.html",
		"formatted_body":"!ding <a href=\"https://matrix.to/#/@wang:c.cn\">王五</a> 你好","m.mentions":{"user_ids":["@wang:c.cn"]}}`)
	s.notice("wang", "梅主管 DING：你好")
	for text, want := range map[string]string{
		"!ding": "DING 用法", "!ding help": "DING 用法", "!ding hello": "还缺接收人", "!ding @张伟 x": "有多位“张伟”，请用工号：w1、w2",
		"!ding @谁 x": "没有找到“谁”", "!ding unit:无 x": "没有找到部门“无”", "!ding @张三": "还缺 DING 的内容", "!ding at 25:00 @张三 x": "看不懂时间",
		"!ding @mei x": "没有可以 DING 的人。跳过：梅主管（本人）", "!ding recall nothing": "找不到这条 DING",
		"!lang xx": "用法：!lang",
	} {
		s.says("mei", "!hall", text, "")
		s.told("mei", want)
	}
	s.says("mei", "!hall", "!ding in 10m @张三 稍后", "")
	s.cardShows("mei", "稍后", "定时于")
	s.says("mei", "!hall", "!ding recall", "")
	s.told("mei", "已撤回。撤回前已送达 0 人")
	s.says("mei", "!hall", "!lang en", "")
	s.told("mei", "From now on in English.")
	s.says("mei", "!hall", "!ding @wang2 x", "")
	s.told("mei", "Nobody is called “wang2”.")
	old := &mxclient.Event{ID: "$old", Room: "!hall", Sender: user("mei"), Type: "m.room.message", TS: s.now().Add(-2 * time.Hour).UnixMilli(), Content: []byte(`{"msgtype":"m.text","body":"!ding @zhang late"}`)}
	s.take(old)
	s.told("mei", "arrived too late")
	if n := len(s.w.find("!zhang", "m.room.message", "下班前")); n != 1 {
		t.Errorf("a repeated command sent %d", n)
	}
	s.event("m.room.message", "stranger", "!hall", `{"msgtype":"m.text","body":"!ding all x"}`)
	s.event("m.room.message", "mei", "!hall", `{"msgtype":"m.text","body":"* !ding all x","m.new_content":{"msgtype":"m.text","body":"!ding all x"},"m.relates_to":{"rel_type":"m.replace","event_id":"$x"}}`)
	if n := len(s.w.find("!zhang", "m.room.message", "DING：x")); n != 0 {
		t.Error("an edit or a stranger gave a command")
	}
}

func TestRecallByReplyToTheCard(t *testing.T) {
	s := tell(t)
	first := s.ding("mei", "first", to("zhang"))
	s.cardShows("mei", "first")
	card := s.w.find("!mei", "m.room.message", "first")[0]
	second := s.ding("mei", "second", to("zhang"))
	s.eventually("the card is known", func() bool {
		s.says("mei", "!mei", "!ding recall", card.id)
		return s.show("mei", first).State == ding.Recalled
	})
	if got := s.show("mei", second).State; got != ding.Open {
		t.Errorf("the other is %s", got)
	}
}

// A delivery that cannot be made is shown to the sender and does not stop the rest.
func TestFailedDelivery(t *testing.T) {
	t.Parallel()
	s := tell(t)
	s.w.fail = func(room, _ string) error {
		if room == "!li" {
			return errRefused
		}
		return nil
	}
	id := s.ding("mei", "x", to("zhang", "li"))
	s.notice("zhang", "x")
	s.cardShows("mei", "失败 1")
	if _, _, err := s.Confirm(t.Context(), as("zhang"), id); err != nil {
		t.Fatal(err)
	}
	s.cardShows("mei", "全部确认", "失败 1")
}

func TestCardIsEditedOnceASecond(t *testing.T) {
	t.Parallel()
	imp := company()
	for i := range 40 {
		imp.People = append(imp.People, &org.Person{ID: fmt.Sprintf("p%02d", i), Name: fmt.Sprintf("员工%02d", i), Posts: []org.Post{{Unit: "web", Main: true}}})
	}
	s := tellWith(t, imp, ding.Options{})
	id := s.ding("mei", "x", ding.Receivers{Units: []string{"web"}})
	s.notice("p39", "x")
	began := time.Now()
	for i := range 40 {
		if _, _, err := s.Confirm(t.Context(), as(fmt.Sprintf("p%02d", i)), id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.cardShows("mei", "已确认 40，未确认 1", "未确认：李四")
	edits := 0
	for _, e := range s.w.find("!mei", "m.room.message", "") {
		if e.edits() != "" {
			edits++
		}
	}
	if most := int(time.Since(began)/time.Second) + 2; edits > most || edits < 1 {
		t.Errorf("%d edits in %s", edits, time.Since(began))
	}
}

// The process dies after each step of a DING; nothing is lost and nothing is shown twice.
func TestCrashAtEachStep(t *testing.T) {
	t.Parallel()
	for step := range 7 {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			s := tell(t)
			n, crash := 0, make(chan struct{}, 1)
			s.w.cut = func(string) bool { // the answer of the n-th send is lost with the process
				n++
				if n == step+1 {
					crash <- struct{}{}
				}
				return n > step
			}
			id := s.ding("mei", "x", to("zhang", "li"))
			select {
			case <-crash:
			case <-time.After(1500 * time.Millisecond): // fewer sends than steps
			}
			s.stop()
			s.w.mu.Lock()
			s.w.cut = nil
			s.w.mu.Unlock()
			s.start()
			for _, p := range []string{"zhang", "li"} {
				s.reacts(p, s.notice(p, "x").id, "✅")
			}
			s.eventually("all have confirmed", func() bool { return s.show("mei", id).State == ding.Confirmed })
			s.restart()
			s.cardShows("mei", "全部确认", "已确认 2")
			s.eventually("the confirmations are recorded", func() bool { return len(s.w.find("", "im.carillon.ding.confirm", "")) == 2 })
			for _, p := range []string{"zhang", "li"} {
				if n := len(s.w.find("!"+p, "im.carillon.ding", "")) + len(s.w.find("!"+p, "m.room.message", "x")); n != 2 {
					t.Errorf("%s sees %d events", p, n)
				}
			}
		})
	}
}

// A confirmation may come before the outbox has said that the message is out, even over a restart.
func TestConfirmationBeforeTheReceipt(t *testing.T) {
	s := tell(t)
	s.w.cut = func(txn string) bool { return strings.HasSuffix(txn, "/d/zhang/1") } // taken, and the answer is lost
	id := s.ding("mei", "x", to("zhang"))
	s.eventually("the message is in the room", func() bool {
		return len(s.w.find("!zhang", "m.room.message", "x")) == 1
	})
	s.stop()
	s.open() // nothing runs, so nothing is known of what was sent
	defer s.db.Close()
	es := s.w.find("!zhang", "m.room.message", "x")
	s.reacts("zhang", es[0].id, "✅")
	if n := s.counts(id); n.Confirmed != 1 {
		t.Errorf("%+v", n)
	}
}

func TestOutboxRefusesNothing(t *testing.T) {
	s := tell(t)
	id := s.ding("mei", "x", to("zhang"))
	s.notice("zhang", "x")
	var items []bridge.Item
	s.eventually("the item is sent", func() bool {
		items, _ = s.outbox.Group(t.Context(), "ding/"+id)
		return len(items) == 1 && items[0].State == bridge.Sent
	})
	err := s.db.Read(t.Context(), func(tx *sqldb.Tx) error {
		actions, err := sqldb.Select(tx, func(r *sqldb.Rows) (a string, err error) { err = r.Scan(&a); return a, err },
			"SELECT action FROM as_ding_journal WHERE ding_id = $1 ORDER BY id", id)
		if !slices.Equal(actions, []string{"created"}) {
			t.Errorf("journal %v", actions)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
