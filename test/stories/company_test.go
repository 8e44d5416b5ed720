package stories_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/org"
)

// The rooms that some people of the demo company must find; spaces in brackets.
var demoRooms = map[string][]string{
	// a developer: the rooms of the units above take in the people of those below
	"D1013": {"应用开发组", "技术研发部", "总部", "明远科技集团全员群", "[明远科技集团]", "[北京]", "[应用开发组]"},
	// the head of a department
	"D1010": {"技术研发部", "总部", "明远科技集团全员群", "[明远科技集团]", "[北京]", "[技术研发部]"},
	// the general manager, who also stands in for the head that the audit department lacks, and sits on the board
	"D1002": {"总部", "审计监察部", "明远科技集团", "明远科技集团全员群", "[明远科技集团]", "[北京]", "[总部]"},
	// two posts at a branch
	"D2002": {"四川分公司", "综合部", "明远科技集团全员群", "[明远科技集团]", "[成都]", "[四川分公司]", "[综合部]"},
	// a person of a branch with a post in two departments
	"D2016": {"四川分公司", "客户服务部", "销售部", "明远科技集团全员群", "[明远科技集团]", "[成都]", "[客户服务部]", "[销售部]"},
}

// A company comes by file, in both formats: a plan changes nothing, the import gives everybody their rooms, and the
// same file again asks the homeserver nothing.
func TestACompanyComesByFile(t *testing.T) {
	for _, format := range []string{org.FormatXLSX, org.FormatCSV} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			data := file(t, org.DemoCompany(), format)
			plan := w.upload(data, "plan=true&lang=zh")
			text, _ := plan.body["text"].(string)
			if plan.status != 200 || plan.body["applied"] != false || plan.body["job"] != nil || !strings.Contains(text, "陈晨") || !strings.Contains(text, "技术研发部") {
				t.Fatalf("planning: %d %v", plan.status, plan.body)
			}
			if v := w.svc.Org().Tree().Version; v != 0 {
				t.Fatalf("a plan has made version %d", v)
			}
			if asked := w.requests(); len(asked) != 0 {
				t.Fatalf("a plan has asked the homeserver: %v", asked)
			}

			first := w.upload(data, "")
			if first.status != 200 || first.failed != "" || first.operations < 300 {
				t.Fatalf("importing: %d %v %s, %d operations", first.status, first.body, first.failed, first.operations)
			}
			if asked := w.requests(); len(asked) < first.operations {
				t.Errorf("%d operations were made of %d requests", first.operations, len(asked))
			}
			everybodyIsThere(t, w)
			w.requests()
			for range 2 {
				if again := w.upload(data, ""); again.status != 200 || again.operations != 0 || again.failed != "" {
					t.Errorf("the same file again: %d %v, %d operations", again.status, again.body, again.operations)
				}
			}
			if n := w.reconcile("false"); n != 0 {
				t.Errorf("following again makes %d operations", n)
			}
			if asked := w.requests(); len(asked) != 0 {
				t.Errorf("the same file again asks the homeserver: %v", asked)
			}
			if n := w.reconcile("true"); n != 0 {
				t.Errorf("verifying finds %d things to do", n)
			}
		})
	}
}

// everybodyIsThere looks at everybody's rooms with everybody's client.
func everybodyIsThere(t *testing.T, w *world) {
	t.Helper()
	tree := w.svc.Org().Tree()
	staff, _ := w.svc.Rooms().Room("all-staff")
	company, _ := w.svc.Rooms().Room("company")
	for _, p := range tree.People() {
		if p.Status == org.StatusLeft {
			if len(passwords(t, w.dir)[p.ID]) != 0 {
				t.Errorf("%s, who left before, has a password", p.Name)
			}
			continue
		}
		me := w.person(p.ID)
		name, err := me.GetOwnDisplayName(t.Context())
		if err != nil || name.DisplayName != p.Name {
			t.Errorf("%s is called %v: %v", p.Name, name, err)
		}
		mine := me.rooms()
		want := []id.RoomID{staff, company}
		for _, post := range p.Posts {
			want = append(want, w.unit(post.Unit))
		}
		for _, room := range want {
			if !slices.Contains(mine, room) {
				t.Errorf("%s is missing in %s", p.Name, room)
			}
		}
	}
	for job, want := range demoRooms {
		slices.Sort(want)
		if got := w.person(job).names(); !slices.Equal(got, want) {
			t.Errorf("%s is in\n%v, want\n%v", job, got, want)
		}
	}
	// A client finds its way from the company's space to the department's room.
	chen := w.person("D1013")
	var child event.SpaceChildEventContent
	space, _ := w.svc.Rooms().Room("space:rd-app")
	if err := chen.StateEvent(t.Context(), space, event.StateSpaceChild, string(w.unit("rd-app")), &child); err != nil || len(child.Via) == 0 {
		t.Errorf("the unit's room is not in its space: %v %v", child, err)
	}
	alias, err := chen.ResolveAlias(t.Context(), "#carillon_rd-app:"+serverName)
	if err != nil || alias.RoomID != w.unit("rd-app") {
		t.Errorf("the room's alias: %v %v", alias, err)
	}
}

// life is a company whose file changes.
type life struct {
	*world
	imp *org.Import
}

// change writes the next file and imports it.
func (l *life) change(f func(*org.Import)) imported {
	l.t.Helper()
	f(l.imp)
	l.requests()
	return l.company(l.imp)
}

func (l *life) isIn(job, unit string) bool {
	return slices.Contains(l.joined(l.unit(unit)), l.svc.Org().Tree().Person(job).Localpart)
}

// memberEvents are the memberships of a person in a room, with who made them.
func (l *life) memberEvents(room id.RoomID, user id.UserID) (out []string) {
	for _, e := range l.events(room) {
		if e.Type == event.StateMember && e.GetStateKey() == string(user) {
			by := "self"
			if e.Sender != user {
				by = string(e.Sender)
			}
			m, _ := e.Content.Raw["membership"].(string)
			out = append(out, m+" by "+by)
		}
	}
	return out
}

// What happens to people and units over the years.
func TestTheCompanyChanges(t *testing.T) {
	t.Parallel()
	l := &life{newWorld(t), org.DemoCompany()}
	l.company(l.imp)
	whole := l.t
	for _, step := range []struct {
		name string
		do   func(*testing.T, *life)
	}{
		{"somebody new joins by himself", newcomer},
		{"somebody changes the department", transfer},
		{"somebody takes a second post", secondPost},
		{"a unit gets another name", renamed},
		{"a unit gets another head", newHead},
		{"another line manager", lineManager},
		{"a unit is dissolved", dissolved},
		{"somebody leaves and comes back", leavesAndReturns},
		{"somebody is suspended", suspended},
		{"a bad file changes nothing", badFile},
		{"what was undone by hand is mended", mended},
	} {
		t.Run(step.name, func(t *testing.T) {
			l.t = t
			defer func(t testing.TB) { l.t = t }(whole)
			step.do(t, l)
			if n := l.change(func(*org.Import) {}).operations; n != 0 || len(l.requests()) != 0 {
				t.Errorf("the same file again makes %d operations", n)
			}
		})
	}
}

func newcomer(t *testing.T, l *life) {
	before := l.person("D1013").says(l.unit("rd-app"), "先前的消息")
	l.change(func(imp *org.Import) {
		imp.People = append(imp.People, &org.Person{ID: "D9001", Name: "夏天", Hired: "2026-01-05", Manager: "D1012", Posts: []org.Post{{Unit: "rd-app", Title: "实习生", Main: true}}})
	})
	summer := l.person("D9001")
	want := slices.Clone(demoRooms["D1013"])
	slices.Sort(want)
	if got := summer.names(); !slices.Equal(got, want) {
		t.Errorf("the newcomer is in %v, want %v", got, want)
	}
	if got := l.memberEvents(l.unit("rd-app"), summer.UserID); !slices.Equal(got, []string{"join by self"}) {
		t.Errorf("the newcomer came by %v", got)
	}
	l.person("D1013").says(l.unit("rd-app"), "欢迎夏天")
	summer.listens("欢迎夏天")
	if _, err := summer.GetEvent(t.Context(), l.unit("rd-app"), before); code(err) != "M_NOT_FOUND" && code(err) != "M_FORBIDDEN" {
		t.Errorf("the newcomer reads what was said before: %v", err)
	}
}

func transfer(t *testing.T, l *life) {
	liu := l.person("D1014")
	liu.forget()
	l.change(func(imp *org.Import) { findPerson(imp, "D1014").Posts[0].Unit = "rd-infra" })
	if l.isIn("D1014", "rd-app") || !l.isIn("D1014", "rd-infra") || !l.isIn("D1014", "rd") {
		t.Error("who changed the department is not in the rooms of the new one alone")
	}
	old, _ := l.svc.Rooms().Room("space:rd-app")
	if slices.Contains(liu.rooms(), old) {
		t.Error("still in the old department's space")
	}
	if got := l.memberEvents(l.unit("rd-app"), liu.UserID); !slices.Equal(got, []string{"join by self", "leave by self"}) {
		t.Errorf("the old room saw %v", got)
	}
	liu.until("the client drops the old room", func() bool { return liu.out[l.unit("rd-app")] })
	if _, err := liu.SendText(t.Context(), l.unit("rd-app"), "还在吗"); code(err) != "M_FORBIDDEN" {
		t.Errorf("still writing into the old room: %v", err)
	}
	liu.says(l.unit("rd-infra"), "大家好，我是刘洋")
	l.person("D1016").listens("大家好，我是刘洋")
}

func secondPost(t *testing.T, l *life) {
	l.change(func(imp *org.Import) {
		p := findPerson(imp, "D1017")
		p.Posts = append(p.Posts, org.Post{Unit: "sales", Title: "售前支持"})
	})
	if !l.isIn("D1017", "rd-infra") || !l.isIn("D1017", "sales") {
		t.Error("two posts are not two rooms")
	}
	l.change(func(imp *org.Import) { p := findPerson(imp, "D1017"); p.Posts = p.Posts[:1] })
	if !l.isIn("D1017", "rd-infra") || l.isIn("D1017", "sales") {
		t.Error("the end of the second post is not the end of its room")
	}
}

func renamed(t *testing.T, l *life) {
	chen := l.person("D1013")
	chen.forget()
	room := l.unit("rd-app")
	l.change(func(imp *org.Import) { findUnit(imp, "rd-app").Name = "移动应用组" })
	if l.unit("rd-app") != room || chen.name(room) != "移动应用组" {
		t.Errorf("the room %s is called %s", l.unit("rd-app"), chen.name(room))
	}
	space, _ := l.svc.Rooms().Room("space:rd-app")
	if got := chen.name(space); got != "移动应用组" {
		t.Errorf("the space is called %s", got)
	}
	chen.hears("the new name", func(e *event.Event) bool {
		return e.Type == event.StateRoomName && e.RoomID == room && e.Content.Raw["name"] == "移动应用组"
	})
}

// newHead: power over a room goes with the office.
func newHead(t *testing.T, l *life) {
	tang, han, room := l.person("D1016"), l.person("D1017"), l.unit("rd-infra")
	topic := func(p *person) error {
		_, err := p.SendStateEvent(t.Context(), room, event.StateTopic, "", map[string]string{"topic": "值班表"})
		return err
	}
	if err := topic(tang); err != nil {
		t.Errorf("the head may not set the topic: %v", err)
	}
	if err := topic(han); code(err) != "M_FORBIDDEN" {
		t.Errorf("everybody may set the topic: %v", err)
	}
	l.change(func(imp *org.Import) {
		findUnit(imp, "rd-infra").Managers = []string{"D1017"}
		findPerson(imp, "D1016").Posts[0].Leader = org.LeaderNone
		findPerson(imp, "D1017").Posts[0].Leader = org.LeaderMain
	})
	if err := topic(han); err != nil {
		t.Errorf("the new head may not set the topic: %v", err)
	}
	if err := topic(tang); code(err) != "M_FORBIDDEN" {
		t.Errorf("the former head may still set the topic: %v", err)
	}
	staff, _ := l.svc.Rooms().Room("all-staff")
	if _, err := tang.SendText(t.Context(), staff, "通知"); code(err) != "M_FORBIDDEN" {
		t.Errorf("everybody may write to all staff: %v", err)
	}
	han.says(staff, "通知：机房检修")
	tang.listens("通知：机房检修")
}

// lineManager: who sees somebody's mobile number follows the line, and no room changes.
func lineManager(t *testing.T, l *life) {
	sees := func(job string) bool {
		p := l.must(l.person(job).AccessToken, http.MethodGet, "/org/people/D1021", nil)
		return p["mobile"] != nil
	}
	if !sees("D1020") || sees("D1022") {
		t.Error("before: the head of the department sees the number, a colleague does not")
	}
	if n := l.change(func(imp *org.Import) { findPerson(imp, "D1021").Manager = "D1022" }).operations; n != 0 {
		t.Errorf("another line manager makes %d operations", n)
	}
	if !sees("D1022") || !sees("D1020") || sees("D1023") {
		t.Error("after: the new line manager does not see the number")
	}
	p := l.must(l.person("D1021").AccessToken, http.MethodGet, "/org/people/D1021", nil)
	if m, _ := p["manager"].(map[string]any); m["name"] != "任晓东" {
		t.Errorf("the line manager is %v", p["manager"])
	}
}

func dissolved(t *testing.T, l *life) {
	jiang := l.person("D1024")
	room := l.unit("audit")
	told := jiang.says(room, "审计报告已归档")
	company, _ := l.svc.Rooms().Room("company")
	l.change(func(imp *org.Import) {
		imp.Units = slices.DeleteFunc(imp.Units, func(u *org.Unit) bool { return u.ID == "audit" })
		findPerson(imp, "D1024").Posts[0].Unit = "office"
		findPerson(imp, "D1025").Posts[0].Unit = "finance"
	})
	if _, err := jiang.SendText(t.Context(), room, "还能写吗"); code(err) != "M_FORBIDDEN" {
		t.Errorf("the room of a dissolved unit is not read-only: %v", err)
	}
	if e, err := jiang.GetEvent(t.Context(), room, told); err != nil || body(e) != "审计报告已归档" {
		t.Errorf("what was said there cannot be read any more: %v", err)
	}
	for _, e := range l.state(company) {
		if via, _ := e.Content.Raw["via"].([]any); e.Type == event.StateSpaceChild && len(via) > 0 && e.GetStateKey() == string(room) {
			t.Error("the room still stands in the company's space")
		}
	}
	if !l.isIn("D1024", "office") || !l.isIn("D1025", "finance") {
		t.Error("the people are not in their new departments")
	}
	if _, err := l.person("D1002").SendText(t.Context(), room, "还能写吗"); code(err) != "M_FORBIDDEN" {
		t.Errorf("who stood in for the head still writes: %v", err)
	}
}

// state is the current state of a room, as the bot sees it.
func (w *world) state(room id.RoomID) []*event.Event {
	w.t.Helper()
	state, err := w.svc.Client().Bot().StateAsArray(w.t.Context(), room)
	if err != nil {
		w.t.Fatal(err)
	}
	return state
}

func leavesAndReturns(t *testing.T, l *life) {
	huang, chen := l.person("D1015"), l.person("D1013")
	had := huang.names()
	private, err := huang.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{chen.UserID}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chen.JoinRoomByID(t.Context(), private.RoomID); err != nil {
		t.Fatal(err)
	}
	ding, err := l.svc.Rooms().DingRoom(t.Context(), "D1015")
	if err != nil {
		t.Fatal(err)
	}
	l.change(func(imp *org.Import) { findPerson(imp, "D1015").Left = "2026-02-01" })
	if _, err := huang.JoinedRooms(t.Context()); code(err) != "M_USER_LOCKED" {
		t.Errorf("the leaver's client still works: %v", err)
	}
	first := passwords(t, l.dir)["D1015"]
	if _, err := logIn(t, l.url, "huangrong", first[0]); code(err) != "M_USER_LOCKED" {
		t.Errorf("the leaver can log in: %v", err)
	}
	if a := l.api(huang.AccessToken, http.MethodGet, "/org/tree", nil); a.status != http.StatusUnauthorized && a.status != http.StatusForbidden {
		t.Errorf("the leaver still uses the API: %d", a.status)
	}
	if got := l.hs.Rooms().JoinedRooms("@huangrong:" + serverName); len(got) != 0 {
		t.Errorf("the leaver is still in %v", got)
	}
	if got := l.joined(private.RoomID); !slices.Equal(got, []string{"chenchen"}) {
		t.Errorf("in the private room are %v", got)
	}
	l.change(func(imp *org.Import) { findPerson(imp, "D1015").Left = "" })
	back, err := logIn(t, l.url, "huangrong", first[0])
	if err != nil {
		t.Fatalf("who came back cannot log in: %v", err)
	}
	if back.UserID != huang.UserID {
		t.Errorf("%s came back as %s", huang.UserID, back.UserID)
	}
	want := slices.DeleteFunc(had, func(n string) bool { return n == "" })
	for i, n := range want { // the unit has got another name before
		want[i] = strings.ReplaceAll(n, "应用开发组", "移动应用组")
	}
	slices.Sort(want)
	if got := back.names(); !slices.Equal(got, want) {
		t.Errorf("who came back is in %v, was in %v", got, want)
	}
	if _, err := huang.JoinedRooms(t.Context()); err != nil {
		t.Errorf("the client that was locked does not go on: %v", err)
	}
	if again, err := l.svc.Rooms().DingRoom(t.Context(), "D1015"); err != nil || again != ding {
		t.Errorf("the DING room was %s and is %s: %v", ding, again, err)
	}
	if got := passwords(t, l.dir)["D1015"]; len(got) != 1 {
		t.Errorf("who came back has %d first passwords", len(got))
	}
}

func suspended(t *testing.T, l *life) {
	feng := l.person("D1018")
	l.change(func(imp *org.Import) { findPerson(imp, "D1018").Status = org.StatusSuspended })
	if _, err := feng.SendText(t.Context(), l.unit("rd-infra"), "我还能说话吗"); code(err) != "M_USER_SUSPENDED" {
		t.Errorf("the suspended still writes: %v", err)
	}
	if !l.isIn("D1018", "rd-infra") {
		t.Error("the suspended has lost the room")
	}
	l.change(func(imp *org.Import) { findPerson(imp, "D1018").Status = "" })
	feng.says(l.unit("rd-infra"), "我回来了")
}

func badFile(t *testing.T, l *life) {
	version := l.svc.Org().Tree().Version
	people := "工号,姓名,手机,部门,直属上级,入职日期\n" +
		"B1,王小明,13900000001,rd,D1010,2026-01-01\n" + // nothing wrong with this one
		"B2,,13900000002,rd,D1010,2026-01-01\n" +
		"B3,李小红,12345,rd,D1010,2026-01-01\n" +
		"B4,张小刚,13900000004,没有的部门,D1010,2026-01-01\n" +
		"B1,重复的人,13900000005,rd,D1010,2026-01-01\n" +
		"B6,赵小兰,13900000006,rd,D7777,2026-01-01\n" +
		"B7,钱小宝,13900000007,rd,D1010,某年某月\n"
	l.requests()
	bad := l.upload([]byte(people), "name=people.csv&lang=zh")
	if bad.status != http.StatusBadRequest || bad.body["errcode"] != "IM_CARILLON_BAD_FILE" {
		t.Fatalf("%d %v", bad.status, bad.body)
	}
	rows := map[float64]map[string]any{}
	problems, _ := bad.body["problems"].([]any)
	for _, p := range problems {
		m := p.(map[string]any)
		row, _ := m["row"].(float64)
		rows[row] = m
		if m["column"] == "" || m["message_zh"] == "" || m["mend_zh"] == "" || m["message"] == "" || m["mend"] == "" {
			t.Errorf("a problem without its place or mend: %v", m)
		}
	}
	for _, row := range []float64{3, 4, 5, 6, 7, 8} {
		if rows[row] == nil {
			t.Errorf("row %v is not among the problems: %v", row, bad.body["text"])
		}
	}
	if rows[2] != nil {
		t.Errorf("the good row is a problem: %v", rows[2])
	}
	if rows[4]["value"] != "12345" || rows[5]["value"] != "没有的部门" {
		t.Errorf("the problems do not show what is wrong: %v %v", rows[4], rows[5])
	}
	if text, _ := bad.body["text"].(string); !strings.Contains(text, "第 4 行") || !strings.Contains(text, "12345") {
		t.Errorf("the text for people: %s", text)
	}
	if v := l.svc.Org().Tree().Version; v != version || l.svc.Org().Tree().Person("B1") != nil {
		t.Errorf("a bad file has changed the company from version %d to %d", version, v)
	}
	few := "工号,姓名,部门\nD1013,陈晨,rd-app\n"
	if cut := l.upload([]byte(few), "name=people.csv&remove_missing=true"); cut.status != http.StatusConflict || cut.body["errcode"] != "IM_CARILLON_TOO_MANY_LEAVE" {
		t.Errorf("a file that was cut short: %d %v", cut.status, cut.body)
	}
	if garbage := l.upload([]byte("PK\x03\x04 no file at all"), "name=x.xlsx"); garbage.status != http.StatusBadRequest {
		t.Errorf("garbage: %d %v", garbage.status, garbage.body)
	}
	if asked := l.requests(); len(asked) != 0 {
		t.Errorf("bad files ask the homeserver: %v", asked)
	}
}

// mended: verifying brings back who left a room of theirs, and leaves alone whom a moderator has removed.
func mended(t *testing.T, l *life) {
	chen, gao, room := l.person("D1013"), l.person("D1011"), l.unit("rd")
	if _, err := chen.LeaveRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	if _, err := l.person("D1010").KickUser(t.Context(), room, &mautrix.ReqKickUser{UserID: gao.UserID, Reason: "测试"}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.chief.MakeRequest(t.Context(), http.MethodPut, l.chief.BuildClientURL("v1", "admin", "lock", string(l.person("D1023").UserID)), map[string]bool{"locked": false}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := l.svc.Client().SetState(t.Context(), room, "", "m.room.name", "", map[string]string{"name": "被人改了"}); err != nil {
		t.Fatal(err)
	}
	l.eventually("the service has heard of it", func() bool {
		n := 0
		for _, e := range l.events(room) {
			if e.Type == event.StateMember && e.Content.Raw["membership"] == "leave" {
				n++
			}
		}
		return n >= 2
	})
	l.eventually("following alone brings nobody back", func() bool { return l.reconcile("false") == 0 })
	if l.isIn("D1013", "rd") {
		t.Error("who left by himself is back without verifying")
	}
	if n := l.reconcile("true"); n != 2 {
		t.Errorf("verifying made %d operations, not a join and a name", n)
	}
	if !l.isIn("D1013", "rd") {
		t.Error("who left by himself is not back")
	}
	if l.isIn("D1011", "rd") {
		t.Error("whom the head of the department removed is back")
	}
	if got := chen.name(room); got != "技术研发部" {
		t.Errorf("the room is called %s", got)
	}
	if n := l.reconcile("true"); n != 0 {
		t.Errorf("verifying again makes %d operations", n)
	}
}
