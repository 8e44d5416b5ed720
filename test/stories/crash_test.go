package stories_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// employee is somebody of the made-up company, as the API shows them.
type employee struct {
	ID    string    `json:"id"`
	Name  string    `json:"name"`
	User  id.UserID `json:"user_id"`
	Admin bool      `json:"admin"`
	Posts []struct {
		Unit string `json:"unit"`
	} `json:"posts"`
}

// crash is a company of some hundred people on a machine that loses its power.
type crash struct {
	*site
	mx    *mxclient.Client
	staff []employee
	first map[string][]string // passwords
}

const crashPeople = 300

// The program is killed in the middle of an import, of messages, receipts and commands, and of a DING. After the next
// start nothing that was promised is lost and nothing is there twice.
func TestThePowerGoesOut(t *testing.T) {
	t.Parallel()
	c := &crash{site: newSite(t, "  ding: {per_minute: 100}\n")}
	whole := c.t
	for _, step := range []struct {
		name string
		do   func(*testing.T, *crash)
	}{
		{"while a company is imported", killedWhileImporting},
		{"while people write and read", killedWhileWriting},
		{"while a DING goes out and is confirmed", killedWhileDinging},
		{"or the program is asked to end while clients wait", stoppedWhileWaiting},
	} {
		if !t.Run(step.name, func(t *testing.T) { c.t = t; step.do(t, c); c.t = whole }) {
			return
		}
	}
}

func killedWhileImporting(t *testing.T, c *crash) {
	data := filepath.Join(c.dir, "company.xlsx")
	c.must("org", "generate", "--people", strconv.Itoa(crashPeople), "--units", "30", "--sites", "3", "--seed", "7", "--format", "xlsx", "-o", data)
	c.start()
	c.mx = c.service()
	c.must("org", "import", "--no-wait", data)
	var stages []int
	for len(stages) < 5 || stages[len(stages)-1] == 0 && len(stages) < 20 {
		// A moment later than the last time, or sooner when the machine is quick.
		time.Sleep(time.Duration(60+60*len(stages)) * time.Millisecond)
		c.kill()
		c.start()
		rooms, err := c.mx.JoinedRooms(t.Context(), "")
		if err != nil && !mxclient.IsPermanent(err) {
			t.Fatal(err)
		}
		n := 0
		for _, room := range rooms {
			members, err := c.mx.JoinedMembers(t.Context(), "", room)
			if err != nil {
				t.Fatal(err)
			}
			n += len(members)
		}
		stages = append(stages, n)
	}
	c.must("org", "reconcile")
	for _, args := range [][]string{{"org", "reconcile"}, {"org", "reconcile", "--verify"}, {"org", "import", data}} {
		if out := c.must(args...); !strings.HasPrefix(out, "0 operations") && !strings.Contains(out, "\n0 operations") {
			t.Errorf("afterwards carillon %v says\n%s", args, out)
		}
	}
	c.people()
	c.accounts(t)
	total := c.roomsOnce(t)
	t.Logf("killed at %v of %d memberships", stages, total)
	if stages[0] == total || !slices.ContainsFunc(stages, func(n int) bool { return n > 0 && n < total }) {
		t.Errorf("it was never killed in the middle: %v of %d memberships", stages, total)
	}
}

// people reads who works in the company.
func (c *crash) people() {
	c.t.Helper()
	reg := c.asToken()
	for cursor := ""; ; {
		page := c.get(reg, "/org/people?limit=500&cursor="+url.QueryEscape(cursor))
		var list []employee
		if err := json.Unmarshal(mustJSON(page["people"]), &list); err != nil {
			c.t.Fatal(err)
		}
		c.staff = append(c.staff, list...)
		if cursor, _ = page["next_cursor"].(string); cursor == "" {
			break
		}
	}
	if len(c.staff) != crashPeople {
		c.t.Fatalf("the company has %d people", len(c.staff))
	}
}

// accounts: one account and one first password a person, which opens it.
func (c *crash) accounts(t *testing.T) {
	t.Helper()
	var list struct {
		Users []struct {
			ID string `json:"user_id"`
		} `json:"users"`
	}
	if err := json.Unmarshal([]byte(c.must("user", "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Users) != crashPeople+1 {
		t.Errorf("there are %d accounts of %d people and the bot", len(list.Users), crashPeople)
	}
	c.first = passwords(t, filepath.Join(c.dir, "first-passwords"))
	if len(c.first) != crashPeople {
		t.Errorf("%d people have a first password", len(c.first))
	}
	parallel(c.staff, 16, func(e employee) {
		if n := len(c.first[e.ID]); n != 1 {
			t.Errorf("%s has %d first passwords", e.Name, n)
			return
		}
		if _, err := logIn(t, c.url, string(e.User), c.first[e.ID][0]); err != nil {
			t.Errorf("%s cannot log in with the first password: %v", e.Name, err)
		}
	})
}

// roomsOnce: every room of the company is there once, and nobody joined one twice. It returns how many memberships
// there are.
func (c *crash) roomsOnce(t *testing.T) (memberships int) {
	t.Helper()
	rooms, err := c.mx.JoinedRooms(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, room := range rooms {
		joins := map[string]int{}
		for _, e := range roomEvents(t, c.mx.Bot(), room) {
			switch e.Type {
			case event.StateCreate:
				key, _ := e.Content.Raw["im.carillon.room"].(map[string]any)
				name, _ := key["key"].(string)
				if keys[name] {
					t.Errorf("the room %s is there twice", name)
				}
				keys[name] = true
			case event.StateMember:
				if e.Content.Raw["membership"] != "join" {
					t.Errorf("in %s, %s is %v", room, e.GetStateKey(), e.Content.Raw["membership"])
				}
				joins[e.GetStateKey()]++
			}
		}
		for user, n := range joins {
			if n != 1 {
				t.Errorf("%s joined %s %d times", user, room, n)
			}
		}
		memberships += len(joins)
	}
	if !keys["company"] || !keys["all-staff"] || keys[""] || len(keys) < 2*30 {
		t.Errorf("there are %d rooms: %v", len(keys), keys)
	}
	return memberships
}

func parallel[T any](list []T, at int, do func(T)) {
	next := make(chan T)
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			for x := range next {
				do(x)
			}
		})
	}
	for _, x := range list {
		next <- x
	}
	close(next)
	wg.Wait()
}

func (c *crash) asToken() string { return c.mx.Bot().AccessToken }

// enter logs an employee in.
func (c *crash) enter(e employee) *person {
	c.t.Helper()
	p, err := logIn(c.t, c.url, string(e.User), c.first[e.ID][0])
	if err != nil {
		c.t.Fatal(err)
	}
	p.t = func() testing.TB { return c.t }
	p.forget()
	return p
}

// largest is the room of the unit in which most people have their main post, and these.
func (c *crash) largest() (room id.RoomID, unit string, members []employee) {
	c.t.Helper()
	units := map[string][]employee{}
	for _, e := range c.staff {
		units[e.Posts[0].Unit] = append(units[e.Posts[0].Unit], e)
	}
	for u, list := range units {
		if len(list) > len(members) || len(list) == len(members) && u < unit {
			unit, members = u, list
		}
	}
	r, _ := c.get(c.asToken(), "/org/units/"+url.PathEscape(unit))["room_id"].(string)
	return id.RoomID(r), unit, members
}

// writer sends messages one after another, and repeats what was not acknowledged.
type writer struct {
	*person
	next  int
	acked map[string]id.EventID
}

func (w *writer) send(ctx context.Context, room id.RoomID) error {
	text := fmt.Sprintf("%s says %d", w.UserID.Localpart(), w.next)
	r, err := w.SendMessageEvent(ctx, room, event.EventMessage, &event.MessageEventContent{MsgType: event.MsgText, Body: text},
		mautrix.ReqSendEvent{TransactionID: "t" + strconv.Itoa(w.next)})
	if err != nil {
		return err
	}
	w.acked[text] = r.EventID
	w.next++
	return nil
}

func killedWhileWriting(t *testing.T, c *crash) {
	room, _, members := c.largest()
	if len(members) < 5 {
		t.Fatalf("the largest unit has %d people", len(members))
	}
	reader := c.enter(members[0])
	var writers []*writer
	for _, e := range members[1:5] {
		writers = append(writers, &writer{person: c.enter(e), acked: map[string]id.EventID{}})
	}
	var seen id.EventID // the last receipt that was acknowledged
	for range 3 {
		var wg sync.WaitGroup
		var sent atomic.Int64
		last := make(chan id.EventID, 1)
		for i, w := range writers {
			wg.Go(func() {
				for w.send(t.Context(), room) == nil {
					sent.Add(1)
					if i == 0 {
						select {
						case last <- w.acked[fmt.Sprintf("%s says %d", w.UserID.Localpart(), w.next-1)]:
						default:
						}
					}
				}
			})
		}
		wg.Go(func() {
			for ev := range last {
				if reader.SendReceipt(t.Context(), room, ev, event.ReceiptTypeRead, nil) != nil {
					return
				}
				seen = ev
			}
		})
		for deadline := time.Now().Add(patience); sent.Load() < 100 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		c.kill()
		close(last)
		wg.Wait()
		c.start()
		for _, w := range writers {
			if err := w.send(t.Context(), room); err != nil {
				t.Fatalf("%s repeats: %v", w.UserID, err)
			}
		}
	}
	c.sentOnce(t, room, writers)
	c.readersExact(t, room, members, writers, reader, seen)
}

// sentOnce: what was acknowledged is there, under its ID, once; and nothing else is.
func (c *crash) sentOnce(t *testing.T, room id.RoomID, writers []*writer) {
	t.Helper()
	found := map[string]id.EventID{}
	for _, e := range roomEvents(t, c.mx.Bot(), room) {
		if e.Type != event.EventMessage {
			continue
		}
		if _, twice := found[body(e)]; twice {
			t.Errorf("%q is there twice", body(e))
		}
		found[body(e)] = e.ID
	}
	total := 0
	for _, w := range writers {
		for text, ev := range w.acked {
			if found[text] != ev {
				t.Errorf("%q was acknowledged as %s and is %q", text, ev, found[text])
			}
		}
		total += len(w.acked)
	}
	if len(found) != total || total < 300 {
		t.Errorf("%d messages were acknowledged, %d are there", total, len(found))
	}
}

// readersExact: the read list knows the messages, who wrote them and the last receipt.
func (c *crash) readersExact(t *testing.T, room id.RoomID, members []employee, writers []*writer, reader *person, seen id.EventID) {
	t.Helper()
	joined, err := c.mx.JoinedMembers(t.Context(), "", room)
	if err != nil {
		t.Fatal(err)
	}
	audience := len(joined) - 2 // without the sender and the bot
	w := writers[0]
	ask := func(ev id.EventID) map[string]any {
		a, err := call(t.Context(), c.url, w.AccessToken, http.MethodGet,
			"/_carillon/v1/messages/"+url.PathEscape(string(room))+"/"+url.PathEscape(string(ev))+"/readers?limit=500", "", nil)
		if err != nil || a.status != 200 {
			return nil
		}
		return a.body
	}
	eventually(t, "the service has caught up", func() bool {
		a := ask(seen)
		if a == nil {
			return false
		}
		var read []string
		for _, r := range a["readers"].([]any) {
			read = append(read, r.(map[string]any)["user_id"].(string))
		}
		// all who wrote later, and the one who read
		return len(read) == len(writers) && slices.Contains(read, string(reader.UserID)) && a["total_unread"] == float64(audience-len(read))
	})
	for text, ev := range w.acked {
		if a := ask(ev); a == nil || a["total_read"].(float64)+a["total_unread"].(float64) != float64(audience) {
			t.Errorf("the readers of %q: %v", text, a)
		}
	}
}

// stoppedWhileWaiting: SIGTERM sends fifty waiting clients home and ends in time; they go on where they were.
func stoppedWhileWaiting(t *testing.T, c *crash) {
	const clients = 50
	people := make([]*person, 0, clients)
	for _, e := range c.staff {
		if !e.Admin && len(people) < clients { // the administrator's card may still change
			people = append(people, c.enter(e))
		}
	}
	type home struct {
		p     *person
		since string
		err   error
	}
	waiting := make(chan home, clients)
	for _, p := range people {
		go func() {
			r, err := p.FullSyncRequest(t.Context(), mautrix.ReqSync{Timeout: 60_000, Since: p.since, FilterID: filter, SetPresence: event.PresenceOffline})
			h := home{p: p, err: err}
			if err == nil {
				h.since = r.NextBatch
			}
			waiting <- h
		}()
	}
	time.Sleep(500 * time.Millisecond)
	if n := len(waiting); n > 0 {
		t.Fatalf("%d clients do not wait", n)
	}
	if code, took := c.stop(); code != 0 || took > 10*time.Second {
		t.Errorf("exit code %d after %s\n%s", code, took, c.out)
	} else {
		t.Logf("%d clients were sent home and the program ended in %s", clients, took.Round(time.Millisecond))
	}
	var homes []home
	for range clients {
		h := <-waiting
		if h.err != nil {
			t.Errorf("%s was cut off: %v", h.p.UserID, h.err)
		}
		homes = append(homes, h)
	}
	if _, err := http.Get(c.url + "/_matrix/client/versions"); err == nil {
		t.Error("something still answers")
	}
	c.start()
	for _, h := range homes {
		if h.err == nil {
			h.p.since = h.since
			h.p.sync(0)
		}
	}
	if code, took := c.stop(); code != 0 || took > 10*time.Second {
		t.Errorf("exit code %d after %s", code, took)
	}
}
