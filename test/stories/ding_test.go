package stories_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/org"
)

// The events of a DING.
var (
	dingRecord  = event.Type{Type: "im.carillon.ding", Class: event.MessageEventType}
	dingConfirm = event.Type{Type: "im.carillon.ding.confirm", Class: event.MessageEventType}
)

// dings sends one through the API and gives its ID.
func (w *world) dings(p *person, text string, receivers map[string]any, more ...any) string {
	w.t.Helper()
	in := map[string]any{"body": text, "receivers": receivers}
	for i := 0; i < len(more); i += 2 {
		in[more[i].(string)] = more[i+1]
	}
	a := w.api(p.AccessToken, http.MethodPost, "/dings", in)
	if a.status != http.StatusCreated {
		w.t.Fatalf("%s DINGs: %d %v", p.UserID, a.status, a.body)
	}
	return a.body["id"].(string)
}

// figures are the counts of a DING.
func (w *world) figures(p *person, ding string) (state string, counts map[string]float64) {
	w.t.Helper()
	a := w.must(p.AccessToken, http.MethodGet, "/dings/"+ding+"?limit=0", nil)
	counts = map[string]float64{}
	for k, v := range a["counts"].(map[string]any) {
		counts[k], _ = v.(float64)
	}
	return a["state"].(string), counts
}

// newest is the ID of the last DING somebody sent.
func (w *world) newest(p *person) string {
	w.t.Helper()
	list := w.must(p.AccessToken, http.MethodGet, "/dings?limit=1", nil)["dings"].([]any)
	if len(list) == 0 {
		w.t.Fatalf("%s has sent no DING", p.UserID)
	}
	return list[0].(map[string]any)["id"].(string)
}

// oncePerPerson checks all DING rooms: whatever was repeated, a DING is there once, and so is its confirmation. It
// returns how many there are.
func (w *world) oncePerPerson() (notices, confirmations int) {
	w.t.Helper()
	for _, p := range w.svc.Org().Tree().People() {
		if p.Status != org.StatusActive {
			continue
		}
		room, err := w.svc.Rooms().DingRoom(w.t.Context(), p.ID)
		if err != nil {
			w.t.Fatal(err)
		}
		seen := map[string]int{}
		for _, e := range w.events(room) {
			rel, _ := e.Content.Raw["m.relates_to"].(map[string]any)
			ding, _ := e.Content.Raw["ding_id"].(string)
			switch {
			case e.Type.Type == dingRecord.Type:
				seen["record of "+ding]++
			case e.Type.Type == dingConfirm.Type && e.Sender == bot:
				seen["confirmation of "+ding]++
				confirmations++
			case e.Type == event.EventMessage && e.Sender == bot && rel["rel_type"] != "m.replace":
				if key, ok := e.Content.Raw["im.carillon.ding"].(map[string]any); ok {
					seen["notice of "+key["ding_id"].(string)]++
					notices++
				}
				if key, ok := e.Content.Raw["im.carillon.ding.card"].(map[string]any); ok {
					seen["card of "+key["ding_id"].(string)]++
				}
			}
		}
		for what, n := range seen {
			if n != 1 {
				w.t.Errorf("%s has %d times the %s", p.Name, n, what)
			}
		}
	}
	return notices, confirmations
}

// dingOffice is the demo company of which every transaction comes three times.
func dingOffice(t *testing.T, options ...func(*appservice.Options)) *life {
	t.Helper()
	options = append(options, func(o *appservice.Options) { o.Ding.PerMinute, o.Ding.MaxReceivers = 100, 10 })
	l := &life{newWorld(t, options...), org.DemoCompany()}
	l.repeat.Store(true)
	l.company(l.imp)
	return l
}

func TestDING(t *testing.T) {
	t.Parallel()
	l := dingOffice(t)
	whole := l.t
	for _, step := range []struct {
		name string
		do   func(*testing.T, *life)
	}{
		{"by the API, confirmed by reaction and by word", byAPI},
		{"to those who have not read", unreadOf},
		{"by command to people, units and everybody", byCommand},
		{"later", later},
		{"recalled", recalled},
		{"some are passed over", passedOver},
		{"bad commands are answered with the usage", badCommands},
		{"who may DING whom", mayDing},
	} {
		t.Run(step.name, func(t *testing.T) {
			l.t = t
			defer func(t testing.TB) { l.t = t }(whole)
			for _, p := range l.people {
				p.forget()
			}
			step.do(t, l)
		})
	}
	if notices, _ := l.oncePerPerson(); notices < 50 {
		t.Errorf("only %d notices went out in all", notices)
	}
}

func byAPI(t *testing.T, l *life) {
	c, y, h := l.person("D1013"), l.person("D1014"), l.person("D1015")
	in := map[string]any{"uuid": "one", "body": "请马上回电", "receivers": map[string]any{"persons": []string{"D1014", "huangrong"}}}
	first := l.api(c.AccessToken, http.MethodPost, "/dings", in)
	again := l.api(c.AccessToken, http.MethodPost, "/dings", in)
	if first.status != 201 || again.status != 200 || first.body["id"] != again.body["id"] {
		t.Fatalf("%d %v, again %d %v", first.status, first.body, again.status, again.body)
	}
	ding := first.body["id"].(string)
	notice := y.told("陈晨 DING：请马上回电")
	mentions, _ := notice.Content.Raw["m.mentions"].(map[string]any)
	if users, _ := mentions["user_ids"].([]any); len(users) != 1 || users[0] != string(y.UserID) {
		t.Errorf("the notice mentions %v", mentions)
	}
	record := y.hears("the record", func(e *event.Event) bool { return e.Type.Type == dingRecord.Type })
	if rel, _ := notice.Content.Raw["m.relates_to"].(map[string]any); rel["event_id"] != string(record.ID) || record.Content.Raw["ding_id"] != ding || record.RoomID != notice.RoomID {
		t.Errorf("the record %v does not belong to the notice %v", record.Content.Raw, rel)
	}
	y.until("the client highlights", func() bool { return y.unread[notice.RoomID].HighlightCount == 1 })
	if n := c.unread[notice.RoomID].HighlightCount; n != 0 {
		t.Errorf("the sender is highlighted %d times", n)
	}
	c.told("我的 DING：请马上回电", "发给 2 人")

	y.reacts(notice, "👀") // looking is no confirming
	y.reacts(notice, "✅️")
	c.told("已确认 1，未确认 1", "未确认：黄容")
	// The card is edited, not sent anew.
	edit := c.hears("the edited card", func(e *event.Event) bool {
		rel, _ := e.Content.Raw["m.relates_to"].(map[string]any)
		return rel["rel_type"] == "m.replace" && strings.Contains(body(e), "已确认 1")
	})
	if fresh, _ := edit.Content.Raw["m.new_content"].(map[string]any); fresh == nil || fresh["im.carillon.ding.card"] == nil {
		t.Errorf("the edit has no new card: %v", edit.Content.Raw)
	}
	h.says(h.told("请马上回电").RoomID, "收到！")
	c.told("全部确认")
	if state, n := l.figures(c, ding); state != "confirmed" || n["confirmed"] != 2 || n["total"] != 2 {
		t.Errorf("%s %v", state, n)
	}
	via := map[string]string{}
	for _, d := range l.must(c.AccessToken, http.MethodGet, "/dings/"+ding, nil)["deliveries"].([]any) {
		m := d.(map[string]any)
		via[m["person"].(map[string]any)["name"].(string)], _ = m["via"].(string)
	}
	if via["刘洋"] != "reaction" || via["黄容"] != "reply" {
		t.Errorf("confirmed by %v", via)
	}
	confirm := y.hears("the confirmation's record", func(e *event.Event) bool { return e.Type.Type == dingConfirm.Type })
	if confirm.Content.Raw["ding_id"] != ding || confirm.Content.Raw["user_id"] != string(y.UserID) {
		t.Errorf("%v", confirm.Content.Raw)
	}

	// By the API, and by the event that other programs send.
	second := l.dings(c, "再确认一次", map[string]any{"persons": []string{"D1014", "D1015"}})
	y.told("再确认一次")
	l.must(y.AccessToken, http.MethodPost, "/dings/"+second+"/confirm", map[string]any{})
	l.must(y.AccessToken, http.MethodPost, "/dings/"+second+"/confirm", map[string]any{})
	if a := l.api(l.person("D1021").AccessToken, http.MethodPost, "/dings/"+second+"/confirm", map[string]any{}); a.status != 404 {
		t.Errorf("a stranger confirms: %d", a.status)
	}
	room := h.told("再确认一次").RoomID
	if _, err := h.SendMessageEvent(t.Context(), room, dingConfirm, map[string]any{
		"ding_id": second, "user_id": h.UserID, "person_id": "D1015", "confirmed_at": time.Now().UnixMilli(), "via": "event",
	}); err != nil {
		t.Fatal(err)
	}
	l.eventually("both have confirmed", func() bool { state, n := l.figures(c, second); return state == "confirmed" && n["confirmed"] == 2 })
}

func unreadOf(t *testing.T, l *life) {
	head, c, y, h, room := l.person("D1012"), l.person("D1013"), l.person("D1014"), l.person("D1015"), l.unit("rd-app")
	msg := head.says(room, "请填写考勤表")
	c.reads(room, msg, event.ReceiptTypeRead, "")
	l.wantLists(head, room, msg, lists{read: []string{chen}, unread: []string{liu, huang}})
	head.replies(room, msg, "!ding 今天之内")
	for _, p := range []*person{y, h} {
		e := p.told("马骏 DING：今天之内", "matrix.to")
		if !strings.Contains(body(e), string(msg)) {
			t.Errorf("the notice does not lead to the message: %s", body(e))
		}
	}
	head.told("发给 2 人", "3 人中已有 1 人读过消息")
	c.sync(100 * time.Millisecond)
	if slices.ContainsFunc(c.heard, func(e *event.Event) bool { return e.Sender == bot && e.Type == event.EventMessage }) {
		t.Error("who had read the message was DINGed")
	}
	y.replies(y.told("今天之内").RoomID, y.told("今天之内").ID, "ok")
	h.reacts(h.told("今天之内"), "👍🏻")
	head.told("全部确认")
	// Everybody has read: nothing is left to DING.
	for _, p := range []*person{y, h} {
		p.reads(room, msg, event.ReceiptTypeRead, "")
	}
	l.wantLists(head, room, msg, lists{read: []string{chen, liu, huang}})
	head.replies(room, msg, "!ding")
	head.told("都已读过")
}

func byCommand(t *testing.T, l *life) {
	head, c, y, h, room := l.person("D1012"), l.person("D1013"), l.person("D1014"), l.person("D1015"), l.unit("rd-app")
	c.says(room, "!ding @liuyang @黄容 下班前对一下接口")
	y.told("陈晨 DING：下班前对一下接口")
	h.told("陈晨 DING：下班前对一下接口")
	// As clients write it when a name is chosen from a list.
	content := &event.MessageEventContent{
		MsgType: event.MsgText, Body: "!ding 刘洋 看一下邮件", Format: event.FormatHTML,
		FormattedBody: `!ding <a href="https://matrix.to/#/@liuyang:corp.example">刘洋</a> 看一下邮件`,
		Mentions:      &event.Mentions{UserIDs: []id.UserID{y.UserID}},
	}
	if _, err := c.SendMessageEvent(t.Context(), room, event.EventMessage, content); err != nil {
		t.Fatal(err)
	}
	y.told("陈晨 DING：看一下邮件")
	// Two are open: a word alone does not say which.
	y.says(y.told("看一下邮件").RoomID, "收到")
	y.told("条未确认的 DING，请直接回复")
	head.says(room, "!ding unit:应用开发组 全组开会")
	for _, p := range []*person{c, y, h} {
		p.told("马骏 DING：全组开会")
	}
	if _, n := l.figures(head, l.newest(head)); n["total"] != 3 || n["skipped"] != 1 {
		t.Errorf("the unit without the sender: %v", n)
	}
	// A unit is all below it too, and a person of two of them is DINGed once.
	boss := l.person("D2001")
	boss.says(l.unit("sc"), "!ding unit:四川分公司 unit:sc-sales 季度总结")
	l.person("D2016").told("罗建军 DING：季度总结")
	if _, n := l.figures(boss, l.newest(boss)); n["total"] != 15 {
		t.Errorf("the branch: %v", n)
	}
	admin := l.person("D1001")
	admin.says(l.unit("mingyuan"), "!ding 紧急 all 台风红色预警")
	for _, p := range []*person{head, c, y, h, boss} {
		p.told("林海 紧急 DING：台风红色预警")
	}
	l.eventually("everybody has it", func() bool {
		_, n := l.figures(admin, l.newest(admin))
		return n["total"] == 57 && n["went_out"] == 57 && n["failed"] == 0
	})
}

func later(t *testing.T, l *life) {
	c, y, h, room := l.person("D1013"), l.person("D1014"), l.person("D1015"), l.unit("rd-app")
	at := time.Now().Add(1200 * time.Millisecond)
	ding := l.dings(c, "定时提醒", map[string]any{"persons": []string{"D1014"}, "units": []string{"rd-infra"}}, "fire_at", at.UnixMilli())
	c.told("我的 DING：定时提醒", "定时于")
	if state, n := l.figures(c, ding); state != "scheduled" || n["total"] != 0 {
		t.Errorf("before its time: %s %v", state, n)
	}
	e := y.told("陈晨 DING：定时提醒")
	if e.Timestamp < at.UnixMilli()-5 {
		t.Errorf("sent %d ms too early", at.UnixMilli()-e.Timestamp)
	}
	l.person("D1017").told("陈晨 DING：定时提醒")
	if state, n := l.figures(c, ding); state != "open" || n["total"] != 5 {
		t.Errorf("after its time: %s %v", state, n)
	}
	c.says(room, "!ding at 明天 08:00 @黄容 早上好")
	c.told("我的 DING：早上好", "定时于", "08:00")
	tomorrow := l.newest(c)
	card := c.told("我的 DING：早上好")
	c.replies(card.RoomID, card.ID, "!ding recall")
	c.told("已撤回。撤回前已送达 0 人")
	if state, _ := l.figures(c, tomorrow); state != "recalled" {
		t.Errorf("the scheduled one is %s", state)
	}
	h.sync(50 * time.Millisecond)
	if slices.ContainsFunc(h.heard, func(e *event.Event) bool { return e.Sender == bot && strings.Contains(body(e), "早上好") }) {
		t.Error("a DING for tomorrow has come today")
	}
	for _, bad := range []any{time.Now().Add(-time.Hour).UnixMilli(), time.Now().AddDate(2, 0, 0).UnixMilli(), "soon"} {
		if a := l.api(c.AccessToken, http.MethodPost, "/dings", map[string]any{"body": "x", "receivers": map[string]any{"persons": []string{"D1014"}}, "fire_at": bad}); a.status != 400 {
			t.Errorf("fire_at %v: %d", bad, a.status)
		}
	}
}

func recalled(t *testing.T, l *life) {
	c, y, h := l.person("D1013"), l.person("D1014"), l.person("D1015")
	ding := l.dings(c, "发错了", map[string]any{"persons": []string{"D1014", "D1015"}})
	notice := y.told("陈晨 DING：发错了")
	h.told("陈晨 DING：发错了")
	l.eventually("it is out", func() bool { _, n := l.figures(c, ding); return n["went_out"] == 2 })
	y.reacts(notice, "✅")
	l.eventually("one has confirmed", func() bool { _, n := l.figures(c, ding); return n["confirmed"] == 1 })
	if a := l.api(y.AccessToken, http.MethodPost, "/dings/"+ding+"/recall", map[string]any{}); a.status != 403 {
		t.Errorf("a receiver recalls: %d", a.status)
	}
	out := l.must(c.AccessToken, http.MethodPost, "/dings/"+ding+"/recall", map[string]any{})
	if out["state"] != "recalled" || len(out["went_out"].([]any)) != 2 {
		t.Errorf("%v", out)
	}
	for _, p := range []*person{y, h} {
		p.hears("the retraction", func(e *event.Event) bool {
			rel, _ := e.Content.Raw["m.relates_to"].(map[string]any)
			return rel["rel_type"] == "m.replace" && strings.Contains(body(e), "陈晨 撤回了这条 DING")
		})
	}
	c.told("已撤回；撤回前已送达 2 人")
	// Who confirms after that is late, and known.
	h.reacts(h.told("发错了"), "✅")
	l.eventually("the late confirmation is kept", func() bool { state, n := l.figures(c, ding); return state == "recalled" && n["late"] == 1 })
	if again := l.must(c.AccessToken, http.MethodPost, "/dings/"+ding+"/recall", map[string]any{}); again["state"] != "recalled" {
		t.Errorf("recalled again: %v", again)
	}
}

func passedOver(t *testing.T, l *life) {
	l.change(func(imp *org.Import) {
		findPerson(imp, "D1018").Status = org.StatusSuspended
		findPerson(imp, "D1017").Left = "2026-02-01"
		imp.People = append(imp.People, &org.Person{ID: "D9002", Name: "明天来", Hired: "2099-01-01", Posts: []org.Post{{Unit: "rd-infra", Main: true}}})
	})
	defer l.change(func(imp *org.Import) { findPerson(imp, "D1018").Status, findPerson(imp, "D1017").Left = "", "" })
	tang := l.person("D1016")
	a := l.api(tang.AccessToken, http.MethodPost, "/dings", map[string]any{
		"body": "检查备份", "receivers": map[string]any{"units": []string{"rd-infra"}, "persons": []string{"D1017", "D1013", "D9002"}},
	})
	reasons := map[string]any{}
	skipped, _ := a.body["skipped"].([]any)
	for _, s := range skipped {
		m := s.(map[string]any)
		reasons[m["name"].(string)] = m["reason"]
	}
	if want := map[string]any{"唐磊": "self", "韩雪": "left", "冯涛": "suspended", "明天来": "not_active"}; fmt.Sprint(reasons) != fmt.Sprint(want) {
		t.Errorf("%d: passed over are %v, want %v", a.status, reasons, want)
	}
	l.person("D1011").told("唐磊 DING：检查备份") // has a post in the unit
	l.person("D1013").told("唐磊 DING：检查备份")
	tang.told("我的 DING：检查备份", "跳过：", "冯涛（已停用）", "唐磊（本人）", "明天来（未入职）")
	none := l.api(tang.AccessToken, http.MethodPost, "/dings", map[string]any{"body": "喂", "receivers": map[string]any{"persons": []string{"D1016", "D1018"}}})
	if none.status != 400 || none.body["errcode"] != "IM_CARILLON_NO_RECEIVERS" {
		t.Errorf("nobody is left: %d %v", none.status, none.body)
	}
}

func badCommands(t *testing.T, l *life) {
	c, room := l.person("D1013"), l.unit("rd-app")
	sent := len(l.must(c.AccessToken, http.MethodGet, "/dings?limit=100", nil)["dings"].([]any))
	for _, step := range []struct{ say, answer string }{
		{"!ding", "DING 用法"},
		{"!ding help", "DING 用法"},
		{"!ding 大家好", "还缺接收人"},
		{"!ding @刘洋", "还缺 DING 的内容"},
		{"!ding at 25:99 @刘洋 内容", "看不懂时间"},
		{"!ding unit: 内容", "看不懂接收人"},
		{"!ding @没有这个人 内容", "没有找到“没有这个人”"},
		{"!ding unit:没有这个部门 内容", "没有找到部门“没有这个部门”"},
		{"!ding @张伟 内容", "D1026、D2007"},
		{"!ding unit:销售部 内容", "sc-sales、zj-sales"},
		{"！DING all 全员通知", "接收人太多：管辖范围之外最多 10 人"},
		{"!ding recall 没有这条", "找不到这条 DING"},
	} {
		c.forget()
		c.says(room, step.say)
		if e := c.told(step.answer); e.RoomID == room {
			t.Errorf("%s is answered before everybody", step.say)
		}
		if strings.HasPrefix(step.answer, "看不懂") || strings.HasPrefix(step.answer, "还缺") {
			c.told(step.answer, "DING 用法")
		}
	}
	if n := len(l.must(c.AccessToken, http.MethodGet, "/dings?limit=100", nil)["dings"].([]any)); n != sent {
		t.Errorf("bad commands have made %d DINGs", n-sent)
	}
}

func mayDing(t *testing.T, l *life) {
	c, y := l.person("D1013"), l.person("D1014")
	for _, step := range []struct {
		who    *person
		in     map[string]any
		status int
		code   string
	}{
		{c, map[string]any{"body": "全员", "receivers": map[string]any{"everybody": true}}, 403, "M_FORBIDDEN"},
		{c, map[string]any{"body": "紧急", "kind": "emergency", "receivers": map[string]any{"persons": []string{"D1014"}}}, 403, "M_FORBIDDEN"},
		{l.person("D1010"), map[string]any{"body": "我的部门", "receivers": map[string]any{"units": []string{"rd"}}}, 201, ""},
		{l.person("D1010"), map[string]any{"body": "别人的部门", "receivers": map[string]any{"units": []string{"sc"}}}, 403, "M_FORBIDDEN"},
		{l.person("D1001"), map[string]any{"body": "管理员", "receivers": map[string]any{"units": []string{"sc"}}}, 201, ""},
		{l.chief, map[string]any{"body": "不是员工", "receivers": map[string]any{"persons": []string{"D1014"}}}, 403, "M_FORBIDDEN"},
		{c, map[string]any{"body": strings.Repeat("长", 2001), "receivers": map[string]any{"persons": []string{"D1014"}}}, 400, ""},
		{c, map[string]any{"body": "没人", "receivers": map[string]any{}}, 400, ""},
		{c, map[string]any{"body": "多余", "receivers": map[string]any{"persons": []string{"D1014"}}, "surprise": 1}, 400, "M_BAD_JSON"},
		{c, map[string]any{"receivers": map[string]any{"unread_of": map[string]any{"room_id": l.unit("sc"), "event_id": "$x"}}}, 404, "M_NOT_FOUND"},
	} {
		a := l.api(step.who.AccessToken, http.MethodPost, "/dings", step.in)
		if a.status != step.status || step.code != "" && a.body["errcode"] != step.code {
			t.Errorf("%s sends %.60s: %d %v, want %d %s", step.who.UserID, mustJSON(step.in), a.status, a.body["errcode"], step.status, step.code)
		}
	}
	// What a DING shows to whom, when it has arrived.
	ding := l.dings(c, "机密", map[string]any{"persons": []string{"D1014"}})
	l.eventually("it is out", func() bool { _, n := l.figures(c, ding); return n["went_out"] == 1 })
	for _, step := range []struct {
		who    *person
		status int
		all    bool
	}{{c, 200, true}, {l.person("D1001"), 200, true}, {l.chief, 200, true}, {y, 200, false}, {l.person("D1015"), 404, false}, {l.person("D1012"), 404, false}} {
		a := l.api(step.who.AccessToken, http.MethodGet, "/dings/"+ding, nil)
		if a.status != step.status || step.status == 200 && (a.body["deliveries"] != nil) != step.all {
			t.Errorf("%s looks: %d %v", step.who.UserID, a.status, a.body)
		}
	}
	if a := l.must(y.AccessToken, http.MethodGet, "/dings/"+ding, nil); a["mine"] == nil || a["receivers"] != nil {
		t.Errorf("a receiver sees %v", a)
	}
}

// A DING outlives the service and the homeserver, at every stage.
func TestDINGOverRestarts(t *testing.T) {
	t.Parallel()
	l := dingOffice(t)
	c, y, h, tang := l.person("D1013"), l.person("D1014"), l.person("D1015"), l.person("D1016")
	for _, p := range []*person{c, y, h, tang} {
		p.forget()
	}
	three := map[string]any{"persons": []string{"D1014", "D1015", "D1016"}}

	// The service ends right after the answer; what was promised goes out later.
	ding := l.dings(c, "重启之一", three)
	soon := l.dings(c, "重启之定时", three, "fire_at", time.Now().Add(300*time.Millisecond).UnixMilli())
	l.stopAS()
	time.Sleep(350 * time.Millisecond) // its time passes while nobody is there
	l.startAS()
	for _, p := range []*person{y, h, tang} {
		p.told("陈晨 DING：重启之一")
		p.told("陈晨 DING：重启之定时")
	}

	// People confirm while the service is away: the homeserver keeps it.
	l.stopAS()
	y.reacts(y.told("重启之一"), "✅")
	h.replies(h.told("重启之一").RoomID, h.told("重启之一").ID, "收到")
	c.says(l.unit("rd-app"), "!ding @刘洋 离线命令")
	l.startAS()
	y.told("陈晨 DING：离线命令")
	l.eventually("both are counted", func() bool { _, n := l.figures(c, ding); return n["confirmed"] == 2 && n["went_out"] == 3 })
	l.restart(nil)
	l.must(tang.AccessToken, http.MethodPost, "/dings/"+ding+"/confirm", map[string]any{})
	l.restart(nil)
	if state, n := l.figures(c, ding); state != "confirmed" || n["confirmed"] != 3 {
		t.Errorf("after restarts: %s %v", state, n)
	}
	c.told("我的 DING：重启之一", "全部确认")

	// The homeserver is away while the DING is on its way.
	l.stopHS()
	in := map[string]any{"uuid": "away", "body": "主机重启", "receivers": three}
	if _, _, err := createWithout(l, in); err == nil {
		t.Error("the API answers without the homeserver")
	}
	l.startHS()
	l.eventually("the API is back", func() bool { return l.api(c.AccessToken, http.MethodGet, "/dings?limit=1", nil).status == 200 })
	away := l.dings(c, "主机重启", three, "uuid", "away2")
	l.stopHS()
	l.startHS()
	for _, p := range []*person{y, h, tang} {
		p.told("陈晨 DING：主机重启")
	}
	l.eventually("it is out", func() bool { _, n := l.figures(c, away); return n["went_out"] == 3 })
	l.must(c.AccessToken, http.MethodPost, "/dings/"+soon+"/recall", map[string]any{})
	l.restart(nil)
	l.eventually("all three are retracted", func() bool {
		n := 0
		for _, job := range []string{"D1014", "D1015", "D1016"} {
			room, err := l.svc.Rooms().DingRoom(t.Context(), job)
			if err != nil {
				t.Fatal(err)
			}
			n += countTold(l.world, room, "撤回了这条 DING")
		}
		return n == 3
	})
	l.eventually("the confirmations are recorded", func() bool { _, n := l.oncePerPerson(); return n == 3 })
	if notices, _ := l.oncePerPerson(); notices != 3+3+1+3 {
		t.Errorf("%d notices went out", notices)
	}
}

// createWithout sends a DING over the service's own address.
func createWithout(l *life, in map[string]any) (int, map[string]any, error) {
	a, err := call(l.t.Context(), "http://"+l.asAddr, "some token", http.MethodPost, "/_carillon/v1/dings", "application/json", mustJSON(in))
	if err == nil && a.status >= 500 {
		err = fmt.Errorf("%d %v", a.status, a.body)
	}
	return a.status, a.body, err
}
