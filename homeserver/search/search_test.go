package search_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/relations"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/search"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
)

type world struct {
	*partstest.World
	data *accountdata.Data
	s    *search.Search
}

func open(t testing.TB, db *sqldb.DB) *world {
	t.Helper()
	w, run := build(t, db)
	w.Run(run)
	return w
}

// build opens a world without starting it.
func build(t testing.TB, db *sqldb.DB) (w *world, run func(context.Context) error) {
	t.Helper()
	w = &world{World: partstest.New(t, db, rooms.Options{})}
	var err error
	if w.data, err = accountdata.New(w.Ctx, db, w.Log); err != nil {
		t.Fatal(err)
	}
	rel, err := relations.New(w.Ctx, db, w.Log, w.Events, w.data, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := search.New(w.Ctx, search.Parts{DB: db, Log: w.Log, Events: w.Events, Rooms: w.Rooms, Data: w.data, Bundler: rel})
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	w.API.Add(s.Routes()...)
	return w, s.Run
}

// event is an event in client form.
type event struct {
	ID      matrix.EventID `json:"event_id"`
	Room    matrix.RoomID  `json:"room_id"`
	Content struct {
		Body string `json:"body"`
	} `json:"content"`
}

// answer is the answer of a search.
type answer struct {
	Count      int
	Highlights []string
	NextBatch  string `json:"next_batch"`
	Results    []struct {
		Rank    float64
		Result  event
		Context *struct {
			Start, End string
			Before     []event `json:"events_before"`
			After      []event `json:"events_after"`
			Profiles   map[matrix.UserID]struct {
				Name string `json:"displayname"`
			} `json:"profile_info"`
		}
	}
	State  map[matrix.RoomID][]struct{ Type string }
	Groups map[string]map[string]struct {
		Order     int
		Results   []matrix.EventID
		NextBatch string `json:"next_batch"`
	}
}

func (a answer) ids() []matrix.EventID {
	var ids []matrix.EventID
	for _, r := range a.Results {
		ids = append(ids, r.Result.ID)
	}
	return ids
}

const path = "/_matrix/client/v3/search"

// search looks for a term; more is what follows it in the criteria.
func (w *world) search(user matrix.UserID, term, more, batch string) (a answer) {
	w.T.Helper()
	out := w.Want(user, "POST", path+"?next_batch="+url.QueryEscape(batch),
		fmt.Sprintf(`{"search_categories":{"room_events":{"search_term":%q%s}}}`, term, more), 200, "")
	var all struct {
		Categories struct {
			Events answer `json:"room_events"`
		} `json:"search_categories"`
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		w.T.Fatal(err)
	}
	return all.Categories.Events
}

// finds checks what a search finds, in any order.
func (w *world) finds(user matrix.UserID, term, more string, want ...matrix.EventID) {
	w.T.Helper()
	a := w.search(user, term, more, "")
	got := a.ids()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || a.Count != len(want) {
		w.T.Errorf("%s searches %q %s: %v (count %d), want %v", user, term, more, got, a.Count, want)
	}
}

func (w *world) edit(room matrix.RoomID, user matrix.UserID, to matrix.EventID, text string) matrix.EventID {
	w.T.Helper()
	time.Sleep(2 * time.Millisecond) // of two edits of one moment the larger ID holds
	return w.Send(room, user, "m.room.message", fmt.Sprintf(
		`{"body":"* %s","m.new_content":{"body":%q},"m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, text, text, to))
}

func TestWords(t *testing.T) {
	w := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	plan := w.Say(room, alice, "本周五下午三点开项目进度会，请带上Budget表")
	hello := w.Say(room, bob, "Hello, world: the deployment of v2 is done")
	cafe := w.Say(room, bob, "See you at the Café, ＲＯＯＭ １２")
	pair := w.Say(room, alice, "目项 度进")
	for _, c := range []struct {
		term string
		want []matrix.EventID
	}{
		{"项目", []matrix.EventID{plan}},
		{"进度会", []matrix.EventID{plan}},
		{"项目进度", []matrix.EventID{plan}},
		{"项度", nil},
		{"会", []matrix.EventID{plan}}, // one character at the end of a run
		{"目", []matrix.EventID{plan, pair}},
		{"下午 budget", []matrix.EventID{plan}},
		{"budget表", []matrix.EventID{plan}},
		{"项目 hello", nil},
		{"HELLO", []matrix.EventID{hello}},
		{"deploy", []matrix.EventID{hello}}, // the beginning of a word
		{"v2", []matrix.EventID{hello}},
		{"v", nil},
		{"ment", nil},
		{"world hello", []matrix.EventID{hello}},
		{"cafe", []matrix.EventID{cafe}},
		{"ｃａｆé room 12", []matrix.EventID{cafe}},
		{"1", nil},
		{"the", []matrix.EventID{hello, cafe}},
		{"", nil},
		{"!?", nil},
		{`"' OR * & | ! ( ) : \ NEAR`, nil},
		{`hello'`, []matrix.EventID{hello}},
	} {
		w.finds(alice, c.term, "", c.want...)
		w.finds(bob, c.term, `,"order_by":"recent"`, c.want...)
		w.finds(carol, c.term, "")
	}
	if got := w.search(alice, "DEPLOY 项目", "", "").Highlights; !slices.Equal(got, []string{"DEPLOY", "项目"}) {
		t.Errorf("highlights %q", got)
	}
	if got := w.search(alice, "deploy", "", "").Highlights; !slices.Equal(got, []string{"deploy", "deployment"}) {
		t.Errorf("highlights %q", got)
	}
}

func TestEditsAndRedactions(t *testing.T) {
	w := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	id := w.Say(room, alice, "first words")
	w.finds(bob, "first", "", id)
	w.edit(room, bob, id, "forged")
	two := w.edit(room, alice, id, "second words")
	three := w.edit(room, alice, id, "third words")
	w.finds(bob, "first", "")
	w.finds(bob, "second", "")
	w.finds(bob, "forged", "")
	w.finds(bob, "third words", "", id)
	w.Redact(room, alice, three)
	w.finds(bob, "third", "")
	w.finds(bob, "second", "", id)
	w.Redact(room, alice, two)
	w.finds(bob, "first", "", id)
	w.Redact(room, alice, id)
	w.finds(bob, "words", "")
	w.finds(bob, "first", "")

	// All in one batch.
	id = w.Say(room, alice, "fourth words")
	w.edit(room, alice, id, "fifth words")
	w.finds(bob, "words", "", id)
	w.finds(bob, "fourth", "")
	id = w.Say(room, alice, "sixth")
	w.Redact(room, alice, id)
	w.finds(bob, "sixth", "")

	// What older clients repeat of the message that is replied to is not the reply's.
	reply := w.Send(room, bob, "m.room.message", fmt.Sprintf(
		`{"body":"> <@alice:a.example> quoted\n> more\n\nanswer","m.relates_to":{"m.in_reply_to":{"event_id":%q}}}`, id))
	w.finds(alice, "quoted", "")
	w.finds(alice, "answer", "", reply)
}

func TestNamesAndTopics(t *testing.T) {
	w := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	name := w.Set(room, alice, "m.room.name", "", `{"name":"财务 budget"}`)
	topic := w.Set(room, alice, "m.room.topic", "", `{"topic":"budget of 2026","m.topic":{"m.text":[{"body":"<b>html</b>","mimetype":"text/html"},{"body":"rich plan"}]}}`)
	body := w.Say(room, bob, "budget")
	w.Send(room, bob, "x.other", `{"body":"budget"}`)
	w.Set(room, alice, "m.room.topic", "other", `{"topic":"budget"}`)
	w.finds(bob, "budget", "", name, topic, body)
	w.finds(bob, "budget", `,"keys":["content.name"]`, name)
	w.finds(bob, "budget", `,"keys":["content.topic","content.body"]`, topic, body)
	w.finds(bob, "budget", `,"filter":{"types":["m.room.name"]}`, name)
	w.finds(bob, "budget", `,"filter":{"not_types":["m.room.*"]}`)
	w.finds(bob, "rich", "", topic)
	w.finds(bob, "html", "")
}

func TestFilters(t *testing.T) {
	w := open(t, sqldbtest.Open(t))
	one, two := w.Room(alice, bob), w.Room(alice, bob)
	a := w.Say(one, alice, "word")
	b := w.Say(one, bob, "word")
	c := w.Say(two, bob, "word")
	d := w.Send(two, bob, "m.room.message", `{"body":"word","url":"mxc://x/y"}`)
	w.finds(alice, "word", "", a, b, c, d)
	w.finds(alice, "word", fmt.Sprintf(`,"filter":{"rooms":[%q]}`, one), a, b)
	w.finds(alice, "word", `,"filter":{"rooms":[]}`)
	w.finds(alice, "word", fmt.Sprintf(`,"filter":{"not_rooms":[%q]}`, one), c, d)
	w.finds(alice, "word", fmt.Sprintf(`,"filter":{"rooms":[%q,%q],"not_rooms":[%q]}`, one, two, two), a, b)
	w.finds(alice, "word", `,"filter":{"senders":["@alice:a.example"]}`, a)
	w.finds(alice, "word", `,"filter":{"senders":[]}`)
	w.finds(alice, "word", `,"filter":{"not_senders":["@bob:a.example"]}`, a)
	w.finds(alice, "word", `,"filter":{"contains_url":true}`, d)
	w.finds(alice, "word", `,"filter":{"contains_url":false}`, a, b, c)
	if err := w.data.Put(w.Ctx, alice, "", "m.ignored_user_list", json.RawMessage(`{"ignored_users":{"@bob:a.example":{}}}`)); err != nil {
		t.Fatal(err)
	}
	w.finds(alice, "word", "", a)
	w.finds(bob, "word", "", a, b, c, d)
}

func TestVisibility(t *testing.T) {
	w := open(t, sqldbtest.Open(t))
	room := w.Room(alice)
	w.Set(room, alice, "m.room.history_visibility", "", `{"history_visibility":"joined"}`)
	before := w.Say(room, alice, "secret before")
	w.Join(room, bob)
	during := w.Say(room, alice, "secret during")
	if err := w.Rooms.Leave(w.Ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob}); err != nil {
		t.Fatal(err)
	}
	after := w.Say(room, alice, "secret after")
	w.finds(alice, "secret", "", before, during, after)
	w.finds(bob, "secret", "", during)
	w.finds(carol, "secret", "")
	a := w.search(bob, "secret", `,"event_context":{},"include_state":true`, "")
	for _, e := range slices.Concat(a.Results[0].Context.Before, a.Results[0].Context.After) {
		if e.ID == before || e.ID == after {
			t.Errorf("the context shows %+v", e)
		}
	}
	if err := w.Rooms.Forget(w.Ctx, bob, room); err != nil {
		t.Fatal(err)
	}
	w.finds(bob, "secret", "")

	w.Set(room, alice, "m.room.encryption", "", `{"algorithm":"m.megolm.v1.aes-sha2"}`)
	w.finds(alice, "secret", "")
}

func TestUpgradedRooms(t *testing.T) {
	w := open(t, sqldbtest.Open(t))
	old := w.Room(alice, bob)
	a := w.Say(old, alice, "upgrade before")
	fresh, err := w.Rooms.Create(w.Ctx, alice, rooms.CreateRequest{
		Preset: "public_chat", CreationContent: json.RawMessage(fmt.Sprintf(`{"predecessor":{"room_id":%q}}`, old)),
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Join(fresh, carol)
	b := w.Say(fresh, alice, "upgrade after")
	only := fmt.Sprintf(`,"filter":{"rooms":[%q]}`, fresh)
	w.finds(alice, "upgrade", only, a, b)
	w.finds(alice, "upgrade", "", a, b)
	w.finds(carol, "upgrade", only, b) // was never in the old one
	w.finds(alice, "upgrade", fmt.Sprintf(`,"filter":{"rooms":[%q],"not_rooms":[%q]}`, fresh, old), b)
}

func TestPages(t *testing.T) {
	w := open(t, sqldbtest.Open(t))
	one, two := w.Room(alice, bob), w.Room(alice, bob)
	var want []matrix.EventID
	for i := range 20 {
		room, user := one, alice
		if i%4 == 3 {
			room, user = two, bob
		}
		want = append(want, w.Say(room, user, fmt.Sprintf("word%s %d", strings.Repeat(" more", i%3), i)))
	}
	slices.Reverse(want)
	for _, order := range []string{"recent", "rank"} {
		more := fmt.Sprintf(`,"order_by":%q,"filter":{"limit":7},"groupings":{"group_by":[{"key":"room_id"},{"key":"sender"}]}`, order)
		var got []matrix.EventID
		var ranks []float64
		batch := ""
		for page := 0; ; page++ {
			a := w.search(bob, "word", more, batch)
			if a.Count != 20 || len(a.Results) > 7 {
				t.Fatalf("%s: page %d of %d has %d results", order, page, a.Count, len(a.Results))
			}
			got = append(got, a.ids()...)
			for _, r := range a.Results {
				ranks = append(ranks, r.Rank)
			}
			if batch = a.NextBatch; batch == "" {
				break
			}
		}
		if order == "recent" && !slices.Equal(got, want) {
			t.Errorf("recent: %v, want %v", got, want)
		}
		if order == "rank" && !slices.IsSortedFunc(ranks, func(a, b float64) int { return int(1000 * (b - a)) }) {
			t.Errorf("ranks %v", ranks)
		}
		slices.Sort(got)
		if len(slices.Compact(got)) != 20 {
			t.Errorf("%s: %d different results", order, len(got))
		}
		// A page of one group alone.
		a := w.search(bob, "word", more, "")
		g := a.Groups["room_id"][string(one)]
		n := len(g.Results)
		for batch = g.NextBatch; batch != ""; {
			a = w.search(bob, "word", more, batch)
			for _, r := range a.Results {
				if r.Result.Room != one {
					t.Errorf("%s: %s is of another group", order, r.Result.ID)
				}
			}
			n += len(a.Results)
			batch = a.Groups["room_id"][string(one)].NextBatch
		}
		if n != 15 {
			t.Errorf("%s: the group has %d results", order, n)
		}
	}
	w.Want(bob, "POST", path+"?next_batch=nonsense", `{"search_categories":{"room_events":{"search_term":"word"}}}`, 400, "M_INVALID_PARAM")
}

func TestContext(t *testing.T) {
	w := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	for i := range 9 {
		user := alice
		if i == 3 {
			user = bob
		}
		w.Say(room, user, fmt.Sprintf("number %d", i))
	}
	a := w.search(bob, "number 4", `,"event_context":{"before_limit":2,"after_limit":1,"include_profile":true},"include_state":true`, "")
	if len(a.Results) != 1 {
		t.Fatalf("%+v", a)
	}
	c := a.Results[0].Context
	if len(c.Before) != 2 || c.Before[0].Content.Body != "number 3" || c.Before[1].Content.Body != "number 2" ||
		len(c.After) != 1 || c.After[0].Content.Body != "number 5" || c.Start == "" || c.End == "" {
		t.Errorf("context %+v", c)
	}
	if len(c.Profiles) != 2 || c.Profiles[bob].Name != "bob" {
		t.Errorf("profiles %+v", c.Profiles)
	}
	if len(a.State[room]) < 5 {
		t.Errorf("state %+v", a.State)
	}
	if a := w.search(bob, "number 4", "", ""); a.Results[0].Context != nil || a.State != nil || a.Groups != nil {
		t.Errorf("not asked for: %+v", a)
	}
	if c := w.search(bob, "number 4", `,"event_context":{"before_limit":0}`, "").Results[0].Context; len(c.Before) != 0 || len(c.After) != 4 {
		t.Errorf("context %+v", c)
	}
}

func TestBadRequests(t *testing.T) {
	w := open(t, sqldbtest.Open(t))
	for _, c := range []struct{ body, code string }{
		{`{`, "M_NOT_JSON"},
		{`[]`, "M_BAD_JSON"},
		{`{}`, "M_MISSING_PARAM"},
		{`{"search_categories":3}`, "M_BAD_JSON"},
		{`{"search_categories":{"room_events":{}}}`, "M_MISSING_PARAM"},
		{`{"search_categories":{"room_events":{"search_term":7}}}`, "M_BAD_JSON"},
		{`{"search_categories":{"room_events":{"search_term":"x","order_by":"age"}}}`, "M_INVALID_PARAM"},
		{`{"search_categories":{"room_events":{"search_term":"x","keys":["content.url"]}}}`, "M_INVALID_PARAM"},
		{`{"search_categories":{"room_events":{"search_term":"x","filter":[]}}}`, "M_BAD_JSON"},
		{`{"search_categories":{"room_events":{"search_term":"x","filter":{"rooms":["x"]}}}}`, "M_BAD_JSON"},
		{`{"search_categories":{"room_events":{"search_term":"x","groupings":{"group_by":[{"key":"type"}]}}}}`, "M_INVALID_PARAM"},
		{`{"search_categories":{"room_events":{"search_term":"x","event_context":{"before_limit":-1}}}}`, "M_INVALID_PARAM"},
		{`{"search_categories":{"room_events":{"search_term":"` + strings.Repeat("x", 1001) + `"}}}`, "M_INVALID_PARAM"},
	} {
		code, out := w.Do(alice, "POST", path, c.body)
		if code != 400 || !strings.Contains(out, c.code) {
			t.Errorf("%s: %d %s", c.body, code, out)
		}
	}
	if out := w.Want(alice, "POST", path, `{"search_categories":{}}`, 200, ""); out != `{"search_categories":{}}` {
		t.Errorf("no category: %s", out)
	}
	w.Want("", "POST", path, `{"search_categories":{}}`, 401, "M_MISSING_TOKEN")
}

// What was in the database before is indexed, and a restart goes on where it was.
func TestOlderDatabase(t *testing.T) {
	dsn := sqldbtest.DSN(t)
	db, err := sqldb.Open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{World: partstest.New(t, db, rooms.Options{})}
	w.Run()
	room := w.Room(alice, bob)
	id := w.Say(room, alice, "words 0")
	for i := range 300 {
		w.Say(room, alice, fmt.Sprintf("words %d", i))
	}
	w.edit(room, alice, id, "newest")
	gone := w.Say(room, alice, "vanished")
	w.Redact(room, alice, gone)
	for range 2 {
		w.Stop()
		db.Close()
		if db, err = sqldb.Open(dsn); err != nil {
			t.Fatal(err)
		}
		w = open(t, db)
		partstest.Eventually(t, "the older messages are indexed", func() bool { return w.search(bob, "words", "", "").Count == 300 })
		w.finds(bob, "newest", "", id)
		w.finds(bob, "vanished", "")
	}
	w.Stop()
	db.Close()
}

// More waits than is kept in memory: nothing is indexed before somebody searches.
func TestFlood(t *testing.T) {
	w, _ := build(t, sqldbtest.Open(t))
	w.Run()
	room := w.Room(alice, bob)
	const n = 4400
	done := make(chan bool)
	for range 20 {
		go func() {
			for range n / 20 {
				w.Say(room, alice, "flood 洪水")
			}
			done <- true
		}()
	}
	for range 20 {
		<-done
	}
	partstest.Eventually(t, "all is indexed", func() bool {
		w.search(bob, "洪水", "", "") // which works off what is waiting
		indexed := 0
		err := w.DB.Read(w.Ctx, func(tx *sqldb.Tx) error {
			return tx.QueryRow(`SELECT COUNT(*) FROM search_docs WHERE room_id = $1 AND sender = $2 AND field = $3`, string(room), string(alice), 1).Scan(&indexed)
		})
		return err == nil && indexed == n
	})
	// By recency one can go on to the last, and what was counted adds up.
	seen, a := 0, w.search(bob, "洪水", `,"order_by":"recent","filter":{"limit":50}`, "")
	for first := true; first || a.NextBatch != ""; first = false {
		if !first {
			a = w.search(bob, "洪水", `,"order_by":"recent","filter":{"limit":50}`, a.NextBatch)
		}
		if seen += len(a.Results); a.Count < min(n, seen) || a.Count > n {
			t.Fatalf("%d results are counted, and %d were read", a.Count, seen)
		}
	}
	if seen != n || a.Count != n {
		t.Errorf("%d results were read, the last page counts %d, and there are %d", seen, a.Count, n)
	}
}
