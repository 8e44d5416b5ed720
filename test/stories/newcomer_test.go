package stories_test

import (
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/test/freeport"
	"github.com/carillon-chat/carillon/test/program"
)

// welcomed are the log-ins that the demo prints, by name.
func (s *site) welcomed() map[string]string {
	s.t.Helper()
	found := map[string]string{}
	line := regexp.MustCompile(`(?m)^    ([a-z]+) +([A-Z2-7]{4}(?:-[A-Z2-7]{4}){3}) +\S+ \(`)
	eventually(s.t, "the demo greets", func() bool {
		text := s.out.String()
		if !strings.Contains(text, "Ctrl-C") {
			return false
		}
		for _, m := range line.FindAllStringSubmatch(text, -1) {
			found[m[1]] = m[2]
		}
		return true
	})
	if len(found) != 3 || !strings.Contains(s.out.String(), s.url) {
		s.t.Fatalf("the demo greets with\n%s", s.out)
	}
	return found
}

// What the README promises: the demo starts with one command, two people of it chat, see who has read and confirm a
// DING; the next start finds it all again.
func TestANewcomerTriesTheDemo(t *testing.T) {
	t.Parallel()
	addr := freeport.Address(t)
	dir := filepath.Join(t.TempDir(), "data")
	s := &site{t: t, whole: t, dir: dir, config: filepath.Join(dir, "carillon.yaml"), url: strings.Replace("http://"+addr, "127.0.0.1", "localhost", 1), bin: program.Path(t)}
	s.args = []string{"serve", "--demo", "--data", dir, "--listen", addr}
	began := time.Now()
	s.start()
	log := s.welcomed()
	t.Logf("from nothing to the greeting in %s", time.Since(began).Round(time.Millisecond))
	room, msg, c, z := tour(t, s, log)

	if code, took := s.stop(); code != 0 || took > 10*time.Second {
		t.Errorf("exit code %d after %s\n%s", code, took, s.out)
	}
	s.args = []string{"serve", "--demo", "--data", dir}
	s.start()
	again := s.welcomed()
	for name, password := range log {
		if again[name] != password {
			t.Errorf("the second start gives %s the password %q, not %q", name, again[name], password)
		}
	}
	c.says(room, "我还在")
	z.listens("我还在")
	if e, err := z.GetEvent(t.Context(), room, msg); err != nil || body(e) != "大家好" {
		t.Errorf("the first message: %v", err)
	}
	readers := "/messages/" + url.PathEscape(string(room)) + "/" + url.PathEscape(string(msg)) + "/readers"
	if n := s.get(z.AccessToken, readers+"?state=read")["total_read"]; n != 1.0 {
		t.Errorf("after the restart %v have read", n)
	}
	if fresh, err := logIn(t, s.url, "linhai", again["linhai"]); err != nil || fresh.UserID != id.UserID("@linhai:localhost") {
		t.Errorf("logging in again: %v", err)
	}
	if code, _ := s.stop(); code != 0 {
		t.Errorf("exit code %d\n%s", code, s.out)
	}
}

// tour is what the README proposes to try, and gives the room and the message of it.
func tour(t *testing.T, s *site, log map[string]string) (room id.RoomID, msg id.EventID, c, z *person) {
	t.Helper()
	people := map[string]*person{}
	for _, name := range []string{"chenchen", "zhoumin", "linhai"} {
		p, err := logIn(t, s.url, name, log[name])
		if err != nil {
			t.Fatalf("%s cannot log in with %q: %v", name, log[name], err)
		}
		people[name] = p
		p.forget()
	}
	c, z = people["chenchen"], people["zhoumin"]
	alias, err := z.ResolveAlias(t.Context(), "#carillon_rd:localhost")
	if err != nil {
		t.Fatal(err)
	}
	room = alias.RoomID
	if got := z.name(room); got != "技术研发部" {
		t.Errorf("the department's room is called %s", got)
	}

	// 1. and 2.: a message, and who has read it
	msg = z.says(room, "大家好")
	c.listens("大家好")
	c.reads(room, msg, event.ReceiptTypeRead, "")
	readers := "/messages/" + url.PathEscape(string(room)) + "/" + url.PathEscape(string(msg)) + "/readers"
	eventually(t, "the reader is known", func() bool {
		a, err := call(t.Context(), s.url, z.AccessToken, "GET", "/_carillon/v1"+readers+"?state=read", "", nil)
		return err == nil && a.status == 200 && a.body["total_read"] == 1.0
	})
	z.reacts(&event.Event{RoomID: room, ID: msg}, "👀")
	z.told("已读 (1)：陈晨", "未读")
	z.forget()
	z.replies(room, msg, "!readers")
	z.told("已读 (1)：陈晨", "未读")

	// 3.: a DING to those who have not read it
	z.replies(room, msg, "!ding")
	z.told("我的 DING", "已有 1 人读过消息")

	// 4.: a DING to one, confirmed
	z.says(room, "!ding @chenchen:localhost Please call me")
	notice := c.told("周敏 DING：Please call me")
	c.reacts(notice, "✅")
	z.told("我的 DING：Please call me", "全部确认")
	z.says(room, "!ding help")
	z.told("DING 用法")
	if got := s.must("org", "tree"); !strings.Contains(got, "技术研发部") || !strings.Contains(got, "周敏") {
		t.Errorf("org tree prints\n%s", got)
	}
	return room, msg, c, z
}
