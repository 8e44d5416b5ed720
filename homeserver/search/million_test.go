package search_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// million is how many messages are searched; CARILLON_SEARCH_MESSAGES says another
// number. A million take minutes to be put in.
func million(b *testing.B) int {
	v := os.Getenv("CARILLON_SEARCH_MESSAGES")
	if v == "" {
		return 50_000
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// sentence is office talk in which some words are frequent and others rare: 我们 is in
// 30 % of the messages, 会议 in 10 %, 报告 in 1 %, 罕见 in one of 100,000.
func sentence(r *rand.Rand, i int) string {
	text := talk(r)
	for _, w := range []struct {
		word  string
		every int
	}{{"我们", 0}, {"会议", 10}, {"报告", 100}, {"罕见", 100_000}} {
		if w.every > 0 && i%w.every == w.every/2 || w.every == 0 && r.IntN(10) < 3 {
			text += "，" + w.word
		}
	}
	return text
}

// store puts messages into the database without the way through rooms.
func store(b *testing.B, w *world, list []matrix.RoomID, n int) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	const page = 5000
	for done := 0; done < n; done += page {
		made := make([]*events.Event, 0, page)
		_, err := w.Log.Append(w.Ctx, page, func(tx *sqldb.Tx, first stream.Pos) ([]stream.Change, error) {
			made = made[:0]
			for i := range page {
				room := list[r.IntN(len(list))]
				content, err := json.Marshal(map[string]any{"msgtype": "m.text", "body": sentence(r, done+i)})
				if err != nil {
					return nil, err
				}
				pos := first + stream.Pos(i)
				id := fmt.Sprintf("$m%d", pos)
				e := &events.Event{
					NID: int64(pos), Pos: pos, ID: matrix.EventID(id), Room: room, Version: "12", Type: "m.room.message", Sender: alice,
					TS: 1_790_000_000_000 + int64(done+i)*1000, Depth: int64(pos),
					JSON: fmt.Appendf(nil, `{"type":"m.room.message","room_id":%q,"sender":%q,"content":%s,"origin_server_ts":%d}`, room, alice, content, 1_790_000_000_000+int64(done+i)*1000),
				}
				if err := w.Events.Insert(tx, e); err != nil {
					return nil, err
				}
				made = append(made, e)
			}
			return nil, nil
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := w.s.Absorb(w.Ctx, made); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSearchMillion searches where very much has been said: rare words and
// frequent ones, both together, by recency and by rank, in all rooms and in one, and
// the last page.
func BenchmarkSearchMillion(b *testing.B) {
	w := open(b, sqldbtest.Open(b))
	var list []matrix.RoomID
	for range 200 {
		list = append(list, w.Room(alice, bob))
	}
	few := []matrix.RoomID{w.Room(alice, bob, carol)}
	n := million(b)
	start := time.Now()
	store(b, w, list, n)
	b.Logf("%d messages were put in within %s", n, time.Since(start).Round(time.Second))
	w.Say(few[0], alice, "我们")
	run := func(name string, user matrix.UserID, term, more string, last bool) {
		b.Run(name, func(b *testing.B) {
			batch := ""
			if last {
				for a := w.search(user, term, more, ""); a.NextBatch != ""; a = w.search(user, term, more, a.NextBatch) {
					batch = a.NextBatch
				}
			}
			count, times, best := 0, 0, time.Hour
			spent := sqldbtest.CPU(b, w.DB)
			for b.Loop() {
				began := time.Now()
				count = w.search(user, term, more, batch).Count
				best = min(best, time.Since(began))
				times++
			}
			spent = sqldbtest.CPU(b, w.DB) - spent
			b.ReportMetric(float64(count), "hits")
			b.ReportMetric(float64(spent.Microseconds())/float64(times)/1000, "cpu-ms/op")
			b.ReportMetric(float64(best.Microseconds())/1000, "best-ms")
		})
	}
	const recent, rank = `,"order_by":"recent"`, `,"order_by":"rank"`
	for _, q := range []struct{ name, term string }{
		{"rare", "罕见"},
		{"one-percent", "报告"},
		{"frequent", "我们"},
		{"latin", "word7"},
		{"prefix", "word"},
		{"one-character", "一"},
		{"rare+frequent", "罕见 我们"},
		{"frequent+frequent", "我们 会议"},
		{"none+frequent", "绝无 我们"},
		{"three", "我们 会议 报告"},
	} {
		run(q.name+"/recent", bob, q.term, recent, false)
		run(q.name+"/rank", bob, q.term, rank, false)
	}
	run("frequent/last-page", bob, "我们", recent+`,"filter":{"limit":50}`, true)
	run("frequent/one-room", bob, "我们", recent+fmt.Sprintf(`,"filter":{"rooms":[%q]}`, list[0]), false)
	run("frequent/few-rooms", carol, "我们", recent, false)
}
