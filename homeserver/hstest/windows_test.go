package hstest_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// timed runs fn for a benchmark and reports the processor time of a run, and how long
// the shortest took, without the preparation by before, which may be nil.
func (c *crowd) timed(b *testing.B, before, fn func()) {
	b.Helper()
	var spent time.Duration
	n, best := 0, time.Hour
	whole := sqldbtest.CPU(b, c.s.DB())
	for b.Loop() {
		var from time.Duration
		if before != nil {
			b.StopTimer()
			before()
			from = sqldbtest.CPU(b, c.s.DB())
			b.StartTimer()
		}
		began := time.Now()
		fn()
		best = min(best, time.Since(began))
		if before != nil {
			b.StopTimer()
			spent += sqldbtest.CPU(b, c.s.DB()) - from
			b.StartTimer()
		}
		n++
	}
	if before == nil {
		spent = sqldbtest.CPU(b, c.s.DB()) - whole
	}
	b.ReportMetric(float64(spent.Microseconds())/float64(n)/1000, "cpu-ms/op")
	b.ReportMetric(float64(best.Microseconds())/1000, "best-ms")
}

// office is a crowd of which one has many rooms, each with things said in it.
func office(b *testing.B, n int) (*crowd, []matrix.RoomID) {
	b.Helper()
	c := newCrowd(b, 20)
	list := make([]matrix.RoomID, n)
	for i := range list {
		var err error
		q := rooms.CreateRequest{Preset: "public_chat"}
		if i%4 > 0 { // the others are named by their members
			q.Name = fmt.Sprint("room ", i)
		}
		if list[i], err = c.s.Rooms().Create(b.Context(), c.users[1], q, 0); err != nil {
			b.Fatal(err)
		}
		if err := c.s.Rooms().Join(b.Context(), rooms.MemberChange{Room: list[i], Sender: c.users[2], Target: c.users[2]}); err != nil {
			b.Fatal(err)
		}
		c.sayIn(b, list[i], "good morning")
	}
	return c, list
}

func (c *crowd) sayIn(b *testing.B, room matrix.RoomID, text string) {
	b.Helper()
	content, err := json.Marshal(map[string]any{"msgtype": "m.text", "body": text, "m.mentions": map[string]any{}})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := c.s.Rooms().Send(b.Context(), rooms.Draft{Room: room, Sender: c.users[2], Type: "m.room.message", Content: content}); err != nil {
		b.Fatal(err)
	}
}

// window is what a client of today asks for: a list of all rooms but spaces, the
// newest event of each and what its list of rooms shows.
func window(to int) string {
	return fmt.Sprintf(`{"lists":{"all":{"ranges":[[0,%d]],"timeline_limit":1,
		"required_state":[["m.room.member","$LAZY"],["m.room.member","$ME"],["m.room.name",""],["m.room.topic",""],["m.room.avatar",""],
			["m.room.canonical_alias",""],["m.room.encryption",""],["m.room.create",""],["m.room.power_levels",""],["m.room.join_rules",""],["m.room.tombstone",""]],
		"filters":{"not_room_types":["m.space"]}}},
	"extensions":{"account_data":{"enabled":true},"receipts":{"enabled":true},"typing":{"enabled":true},"e2ee":{"enabled":true},"to_device":{"enabled":true},
		"thread_subscriptions":{"enabled":true}}}`, to)
}

// BenchmarkSlidingWindow is sliding sync for a user with 1,000 rooms: the first
// window of 20, all rooms at once, and the answer to one change in a room of the
// list, anywhere in it.
func BenchmarkSlidingWindow(b *testing.B) {
	c, list := office(b, 1000)
	ask := func(pos, body string) gjson.Result {
		r := c.call(b, "POST", fmt.Sprintf("%s?set_presence=offline&pos=%s", slidingPath, url.QueryEscape(pos)), 1, body)
		return gjson.ParseBytes(r)
	}
	count := func(r gjson.Result, want int) string {
		if n := len(names(r)); n != want {
			b.Fatalf("%d rooms, not %d", n, want)
		}
		return r.Get("pos").Str
	}
	b.Run("first=20", func(b *testing.B) {
		c.timed(b, nil, func() { count(ask("", window(19)), 20) })
	})
	b.Run("first=all", func(b *testing.B) {
		c.timed(b, nil, func() { count(ask("", window(9999)), len(list)+1) })
	})
	b.Run("first=20/restarted", func(b *testing.B) { // nothing is in memory yet
		c.timed(b, func() {
			c.s.Stop()
			c.s.Start()
			c.h = c.s.Handler()
		}, func() { count(ask("", window(19)), 20) })
	})
	for _, to := range []int{99, 9999} {
		b.Run(fmt.Sprintf("change/window=%d", to+1), func(b *testing.B) {
			pos := ask("", window(to)).Get("pos").Str
			pos = ask(pos, window(to)).Get("pos").Str
			c.timed(b, func() { c.sayIn(b, list[rand.IntN(len(list))], "news") }, func() { pos = count(ask(pos, window(to)), 1) })
		})
	}
}

// BenchmarkHistory pages through the 20,000 messages of a room by 100, as a client
// does that loads everything; it reports what one core does.
func BenchmarkHistory(b *testing.B) {
	c := newCrowd(b, 3)
	for i := range 20_000 {
		c.sayIn(b, c.room, fmt.Sprint("message number ", i, " says that the meeting of the afternoon begins at three"))
	}
	c.settle(b)
	total := 0
	start := sqldbtest.CPU(b, c.s.DB())
	for b.Loop() {
		from, n := "", 0
		for {
			path := fmt.Sprintf("/_matrix/client/v3/rooms/%s/messages?dir=b&limit=100&from=%s", url.PathEscape(string(c.room)), from)
			r := gjson.ParseBytes(c.call(b, "GET", path, 1, ""))
			k := int(r.Get("chunk.#").Int())
			n += k
			if from = r.Get("end").Str; from == "" || k == 0 {
				break
			}
		}
		if n < 20_000 {
			b.Fatalf("only %d events", n)
		}
		total += n
	}
	b.ReportMetric(float64(total)/(sqldbtest.CPU(b, c.s.DB())-start).Seconds(), "events/cpu-s")
}
