package hstest_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// memory is what a client knows of a room.
type memory struct {
	membership         string
	name, avatar       string
	heroes             []string
	joined, invited    int64
	dm                 bool
	unread, highlights int64
	bump               int64
	state              map[string]string // event IDs
	stripped           map[string]string
	timeline           []string
}

// model is a client that puts together what it is told, as the proposal says.
type model struct {
	t        *testing.T
	u        *hstest.User
	stable   bool // speaks the form of the accepted proposal
	conn     string
	pos      string
	asks     obj // lists and room_subscriptions
	rooms    map[string]*memory
	counts   map[string]int64
	global   map[string]string
	data     map[string]map[string]string
	receipts map[string]map[string]string
	typing   map[string]string
	threads  map[string]string
}

func newModel(t *testing.T, u *hstest.User, conn string, stable bool) *model {
	return &model{
		t: t, u: u, conn: conn, stable: stable, rooms: map[string]*memory{}, counts: map[string]int64{}, global: map[string]string{},
		data: map[string]map[string]string{}, receipts: map[string]map[string]string{}, typing: map[string]string{}, threads: map[string]string{},
	}
}

// config is what a list or a subscription asks of its rooms.
func (m *model) config(limit int, everything bool) obj {
	switch {
	case m.stable && everything:
		return obj{"timeline_limit": limit, "required_state": obj{"include": []obj{{}}}}
	case m.stable:
		return obj{"timeline_limit": limit, "required_state": obj{
			"include": []obj{{"type": "m.room.topic"}, {"type": "m.room.member", "state_key": m.u.UserID}}, "lazy_members": true,
		}}
	case everything:
		return obj{"timeline_limit": limit, "required_state": [][]string{{"*", "*"}}}
	}
	return obj{"timeline_limit": limit, "required_state": [][]string{{"m.room.topic", ""}, {"m.room.member", "$LAZY"}, {"m.room.member", "$ME"}}}
}

func (m *model) list(to, limit int, everything bool) obj {
	l := m.config(limit, everything)
	if m.stable {
		l["range"] = []int{0, to}
	} else {
		l["ranges"] = [][]int{{0, to}}
	}
	return l
}

// ask makes a request; its answer is not taken in yet.
func (m *model) ask(timeout int) gjson.Result {
	on := obj{"enabled": true}
	body := obj{"conn_id": m.conn, "extensions": obj{"account_data": on, "receipts": on, "typing": on, "thread_subscriptions": on}}
	maps.Copy(body, m.asks)
	path := slidingPath + "?" + url.Values{"timeout": {strconv.Itoa(timeout)}, "set_presence": {"offline"}, "pos": {m.pos}}.Encode()
	if m.stable {
		path = slidingV4
		body["timeout"], body["set_presence"] = timeout, "offline"
		if m.pos != "" {
			body["pos"] = m.pos
		}
	}
	return m.u.OK("POST", path, body)
}

// take takes an answer in and reports whether there was anything in it.
func (m *model) take(r gjson.Result) (some bool) {
	m.pos = r.Get("pos").Str
	r.Get("lists").ForEach(func(k, v gjson.Result) bool {
		m.counts[k.Str] = v.Get("count").Int()
		return true
	})
	r.Get("rooms").ForEach(func(k, v gjson.Result) bool {
		some = true
		m.room(k.Str, v)
		return true
	})
	x := r.Get("extensions")
	for _, e := range x.Get("account_data.global").Array() {
		some = true
		m.global[e.Get("type").Str] = e.Get("content").Raw
	}
	each := func(path string, fn func(room string, v gjson.Result)) {
		x.Get(path).ForEach(func(k, v gjson.Result) bool {
			some = true
			fn(k.Str, v)
			return true
		})
	}
	each("account_data.rooms", func(room string, v gjson.Result) {
		if m.data[room] == nil {
			m.data[room] = map[string]string{}
		}
		for _, e := range v.Array() {
			m.data[room][e.Get("type").Str] = e.Get("content").Raw
		}
	})
	each("receipts.rooms", func(room string, v gjson.Result) {
		if m.receipts[room] == nil {
			m.receipts[room] = map[string]string{}
		}
		for k, e := range receiptsOf(v.Get("content")) {
			m.receipts[room][k] = e
		}
	})
	each("typing.rooms", func(room string, v gjson.Result) { m.typing[room] = v.Get("content.user_ids").Raw })
	each("thread_subscriptions.subscribed", func(room string, v gjson.Result) {
		v.ForEach(func(root, s gjson.Result) bool { m.threads[room+root.Str] = s.Raw; return true })
	})
	each("thread_subscriptions.unsubscribed", func(room string, v gjson.Result) {
		v.ForEach(func(root, _ gjson.Result) bool { delete(m.threads, room+root.Str); return true })
	})
	return some
}

// receiptsOf gives the event of each receipt by its kind, user and thread.
func receiptsOf(content gjson.Result) map[string]string {
	out := map[string]string{}
	content.ForEach(func(event, types gjson.Result) bool {
		types.ForEach(func(typ, users gjson.Result) bool {
			users.ForEach(func(user, v gjson.Result) bool {
				out[typ.Str+user.Str+v.Get("thread_id").Str] = event.Str
				return true
			})
			return true
		})
		return true
	})
	return out
}

func (m *model) room(room string, v gjson.Result) {
	k := m.rooms[room]
	if k == nil || v.Get("initial").Bool() {
		if !v.Get("initial").Bool() && v.Get("membership").Str != "leave" && v.Get("membership").Str != "ban" {
			m.t.Errorf("%s is new and not initial: %s", room, v.Raw)
		}
		k = &memory{state: map[string]string{}}
		m.rooms[room] = k
	}
	if f := v.Get("membership"); f.Exists() {
		k.membership = f.Str
	}
	if f := v.Get("name"); f.Exists() {
		k.name = f.Str
	}
	if f := v.Get("avatar"); f.Exists() {
		k.avatar = f.Str
	}
	if f := v.Get("heroes"); f.Exists() {
		k.heroes = nil
		for _, h := range f.Array() {
			k.heroes = append(k.heroes, h.Get("user_id").Str+h.Get("displayname").Str)
		}
	}
	number := func(field string, to *int64) {
		if f := v.Get(field); f.Exists() {
			*to = f.Int()
		}
	}
	number("joined_count", &k.joined)
	number("invited_count", &k.invited)
	number("notification_count", &k.unread)
	number("highlight_count", &k.highlights)
	number("bump_stamp", &k.bump)
	if f := v.Get("is_dm"); f.Exists() {
		k.dm = f.Bool()
	}
	for _, e := range v.Get("required_state").Array() {
		key := e.Get("type").Str + "|" + e.Get("state_key").Str
		if e.Get("content").Exists() {
			k.state[key] = e.Get("event_id").Str
		} else {
			delete(k.state, key)
		}
	}
	for _, field := range []string{"invite_state", "stripped_state"} {
		if f := v.Get(field); f.Exists() {
			k.stripped = map[string]string{}
			for _, e := range f.Array() {
				k.stripped[e.Get("type").Str+"|"+e.Get("state_key").Str] = e.Get("content").Raw
			}
		}
	}
	for _, field := range []string{"timeline", "timeline_events"} {
		f := v.Get(field)
		if !f.Exists() {
			continue
		}
		if v.Get("limited").Bool() || v.Get("unstable_expanded_timeline").Bool() || v.Get("expanded_timeline").Bool() {
			k.timeline = nil
		}
		for _, e := range f.Array() {
			if id := e.Get("event_id").Str; slices.Contains(k.timeline, id) {
				m.t.Errorf("%s: %s came twice", room, id)
			} else {
				k.timeline = append(k.timeline, id)
			}
		}
	}
}

// settle reads until there is nothing more.
func (m *model) settle() {
	for quiet := 0; quiet < 2; {
		before := maps.Clone(m.counts)
		if m.take(m.ask(150)) || !maps.Equal(before, m.counts) {
			quiet = 0
		} else {
			quiet++
		}
	}
}

// same compares what a client has put together with what a new one is told.
func (m *model) same(fresh *model) {
	m.t.Helper()
	own := int64(0) // rooms that the user left himself, or was kept out of: told only to who knew of them
	for id, k := range m.rooms {
		if fresh.rooms[id] == nil && (k.membership == "leave" || k.membership == "ban") {
			own++
		}
	}
	for name, n := range fresh.counts {
		if m.counts[name] > n+own || m.counts[name] < n {
			m.t.Errorf("list %s has %d rooms, a new one %d, and %d were left", name, m.counts[name], n, own)
		}
	}
	for id, want := range fresh.rooms {
		got := m.rooms[id]
		if got == nil {
			m.t.Errorf("%s is not known", id)
			continue
		}
		m.sameRoom(id, got, want)
	}
	for id, k := range m.rooms {
		if fresh.rooms[id] == nil && k.membership != "leave" && k.membership != "ban" {
			m.t.Errorf("%s is known as %s, which it is not", id, k.membership)
		}
	}
	if !maps.Equal(m.global, fresh.global) || !maps.Equal(m.threads, fresh.threads) {
		m.t.Errorf("of the account: %v %v\nwant %v %v", m.global, m.threads, fresh.global, fresh.threads)
	}
	for id := range fresh.rooms {
		if !maps.Equal(m.data[id], fresh.data[id]) {
			m.t.Errorf("%s: account data %v, want %v", id, m.data[id], fresh.data[id])
		}
		for k, event := range fresh.receipts[id] {
			if m.receipts[id][k] != event {
				m.t.Errorf("%s: receipt %s at %s, want %s", id, k, m.receipts[id][k], event)
			}
		}
		if fresh.rooms[id].membership != "join" {
			continue
		}
		if got, want := m.typing[id], fresh.typing[id]; got != want && (got != "[]" || want != "") {
			m.t.Errorf("%s: %s are typing, want %s", id, got, want)
		}
	}
}

func (m *model) sameRoom(id string, got, want *memory) {
	m.t.Helper()
	g, w := *got, *want
	if w.name != "" {
		g.heroes, w.heroes = nil, nil
	}
	if n := len(g.timeline) - len(w.timeline); n >= 0 {
		g.timeline = g.timeline[n:]
	}
	if w.membership != "join" { // these are not told of a room that is new to the client
		g.joined, g.invited, g.unread, g.highlights, g.dm, w.dm = 0, 0, 0, 0, false, false
	}
	g.state = maps.Clone(g.state)
	if lazy := w.state["m.room.create|"] == ""; lazy || w.membership != "join" {
		// Members that it got to know, and what was wanted once and is not any more.
		maps.DeleteFunc(g.state, func(k, _ string) bool { return w.state[k] == "" })
	}
	if !reflect.DeepEqual(g, w) {
		m.t.Errorf("%s (%s, stable %v):\n got %+v\nwant %+v", id, m.conn, m.stable, g, w)
	}
}

// crew does random things in rooms.
type crew struct {
	t     *testing.T
	s     *hstest.Server
	users []*hstest.User
	me    *hstest.User
	seed  uint64

	mu     sync.Mutex
	n      int
	rooms  []id.RoomID
	events map[id.RoomID][]string
}

func (c *crew) number() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

func (c *crew) said(room id.RoomID, a hstest.Answer) {
	if a.Status == 200 {
		c.mu.Lock()
		c.events[room] = append(c.events[room], a.Get("event_id").Str)
		c.mu.Unlock()
	}
}

func (c *crew) event(rng *rand.Rand, room id.RoomID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if list := c.events[room]; len(list) > 0 {
		return list[len(list)-1-rng.IntN(min(len(list), 6))]
	}
	return "$none"
}

// act does one thing; what is not allowed fails, which is fine.
func (c *crew) act(rng *rand.Rand) {
	u := c.users[rng.IntN(len(c.users))]
	c.mu.Lock()
	room := c.rooms[rng.IntN(len(c.rooms))]
	c.mu.Unlock()
	in := func(parts ...string) string { return hstest.Path(append([]string{"rooms", string(room)}, parts...)...) }
	other := c.users[rng.IntN(len(c.users))]
	n := strconv.Itoa(c.number())
	state := func(typ, key string, content obj) { u.Do("PUT", in("state", typ, key), content) }
	me := url.PathEscape(string(c.me.UserID))
	switch rng.IntN(24) {
	case 0, 1, 2, 3, 4:
		content := obj{"msgtype": "m.text", "body": n, "m.mentions": obj{}}
		if rng.IntN(4) == 0 {
			content["m.mentions"] = obj{"user_ids": []id.UserID{c.me.UserID}}
		}
		c.said(room, u.Do("PUT", in("send", "m.room.message", "t"+n), content))
	case 5:
		state("m.room.topic", "", obj{"topic": n})
	case 6:
		state("m.room.name", "", []obj{{"name": "name " + n}, {}}[rng.IntN(2)])
	case 7:
		state("m.room.avatar", "", []obj{{"url": "mxc://a.example/" + n}, {}}[rng.IntN(2)])
	case 8:
		state("x.y", strconv.Itoa(rng.IntN(3)), obj{"v": n})
	case 9, 10:
		u.Do("POST", in("join"), obj{})
	case 11:
		u.Do("POST", in("leave"), obj{})
	case 12:
		u.Do("POST", in([]string{"kick", "ban", "unban"}[rng.IntN(3)]), obj{"user_id": other.UserID})
	case 13, 14:
		u.Do("POST", in("invite"), obj{"user_id": other.UserID})
	case 15:
		u.Do("POST", in("receipt", "m.read", c.event(rng, room)), []obj{{}, {"thread_id": "main"}}[rng.IntN(2)])
	case 16:
		u.Do("PUT", in("typing", string(u.UserID)), obj{"typing": rng.IntN(2) == 0, "timeout": 60_000})
	case 17:
		c.me.Do("PUT", hstest.V3+"/user/"+me+"/rooms/"+url.PathEscape(string(room))+"/account_data/x.room", obj{"v": n})
	case 18:
		c.me.Do("PUT", hstest.V3+"/user/"+me+"/account_data/m.direct", obj{"@x:y": []id.RoomID{room}})
	case 19:
		c.me.Do("PUT", subscription(room, id.EventID(c.event(rng, room))), obj{})
	case 20:
		c.me.Do("DELETE", subscription(room, id.EventID(c.event(rng, room))), nil)
	case 21:
		u.Do("PUT", in("redact", c.event(rng, room), "x"+n), obj{})
	case 22:
		c.me.Do("POST", in("forget"), obj{})
	case 23:
		if len(c.rooms) < 12 {
			r := u.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Invite: []id.UserID{c.me.UserID}})
			c.mu.Lock()
			c.rooms = append(c.rooms, r)
			c.mu.Unlock()
		}
	}
}

// reshape changes what a client asks for, loses an answer now and then, and reads on.
func (m *model) reshape(rng *rand.Rand, rooms []id.RoomID) {
	m.asks = obj{"lists": obj{"all": m.list([]int{1, 4, 50}[rng.IntN(3)], 1+rng.IntN(8), rng.IntN(2) == 0)}}
	if rng.IntN(2) == 0 {
		m.asks["room_subscriptions"] = obj{string(rooms[rng.IntN(len(rooms))]): m.config(1+rng.IntN(10), rng.IntN(2) == 0)}
	}
	r := m.ask(rng.IntN(2) * 30)
	if rng.IntN(4) > 0 {
		m.take(r)
	}
}

// What a client has put together over a long connection is what a new connection
// tells, whatever happened meanwhile, and whatever the client asked for.
func TestSlidingStress(t *testing.T) {
	t.Parallel()
	seed, rounds := uint64(time.Now().UnixNano()), 4
	if v := os.Getenv("CARILLON_STRESS"); v != "" { // "seed rounds"
		if _, err := fmt.Sscan(v, &seed, &rounds); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	s := hstest.New(t)
	c := &crew{t: t, s: s, seed: seed, events: map[id.RoomID][]string{}}
	for _, name := range []string{"alice", "bob", "carol", "dave"} {
		c.users = append(c.users, s.User(name))
	}
	c.me = c.users[1]
	for range 6 {
		c.rooms = append(c.rooms, c.users[0].Room(nil, c.me))
	}
	models := []*model{newModel(t, c.me, "old", false), newModel(t, c.me, "new", true)}
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds {
		var wg sync.WaitGroup
		for w := range 2 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(1+round*2+w)))
				for range 60 {
					c.act(rng)
				}
			})
		}
		for _, m := range models {
			rng := rand.New(rand.NewPCG(seed, rng.Uint64()))
			wg.Go(func() {
				for range 25 {
					c.mu.Lock()
					rooms := slices.Clone(c.rooms)
					c.mu.Unlock()
					m.reshape(rng, rooms)
				}
			})
		}
		wg.Wait()
		for _, m := range models {
			everything := round%2 == 0
			m.asks = obj{"lists": obj{"all": m.list(99, 5, everything)}}
			m.settle()
			fresh := newModel(t, c.me, "fresh"+m.conn, m.stable)
			fresh.asks = m.asks
			fresh.settle()
			m.same(fresh)
		}
		if t.Failed() {
			t.Fatalf("in round %d of seed %d (%s)", round, seed, strings.TrimSpace(fmt.Sprint(c.rooms)))
		}
	}
}
