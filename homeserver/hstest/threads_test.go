package hstest_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

const (
	msc4306 = "/_matrix/client/unstable/io.element.msc4306/rooms/"
	msc4308 = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions"
	subsExt = `io\.element\.msc4308\.thread_subscriptions`
)

func subscription(room id.RoomID, root id.EventID) string {
	return msc4306 + string(room) + "/thread/" + string(root) + "/subscription"
}

// reply says something in a thread.
func reply(u *hstest.User, room id.RoomID, root id.EventID, text string, more ...obj) id.EventID {
	content := obj{"msgtype": "m.text", "body": text, "m.mentions": obj{}, "m.relates_to": obj{"rel_type": "m.thread", "event_id": root}}
	for _, m := range more {
		for k, v := range m {
			content[k] = v
		}
	}
	return id.EventID(u.OK("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", fmt.Sprint("r", text)), content).Get("event_id").Str)
}

func TestThreadSubscriptions(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, eve := s.User("alice"), s.User("bob"), s.User("eve")
	room := alice.Room(nil, bob)
	root, other := alice.Say(room, "root"), alice.Say(room, "other root")
	path := subscription(room, root)
	state := func(want string) {
		t.Helper()
		got := "none"
		if a := alice.Do("GET", path, nil); a.Status == 200 {
			got = a.Get("automatic").Raw
		} else if a.Status != 404 || a.Code() != "M_NOT_FOUND" {
			got = string(a.Body)
		}
		if got != want {
			t.Errorf("the subscription is %s, want %s", got, want)
		}
	}
	state("none")
	alice.OK("DELETE", path, nil) // nothing to end: fine
	one, elsewhere := reply(bob, room, root, "one"), reply(bob, room, other, "elsewhere")
	const conflict, outside = "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION", "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD"
	for _, cause := range []id.EventID{elsewhere, root, "$nothing"} {
		alice.Refused(400, outside, "PUT", path, obj{"automatic": cause})
	}
	alice.Refused(400, "M_BAD_JSON", "PUT", path, obj{"automatic": true})
	alice.Refused(400, "M_NOT_IN_THREAD", "PUT", "/_matrix/client/v1/rooms/"+string(room)+"/thread/"+string(root)+"/subscription", obj{"automatic": root})
	state("none")
	alice.OK("PUT", path, obj{"automatic": one})
	state("true")
	alice.OK("PUT", path, obj{})
	state("false")
	alice.OK("PUT", path, obj{"automatic": one}) // an act of the user is worth more
	state("false")
	two := reply(bob, room, root, "two")
	alice.OK("DELETE", path, nil)
	state("none")
	three := reply(bob, room, root, "three")
	for _, cause := range []id.EventID{one, two} {
		alice.Refused(409, conflict, "PUT", path, obj{"automatic": cause})
	}
	state("none")
	alice.OK("PUT", path, obj{"automatic": three})
	state("true")

	for _, method := range []string{"GET", "PUT", "DELETE"} {
		var body any
		if method == "PUT" {
			body = obj{}
		}
		alice.Refused(404, "M_NOT_FOUND", method, subscription(room, "$nothing"), body)
		eve.Refused(404, "M_NOT_FOUND", method, path, body)
		alice.Refused(404, "M_NOT_FOUND", method, subscription("!nowhere:a.example", root), body)
	}
	if a := bob.Do("GET", path, nil); a.Status != 404 {
		t.Errorf("Bob follows what Alice does: %s", a.Body)
	}
}

// roots are the threads of an answer in a member of it.
func roots(r gjson.Result, member string) (out []string) {
	r.Get(member).ForEach(func(_, threads gjson.Result) bool {
		threads.ForEach(func(root, v gjson.Result) bool {
			if v.Get("bump_stamp").Int() > 0 {
				out = append(out, root.Str)
			}
			return true
		})
		return true
	})
	slices.Sort(out)
	return out
}

func sorted(list ...id.EventID) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = string(e)
	}
	slices.Sort(out)
	return out
}

func TestThreadSubscriptionsInSlidingSync(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	room := alice.Room(nil)
	var threads []id.EventID
	for i := range 5 {
		e := alice.Say(room, fmt.Sprint("root ", i))
		threads = append(threads, e)
		alice.OK("PUT", subscription(room, e), obj{})
	}
	alice.OK("DELETE", subscription(room, threads[4]), nil)
	ext := func(limit int) obj {
		return obj{"extensions": obj{"io.element.msc4308.thread_subscriptions": obj{"enabled": true, "limit": limit}}}
	}
	c := slide(t, alice, ext(2))
	r := c.next(0).Get("extensions." + subsExt)
	if got := roots(r, "subscribed"); !slices.Equal(got, sorted(threads[2:4]...)) || r.Get("unsubscribed").Exists() {
		t.Fatalf("the beginning: %s", r.Raw)
	}
	var all []string
	for from, pages := r.Get("prev_batch").Str, 0; from != ""; pages++ {
		p := alice.OK("GET", msc4308+"?dir=b&limit=1&from="+from, nil)
		all = append(all, roots(p, "subscribed")...)
		if from = p.Get("end").Str; pages > 3 {
			t.Fatalf("it does not end: %s", p.Raw)
		}
	}
	if slices.Sort(all); !slices.Equal(all, sorted(threads[:2]...)) {
		t.Errorf("further back there were %v", all)
	}
	if got := roots(alice.OK("GET", msc4308+"?dir=b", nil), "subscribed"); !slices.Equal(got, sorted(threads[:4]...)) {
		t.Errorf("all of them: %v", got)
	}
	before := c.pos
	if r := c.next(0); r.Get("extensions." + subsExt).Exists() {
		t.Errorf("nothing has changed: %s", r.Raw)
	}
	alice.OK("DELETE", subscription(room, threads[0]), nil)
	alice.OK("PUT", subscription(room, threads[4]), obj{})
	alice.OK("DELETE", subscription(room, threads[1]), nil)
	r = c.next(1000).Get("extensions." + subsExt)
	if got := roots(r, "unsubscribed"); !slices.Equal(got, sorted(threads[1])) {
		t.Errorf("the newest: %s", r.Raw)
	}
	if got := roots(r, "subscribed"); !slices.Equal(got, sorted(threads[4])) {
		t.Errorf("the newest: %s", r.Raw)
	}
	p := alice.OK("GET", msc4308+"?dir=b&from="+r.Get("prev_batch").Str+"&to="+before, nil)
	if got := roots(p, "unsubscribed"); !slices.Equal(got, sorted(threads[0])) || p.Get("subscribed").Exists() || p.Get("end").Exists() {
		t.Errorf("what was left out: %s", p.Raw)
	}
	alice.Refused(400, "M_INVALID_PARAM", "GET", msc4308+"?dir=f", nil)
	alice.Refused(400, "M_INVALID_PARAM", "GET", msc4308+"?dir=b&limit=0", nil)
	alice.Refused(400, "M_INVALID_PARAM", "GET", msc4308+"?dir=b&from=x", nil)
	alice.Refused(400, "M_INVALID_PARAM", "POST", slidingPath, ext(0))

	// A waiting client is woken, and a change from automatic to manual is one.
	done := make(chan gjson.Result, 1)
	go func() { done <- c.next(10000) }()
	e := reply(alice, room, threads[0], "cause")
	alice.OK("PUT", subscription(room, threads[0]), obj{"automatic": e})
	if r := <-done; !r.Get("extensions." + subsExt + ".subscribed").Exists() {
		t.Errorf("the waiting client was told %s", r.Raw)
	}
	alice.OK("PUT", subscription(room, threads[0]), obj{})
	if r := c.next(1000); r.Get("extensions."+subsExt+".subscribed."+gjson.Escape(string(room))+"."+gjson.Escape(string(threads[0]))+".automatic").Raw != "false" {
		t.Errorf("made manual: %s", r.Raw)
	}
}
