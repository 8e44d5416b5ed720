package hstest_test

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// throng is some people of two servers in one room, who do what comes to their
// minds.
type throng struct {
	t       *testing.T
	rnd     *rand.Rand
	room    id.RoomID
	alice   *hstest.User // the founder, on the first server
	bob     *hstest.User // moderator, on the second
	first   []*hstest.User
	second  []*hstest.User
	version string
	n       int
}

// act has one person do something; what the room refuses is refused.
func (c *throng) act(u *hstest.User, via *hstest.Server) {
	everyone := append(slices.Clone(c.first), c.second...)
	other := everyone[c.rnd.IntN(len(everyone))]
	c.n++
	path := func(parts ...string) string {
		return hstest.Path(append([]string{"rooms", string(c.room)}, parts...)...)
	}
	who := map[string]string{"user_id": string(other.UserID)}
	switch c.rnd.IntN(10) {
	case 0:
		u.Do("PUT", path("state", "m.room.name", ""), map[string]string{"name": fmt.Sprint(c.n)})
	case 1:
		u.Do("PUT", path("state", "im.carillon.note", fmt.Sprint(c.rnd.IntN(3))), map[string]int{"n": c.n})
	case 2:
		if other != c.alice && other != c.bob {
			u.Do("POST", path("kick"), who)
		}
	case 3:
		if other != c.alice && other != c.bob {
			u.Do("POST", path("ban"), who)
		}
	case 4:
		u.Do("POST", path("unban"), who)
	case 5:
		if u != c.alice && u != c.bob {
			u.Do("POST", path("leave"), "{}")
		}
	case 6:
		if u == c.alice {
			levels := powers(c.version, c.alice, c.bob, 50+c.rnd.IntN(2)*10)
			levels[other.UserID] = 50
			if other == c.alice {
				delete(levels, other.UserID)
				if c.version != "12" {
					levels[other.UserID] = 100
				}
			}
			u.Do("PUT", path("state", "m.room.power_levels", ""), &event.PowerLevelsEventContent{Users: levels})
		}
	case 7:
		u.Do("PUT", path("state", "m.room.join_rules", ""), map[string]string{"join_rule": []string{"public", "invite"}[c.rnd.IntN(2)]})
	default:
		u.Do("POST", hstest.Path("join", string(c.room))+"?via="+url.QueryEscape(string(via.Name)), "{}")
		u.Do("PUT", path("send", "m.room.message", fmt.Sprint("c", c.n)), text(fmt.Sprint(c.n)))
	}
}

func TestTwoServersAgreeWhateverHappens(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2", "10", "12"} {
		t.Run("version "+version, func(t *testing.T) {
			seed := rand.Uint64()
			a, b := hstest.Pair(t)
			c := &throng{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), alice: a.User("alice"), bob: b.User("bob"), version: version}
			c.room = forkedRoom(t, version, c.alice, c.bob, a)
			c.first, c.second = []*hstest.User{c.alice}, []*hstest.User{c.bob}
			for i := range 2 {
				x, y := a.User(fmt.Sprint("a", i)), b.User(fmt.Sprint("b", i))
				x.OK("POST", hstest.Path("join", string(c.room)), "{}")
				join(y, c.room, a)
				c.first, c.second = append(c.first, x), append(c.second, y)
			}
			watch := &watcher{u: c.bob, room: c.room, state: map[string]string{}}
			for round := range 3 {
				mark := fmt.Sprint("round ", round, " of ")
				a.Cut()
				b.Cut()
				for range 12 {
					c.act(c.first[c.rnd.IntN(len(c.first))], b)
					c.act(c.second[c.rnd.IntN(len(c.second))], a)
				}
				say(c.alice, c.room, mark+"alice")
				say(c.bob, c.room, mark+"bob")
				a.Heal()
				b.Heal()
				c.alice.Hears(c.room, mark+"bob")
				c.bob.Hears(c.room, mark+"alice")
				say(c.alice, c.room, mark+"both")
				c.bob.Hears(c.room, mark+"both")
				say(c.bob, c.room, mark+"all")
				c.alice.Hears(c.room, mark+"all")
				sameState(t, c.alice, c.bob, c.room)
				c.agree(a, b)
				watch.check(t)
				if t.Failed() {
					t.Fatalf("seed %d, round %d", seed, round)
				}
			}
		})
	}
}

func say(u *hstest.User, room id.RoomID, text string) {
	if r := u.Do("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", text), map[string]string{"msgtype": "m.text", "body": text}); r.Status != 200 {
		panic(fmt.Sprintf("%s says %q: %s", u.UserID, text, r.Body))
	}
}

// agree compares the hubs, the lists of rooms and the syncs with the state.
func (c *throng) agree(a, b *hstest.Server) {
	for _, u := range append(slices.Clone(c.first), c.second...) {
		joined := membership(c.alice, c.room, u.UserID) == "join"
		for _, s := range []*hstest.Server{a, b} {
			if s.Hub().Joined(matrixUser(u), roomID(c.room)) != joined {
				c.t.Errorf("%s is joined: %v by the state, not so by the hub of %s", u.UserID, joined, s.Name)
			}
		}
		r, err := u.JoinedRooms(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		if slices.Contains(r.JoinedRooms, c.room) != joined {
			c.t.Errorf("%s is joined: %v by the state, not so by the list of rooms", u.UserID, joined)
		}
		if got := u.RawSync("").Get(in("join", c.room)).Exists(); got != joined {
			c.t.Errorf("%s is joined: %v by the state, not so by /sync", u.UserID, joined)
		}
	}
}

// watcher is a client that keeps a room's state by what /sync says of it.
type watcher struct {
	u     *hstest.User
	room  id.RoomID
	since string
	state map[string]string
}

func (w *watcher) check(t *testing.T) {
	t.Helper()
	r := w.u.RawSync(w.since, "use_state_after=true")
	w.since = r.Get("next_batch").Str
	r.Get(in("join", w.room) + ".state_after.events").ForEach(func(_, e gjson.Result) bool {
		w.state[e.Get("type").Str+"|"+e.Get("state_key").Str] = e.Get("event_id").Str
		return true
	})
	for k, ev := range stateOf(w.u, w.room) {
		if w.state[k] != ev {
			t.Errorf("%s is %s by the state, %q by what /sync has told", k, ev, w.state[k])
		}
	}
}
