// Package sites_test tells what happens in a company of several sites: each has a homeserver and an enterprise service
// of its own, the homeservers federate over real TLS, and the head office imports the company. The stories run on SQLite
// and, with CARILLON_TEST_POSTGRES, on PostgreSQL.
package sites_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/test/branch"
)

func TestMain(m *testing.M) {
	if os.Getenv("CARILLON_TEST_LOG") == "" {
		log.SetOutput(io.Discard)
	}
	os.Exit(m.Run())
}

// patience is how long something is waited for that others do in the background.
const patience = 60 * time.Second

// company is several sites.
type company struct {
	t     *testing.T
	sites []*site
	grace time.Duration
}

// site is a homeserver and a service.
type site struct {
	*branch.Branch
	c      *company
	tokens map[string]string
}

// newCompany starts sites; the first is the head office.
func newCompany(t *testing.T, names ...string) *company {
	t.Helper()
	c := &company{t: t, grace: time.Second}
	for _, b := range branch.Open(t, names...) {
		c.sites = append(c.sites, &site{Branch: b, c: c, tokens: map[string]string{}})
	}
	return c
}

// start starts the services of all sites, of which the last ones may be missing as yet.
func (c *company) start(n int) {
	c.t.Helper()
	for _, s := range c.sites[:n] {
		s.End()
		s.start(n)
	}
}

// start starts the service of a company of n sites.
func (s *site) start(n int) {
	s.T.Helper()
	var list []sites.Site
	for i, o := range s.c.sites[:n] {
		list = append(list, sites.Site{Name: o.Name, ServerName: string(o.HS.Name), Head: i == 0})
	}
	opts := appservice.Options{Language: "en", Company: "集团", SiteGrace: s.c.grace}
	if n > 1 {
		opts.Sites = sites.Options{Own: s.Name, List: list, Beat: 300 * time.Millisecond, Retry: 300 * time.Millisecond}
	}
	s.Start(opts, nil)
}

// cut cuts the link between two sites, heal mends it.
func (c *company) cut() {
	for _, s := range c.sites {
		s.HS.Cut()
	}
}

func (c *company) heal() {
	for _, s := range c.sites {
		s.HS.Heal()
	}
}

// imports imports the company at the head office.
func (c *company) imports(imp *org.Import) {
	c.t.Helper()
	_, err := c.sites[0].Service().Import(c.t.Context(), imp, appservice.ImportOptions{Actor: "test", RemoveMissing: true, Force: true})
	if err != nil {
		c.t.Fatal("importing:", err)
	}
}

// eventually waits for what the background brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	pause := 5 * time.Millisecond
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(pause) {
		pause = min(2*pause, 100*time.Millisecond)
		if time.Now().After(deadline) {
			t.Fatal("it did not come about: " + what)
		}
	}
}

// of is the site of a person's account.
func (c *company) of(person string) *site {
	c.t.Helper()
	p := c.sites[0].Service().Org().Tree().Person(person)
	if p == nil {
		c.t.Fatalf("nobody is called %s", person)
	}
	for _, s := range c.sites {
		if s.Name == p.Site {
			return s
		}
	}
	return c.sites[0]
}

// user is a person's account.
func (c *company) user(person string) id.UserID {
	c.t.Helper()
	s := c.of(person)
	return id.NewUserID(c.sites[0].Service().Org().Tree().Person(person).Localpart, string(s.HS.Name))
}

// joined are the people in a room as a site's homeserver sees it, sorted, without the bots.
func (s *site) joined(key string) []string {
	svc := s.Service()
	room, ok := svc.Rooms().Room(key)
	if !ok {
		return nil
	}
	var out []string
	for _, u := range s.HS.Rooms().JoinedMembers(matrix.RoomID(room)) {
		if p := svc.Sites().PersonOf(svc.Org().Tree(), id.UserID(u)); p != nil {
			out = append(out, p.ID)
		}
	}
	slices.Sort(out)
	return out
}

// members waits until a room has these people, as every one of the sites sees it.
func (c *company) members(key string, at []*site, people ...string) {
	c.t.Helper()
	slices.Sort(people)
	for _, s := range at {
		var got []string
		defer func() {
			if c.t.Failed() {
				c.t.Logf("%s at %s: %v", key, s.Name, got)
			}
		}()
		eventually(c.t, fmt.Sprintf("%s has %v at %s", key, people, s.Name), func() bool {
			got = s.joined(key)
			return slices.Equal(got, people)
		})
	}
}

// run makes the rooms of a site follow the tree again and says how much that was.
func (s *site) run(verify bool) int {
	s.T.Helper()
	j := s.Service().Reconcile(verify)
	select {
	case <-j.Done():
	case <-time.After(patience):
		s.T.Fatal("the run does not end")
	}
	st := j.Status()
	if st.Error != "" {
		s.T.Errorf("a run at %s: %s", s.Name, st.Error)
	}
	return st.Report.Operations
}

// quiet asserts that nothing is left to do at any site.
func (c *company) quiet() {
	c.t.Helper()
	for _, s := range c.sites {
		if s.Service() == nil {
			continue
		}
		eventually(c.t, "nothing is left to do at "+s.Name, func() bool { return s.run(false) == 0 })
		if n := s.run(false); n != 0 {
			c.t.Errorf("%s: a second run did %d operations", s.Name, n)
		}
	}
}

// api calls /_carillon/v1 as a person, at that person's site.
func (c *company) api(person, method, path string, in any) (int, gjson.Result) {
	c.t.Helper()
	s := c.of(person)
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			c.t.Fatal(err)
		}
		body = strings.NewReader(string(b))
	}
	r := httptest.NewRequest(method, "/_carillon/v1"+path, body)
	r.Header.Set("Authorization", "Bearer "+c.token(person))
	w := httptest.NewRecorder()
	s.Service().Handler().ServeHTTP(w, r)
	return w.Code, gjson.ParseBytes(w.Body.Bytes())
}

func (c *company) must(person, method, path string, in any) gjson.Result {
	c.t.Helper()
	code, out := c.api(person, method, path, in)
	if code/100 != 2 {
		c.t.Fatalf("%s %s as %s: %d %s", method, path, person, code, out.Raw)
	}
	return out
}

// token logs a person in.
func (c *company) token(person string) string {
	c.t.Helper()
	s := c.of(person)
	if t := s.tokens[person]; t != "" {
		return t
	}
	a := s.HS.Do(s.Reg.ASToken, "POST", hstest.Path("login"), map[string]any{
		"type": "m.login.application_service", "identifier": map[string]string{"type": "m.id.user", "user": string(c.user(person))},
	})
	if a.Status != http.StatusOK {
		c.t.Fatalf("logging %s in: %d %s", person, a.Status, a.Body)
	}
	s.tokens[person] = a.Get("access_token").Str
	return s.tokens[person]
}

var serial struct {
	sync.Mutex
	n int
}

// send sends an event as a person.
func (c *company) send(person string, room id.RoomID, typ string, content any) id.EventID {
	c.t.Helper()
	serial.Lock()
	serial.n++
	txn := fmt.Sprint("t", serial.n)
	serial.Unlock()
	ev, err := c.of(person).Service().Client().SendEvent(c.t.Context(), room, c.user(person), typ, content, txn)
	if err != nil {
		c.t.Fatalf("%s sends: %v", person, err)
	}
	return ev
}

func (c *company) say(person string, room id.RoomID, text string) id.EventID {
	c.t.Helper()
	return c.send(person, room, "m.room.message", map[string]string{"msgtype": "m.text", "body": text})
}

// reads sends a person's receipt.
func (c *company) reads(person string, room id.RoomID, ev id.EventID) {
	c.t.Helper()
	s := c.of(person)
	eventually(c.t, person+" has the message", func() bool {
		a := s.HS.Do(c.token(person), "GET", hstest.Path("rooms", string(room), "event", string(ev)), nil)
		return a.Status == http.StatusOK
	})
	a := s.HS.Do(c.token(person), "POST", hstest.Path("rooms", string(room), "receipt", "m.read", string(ev)), map[string]any{})
	if a.Status != http.StatusOK {
		c.t.Fatalf("%s reads: %d %s", person, a.Status, a.Body)
	}
}

// room is the room of a key at a site, once it is there.
func (s *site) room(key string) (room id.RoomID) {
	s.T.Helper()
	eventually(s.T, s.Name+" knows "+key, func() (ok bool) {
		room, ok = s.Service().Rooms().Room(key)
		return ok
	})
	return room
}

// said are the messages of the bot in a person's DING room.
func (c *company) said(person string) (out []gjson.Result) {
	c.t.Helper()
	s := c.of(person)
	room, err := s.Service().Rooms().DingRoom(c.t.Context(), person)
	if err != nil {
		c.t.Fatal(err)
	}
	a := s.HS.Do(s.Reg.ASToken, "GET", hstest.Path("rooms", string(room), "messages")+"?dir=b&limit=100", nil)
	for _, ev := range a.Get("chunk").Array() {
		if ev.Get("type").Str == "m.room.message" && ev.Get("sender").Str == string(s.Service().Client().BotID()) {
			out = append(out, ev)
		}
	}
	slices.Reverse(out)
	return out
}

// dings are the messages of one DING in a person's room, without edits; retracted counts the edits that took it back.
func (c *company) dings(person, ding string) (events []id.EventID, retracted int) {
	c.t.Helper()
	for _, ev := range c.said(person) {
		if ev.Get("content.im\\.carillon\\.ding.ding_id").Str != ding {
			continue
		}
		if ev.Get("content.m\\.relates_to.rel_type").Str == "m.replace" {
			retracted++
			continue
		}
		events = append(events, id.EventID(ev.Get("event_id").Str))
	}
	return events, retracted
}

// confirms waits for a DING in a person's room and confirms it by a reaction.
func (c *company) confirms(person, ding string) {
	c.t.Helper()
	var events []id.EventID
	eventually(c.t, person+" gets the DING", func() bool { events, _ = c.dings(person, ding); return len(events) > 0 })
	room, err := c.of(person).Service().Rooms().DingRoom(c.t.Context(), person)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(person, room, "m.reaction", map[string]any{
		"m.relates_to": map[string]string{"rel_type": "m.annotation", "event_id": string(events[0]), "key": "✅"},
	})
}

// The company of the stories: a head office with a sales department, and two provinces.
//
//	集团 hq (总部): 1001 王总, administrator; 1002 李会计
//	  市场部 sales (总部): 1003 manager, 1004
//	  四川 sc (四川): 2001 manager, 2002
//	    成都 cd: 2003
//	  广东 gd (广东): 3001 manager, 3002
func staff() *org.Import {
	imp := &org.Import{
		HasUnits: true, HasPeople: true,
		Units: []*org.Unit{
			{ID: "hq", Name: "集团", Site: "总部", OwnSite: true, Managers: []string{"1001"}},
			{ID: "sales", ParentID: "hq", Name: "市场部", Managers: []string{"1003"}, Order: 1},
			{ID: "sc", ParentID: "hq", Name: "四川公司", Site: "四川", OwnSite: true, Managers: []string{"2001"}, ContainSub: true, Order: 2},
			{ID: "cd", ParentID: "sc", Name: "成都办", Order: 1},
			{ID: "gd", ParentID: "hq", Name: "广东公司", Site: "广东", OwnSite: true, Managers: []string{"3001"}, Order: 3},
		},
	}
	for _, p := range [][3]string{
		{"1001", "王总", "hq"},
		{"1002", "李会计", "hq"},
		{"1003", "张市场", "sales"},
		{"1004", "赵市场", "sales"},
		{"2001", "钱川", "sc"},
		{"2002", "孙川", "sc"},
		{"2003", "周成都", "cd"},
		{"3001", "吴广", "gd"},
		{"3002", "郑广", "gd"},
	} {
		imp.People = append(imp.People, &org.Person{ID: p[0], Name: p[1], Admin: p[0] == "1001", Posts: []org.Post{{Unit: p[2], Main: true}}})
	}
	return imp
}

// everybody are all who work there.
func everybody(imp *org.Import) (out []string) {
	for _, p := range imp.People {
		if p.Left == "" {
			out = append(out, p.ID)
		}
	}
	return out
}

// moved makes a person's main post another unit's.
func moved(imp *org.Import, person, unit string) *org.Import {
	for _, p := range imp.People {
		if p.ID == person {
			p.Posts = []org.Post{{Unit: unit, Main: true}}
		}
	}
	return imp
}
