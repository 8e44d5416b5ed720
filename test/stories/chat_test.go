package stories_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/org"
)

// lists are the three lists of a message, as people see them: local names, sorted.
type lists struct {
	read, unread, left []string
	off                string // how a list and its count disagree
}

// names reads whole lists, page by page.
func (w *world) listsOf(p *person, room id.RoomID, ev id.EventID) lists {
	w.t.Helper()
	var out lists
	for state, to := range map[string]*[]string{"read": &out.read, "unread": &out.unread, "left": &out.left} {
		*to = []string{}
		total := 0
		for cursor := ""; ; {
			a := w.readersOf(p, room, ev, "limit=2&state="+state+"&cursor="+cursor)
			if a.status != http.StatusOK {
				w.t.Fatalf("%s asks who has read: %d %v", p.UserID, a.status, a.body)
			}
			total = int(a.body["total_"+state].(float64))
			for _, r := range a.body["readers"].([]any) {
				*to = append(*to, id.UserID(r.(map[string]any)["user_id"].(string)).Localpart())
			}
			if cursor, _ = a.body["next_cursor"].(string); cursor == "" {
				break
			}
		}
		slices.Sort(*to)
		if total != len(*to) { // somebody read between two pages, or the list is wrong
			out.off = fmt.Sprintf("the list %s has %d names and says %d", state, len(*to), total)
		}
	}
	return out
}

// wantLists waits until the lists are so. Whoever is in the room and not named must not be in a list.
func (w *world) wantLists(p *person, room id.RoomID, ev id.EventID, want lists) {
	w.t.Helper()
	var got lists
	defer func() {
		if w.t.Failed() {
			w.t.Logf("got  %v\nwant %v", got, want)
		}
	}()
	for _, l := range []*[]string{&want.read, &want.unread, &want.left} {
		*l = slices.Sorted(slices.Values(*l))
	}
	w.eventually("the lists are right", func() bool {
		if a := w.readersOf(p, room, ev, "counts=true"); a.status == http.StatusNotFound {
			return false // the service has not heard of the message yet
		}
		got = w.listsOf(p, room, ev)
		return got.off == "" && slices.Equal(got.read, want.read) && slices.Equal(got.unread, want.unread) && slices.Equal(got.left, want.left)
	})
}

// The developers' room of the demo company: 马骏 is the head, 陈晨, 刘洋 and 黄容 work there.
const ma, chen, liu, huang = "majun", "chenchen", "liuyang", "huangrong"

// Who has read a message and who has not, exactly.
func TestWhoHasRead(t *testing.T) {
	t.Parallel()
	l := &life{newWorld(t), org.DemoCompany()}
	l.company(l.imp)
	room := l.unit("rd-app")
	head, c, y, h := l.person("D1012"), l.person("D1013"), l.person("D1014"), l.person("D1015")
	staff := []string{ma, chen, liu, huang}

	msg := head.says(room, "周五前提交周报")
	for _, p := range []*person{c, y, h} {
		if e := p.listens("周五前提交周报"); e.RoomID != room {
			t.Errorf("heard in %s", e.RoomID)
		}
	}
	l.wantLists(head, room, msg, lists{unread: []string{chen, liu, huang}})

	// A receipt is a time; a private one is nobody's business.
	before := time.Now()
	c.reads(room, msg, event.ReceiptTypeRead, "")
	after := time.Now()
	y.reads(room, msg, event.ReceiptTypeReadPrivate, "")
	l.wantLists(head, room, msg, lists{read: []string{chen}, unread: []string{liu, huang}})
	a := l.readersOf(head, room, msg, "")
	r := a.body["readers"].([]any)[0].(map[string]any)
	at := int64(r["read_at"].(float64))
	if at < before.UnixMilli() || at > after.UnixMilli()+50 {
		t.Errorf("read at %d, was between %d and %d", at, before.UnixMilli(), after.UnixMilli())
	}
	person, _ := r["person"].(map[string]any)
	if person["name"] != "陈晨" || person["id"] != "D1013" || person["unit"] != "应用开发组" || r["implied"] == true {
		t.Errorf("the reader is shown as %v", r)
	}
	c.reads(room, msg, event.ReceiptTypeRead, "")
	time.Sleep(20 * time.Millisecond)
	if again := l.readersOf(head, room, msg, "").body["readers"].([]any)[0].(map[string]any); int64(again["read_at"].(float64)) != at {
		t.Error("reading again has moved the time of the first reading")
	}

	// Who writes has read what stands before.
	h.says(room, "好的")
	l.wantLists(head, room, msg, lists{read: []string{chen, huang}, unread: []string{liu}})
	for _, r := range l.readersOf(head, room, msg, "").body["readers"].([]any) {
		if m := r.(map[string]any); (m["implied"] == true) != strings.Contains(m["user_id"].(string), huang) {
			t.Errorf("implied: %v", m)
		}
	}

	// Newcomers were not there, leavers are gone; both change no figure of before.
	l.change(func(imp *org.Import) {
		imp.People = append(imp.People, &org.Person{ID: "D9001", Name: "夏天", Hired: "2026-01-05", Posts: []org.Post{{Unit: "rd-app", Main: true}}})
		findPerson(imp, "D1014").Posts[0].Unit = "rd-infra"
	})
	l.wantLists(head, room, msg, lists{read: []string{chen, huang}, left: []string{liu}})
	next := head.says(room, "夏天今天入职")
	l.wantLists(head, room, next, lists{unread: []string{chen, huang, "xiatian"}})
	l.person("D9001").reads(room, next, event.ReceiptTypeRead, "main")
	l.wantLists(head, room, next, lists{read: []string{"xiatian"}, unread: []string{chen, huang}})
	l.wantLists(head, room, msg, lists{read: []string{chen, huang}, left: []string{liu}})
	l.change(func(imp *org.Import) { findPerson(imp, "D1014").Posts[0].Unit = "rd-app" })
	l.wantLists(head, room, msg, lists{read: []string{chen, huang}, unread: []string{liu}})
	if got := l.joined(room); !slices.Equal(got, slices.Sorted(slices.Values(append(staff, "xiatian")))) {
		t.Errorf("in the room are %v", got)
	}

	threads(t, l, room)
	changedMessages(t, l, room)

	// The policy may count private receipts too, and a restart loses nothing.
	l.restart(func(o *appservice.Options) { o.PrivateReceipts = true })
	l.wantLists(head, room, next, lists{read: []string{"xiatian", chen, huang}, unread: []string{}})
	last := head.says(room, "新规定")
	y.reads(room, last, event.ReceiptTypeReadPrivate, "")
	l.wantLists(head, room, last, lists{read: []string{liu}, unread: []string{chen, huang, "xiatian"}})
}

// threads: a receipt of a thread is not one of the room, one without a thread is of both.
func threads(t *testing.T, l *life, room id.RoomID) {
	t.Helper()
	head, c, y, h, x := l.person("D1012"), l.person("D1013"), l.person("D1014"), l.person("D1015"), l.person("D9001")
	root := head.says(room, "讨论一下方案")
	in := func(p *person, text string) id.EventID {
		content := &event.MessageEventContent{MsgType: event.MsgText, Body: text, RelatesTo: (&event.RelatesTo{}).SetThread(root, root)}
		r, err := p.SendMessageEvent(t.Context(), room, event.EventMessage, content)
		if err != nil {
			t.Fatal(err)
		}
		return r.EventID
	}
	inside := in(head, "方案一")
	behind := head.says(room, "另外一件事")
	c.reads(room, inside, event.ReceiptTypeRead, string(root))
	y.reads(room, behind, event.ReceiptTypeRead, "main")
	h.reads(room, behind, event.ReceiptTypeRead, "")
	l.wantLists(head, room, inside, lists{read: []string{chen, huang}, unread: []string{liu, "xiatian"}})
	l.wantLists(head, room, behind, lists{read: []string{liu, huang}, unread: []string{chen, "xiatian"}})
	in(x, "我同意方案一") // has read the thread, not the room
	l.wantLists(head, room, inside, lists{read: []string{chen, huang, "xiatian"}, unread: []string{liu}})
	l.wantLists(head, room, behind, lists{read: []string{liu, huang}, unread: []string{chen, "xiatian"}})
}

// changedMessages: an edit is told beside the readers, the list of a redacted message stays as it was.
func changedMessages(t *testing.T, l *life, room id.RoomID) {
	t.Helper()
	head, c, y, h := l.person("D1012"), l.person("D1013"), l.person("D1014"), l.person("D1015")
	msg := head.says(room, "会议改到三点")
	c.reads(room, msg, event.ReceiptTypeRead, "")
	l.wantLists(head, room, msg, lists{read: []string{chen}, unread: []string{liu, huang, "xiatian"}})
	edit := &event.MessageEventContent{MsgType: event.MsgText, Body: "会议改到四点"}
	edit.SetEdit(msg)
	if _, err := head.SendMessageEvent(t.Context(), room, event.EventMessage, edit); err != nil {
		t.Fatal(err)
	}
	after := head.says(room, "请看上面")
	y.reads(room, after, event.ReceiptTypeRead, "")
	l.wantLists(head, room, msg, lists{read: []string{chen, liu}, unread: []string{huang, "xiatian"}})
	early := map[string]bool{}
	for _, r := range l.readersOf(head, room, msg, "").body["readers"].([]any) {
		m := r.(map[string]any)
		early[id.UserID(m["user_id"].(string)).Localpart()] = m["before_edit"] == true
	}
	if !maps.Equal(early, map[string]bool{chen: true, liu: false}) {
		t.Errorf("who had read before the edit: %v", early)
	}
	if _, err := head.RedactEvent(t.Context(), room, msg); err != nil {
		t.Fatal(err)
	}
	l.eventually("the message is known as redacted", func() bool {
		return l.readersOf(l.chief, room, msg, "").body["redacted"] == true
	})
	for _, p := range []*person{c, y, h} {
		p.reads(room, after, event.ReceiptTypeRead, "")
	}
	l.wantLists(l.chief, room, after, lists{read: []string{chen, liu, huang}, unread: []string{"xiatian"}})
	l.wantLists(l.chief, room, msg, lists{read: []string{chen, liu}, unread: []string{huang, "xiatian"}})
	if a := l.readersOf(head, room, msg, ""); a.status != http.StatusForbidden {
		t.Errorf("the sender reads the list of what was redacted: %d", a.status)
	}
}

// Who may ask for a list: the sender, who has power in the room, and administrators; the others of the room get
// figures, people outside nothing at all.
func TestWhoMayAskForReaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	imp := org.DemoCompany()
	w.company(imp)
	room := w.unit("rd-app")
	sender, reader := w.person("D1013"), w.person("D1015")
	msg := sender.says(room, "谁看到了")
	reader.reads(room, msg, event.ReceiptTypeRead, "")
	w.wantLists(sender, room, msg, lists{read: []string{huang}, unread: []string{ma, liu}})
	for _, c := range []struct {
		who           string
		p             *person
		names, counts int
		hidden        bool
	}{
		{"the sender", sender, 200, 200, false},
		{"the head of the unit", w.person("D1012"), 200, 200, false},
		{"an administrator of the company", w.person("D1001"), 200, 200, false},
		{"the administrator of the server", w.chief, 200, 200, false},
		{"a colleague", w.person("D1014"), 403, 200, false},
		{"the reader", reader, 403, 200, false},
		{"the head of the department above, who is not in the room", w.person("D1010"), 404, 404, false},
		{"somebody of another department", w.person("D1021"), 404, 404, false},
	} {
		a := w.readersOf(c.p, room, msg, "")
		if a.status != c.names {
			t.Errorf("%s asks for names: %d %v", c.who, a.status, a.body)
		}
		b := w.readersOf(c.p, room, msg, "counts=true")
		if b.status != c.counts {
			t.Errorf("%s asks for figures: %d %v", c.who, b.status, b.body)
		}
		if b.status == 200 && (b.body["total_read"] != 1.0 || b.body["total_unread"] != 2.0 || len(b.body["readers"].([]any)) != 0) {
			t.Errorf("%s gets the figures %v", c.who, b.body)
		}
	}
	if a := w.readersOf(&person{Client: sender.Client}, room, "$nothing", ""); a.status != 404 {
		t.Errorf("an event that is none: %d", a.status)
	}
	path := "/messages/" + url.PathEscape(string(room)) + "/" + url.PathEscape(string(msg)) + "/readers"
	for token, want := range map[string]int{"": 401, "nonsense": 401} {
		if a := w.api(token, http.MethodGet, path, nil); a.status != want {
			t.Errorf("with the token %q: %d", token, a.status)
		}
	}
	for _, q := range []string{"state=nobody", "limit=0", "limit=many", "cursor=-1", "cursor=x", "counts=perhaps"} {
		if a := w.readersOf(sender, room, msg, q); a.status != 400 {
			t.Errorf("%s: %d", q, a.status)
		}
	}
	// Who has power can lose it.
	findUnit(imp, "rd-app").Managers = []string{"D1014"}
	findPerson(imp, "D1012").Posts[0].Leader = org.LeaderNone
	findPerson(imp, "D1014").Posts[0].Leader = org.LeaderMain
	w.company(imp)
	w.eventually("the new head sees the names and the former does not", func() bool {
		return w.readersOf(w.person("D1014"), room, msg, "").status == 200 && w.readersOf(w.person("D1012"), room, msg, "").status == 403
	})
}

// In any client: an eye on the message, or a reply of !readers; the bot answers the one who asks, alone.
func TestAskingTheBotForReaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.repeat.Store(true)
	w.company(org.DemoCompany())
	room := w.unit("rd-app")
	head, c, y, h := w.person("D1012"), w.person("D1013"), w.person("D1014"), w.person("D1015")
	msg := c.says(room, "午饭吃什么")
	y.reads(room, msg, event.ReceiptTypeRead, "")
	w.wantLists(c, room, msg, lists{read: []string{liu}, unread: []string{ma, huang}})
	for _, p := range []*person{head, c, y, h} {
		p.forget()
	}
	c.reacts(&event.Event{RoomID: room, ID: msg}, "👀")
	told := c.told("已读 (1)：刘洋", "未读 (2)", "马骏", "黄容")
	if told.RoomID == room || told.Content.Raw["msgtype"] != "m.notice" {
		t.Errorf("told in %s as %v", told.RoomID, told.Content.Raw["msgtype"])
	}
	if members, err := c.JoinedMembers(t.Context(), told.RoomID); err != nil || len(members.Joined) != 2 {
		t.Errorf("told before %v: %v", members, err)
	}
	head.replies(room, msg, "!readers")           // the head may ask about others' messages
	head.told("已读 (2)：", "刘洋", "马骏", "未读 (1)：黄容") // by writing, the head has read it himself
	c.replies(room, msg, "> <@x:corp.example> 午饭吃什么\n\n！已读")
	w.eventually("told twice", func() bool { return countTold(w, told.RoomID, "已读 (") == 2 })
	y.replies(room, msg, "!readers")
	y.told("只有消息的发送者")
	y.forget()
	if _, err := y.SendReaction(t.Context(), room, msg, "👀"); err != nil { // an eye on another's message is talk
		t.Fatal(err)
	}
	c.replies(room, msg, "!lang en")
	c.told("From now on in English")
	c.replies(room, msg, "!readers")
	c.told("Read (2): ", "Unread (1): 黄容")
	if n := countTold(w, told.RoomID, "已读 ("); n != 2 {
		t.Errorf("transactions that come again are answered again: %d", n)
	}
	y.sync(200 * time.Millisecond)
	for _, p := range []*person{head, c, y, h} {
		for _, e := range p.heard {
			if e.Sender == bot && e.RoomID == room {
				t.Errorf("the bot speaks before everybody: %s", body(e))
			}
			if p == y && e.Sender == bot && e.Type == event.EventMessage {
				t.Errorf("an eye on another's message is answered: %s", body(e))
			}
		}
	}
}

// countTold counts the bot's messages with some words in a room.
func countTold(w *world, room id.RoomID, words ...string) (n int) {
	for _, e := range w.events(room) {
		if e.Sender == bot && e.Type == event.EventMessage && containsAll(body(e), words) {
			n++
		}
	}
	return n
}
