package hstest_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// follower puts a room's history together of what /sync gives, and of /messages
// where /sync leaves a gap.
type follower struct {
	u     *hstest.User
	limit int
	since string
	seen  map[id.RoomID][]string
}

func (f *follower) read(wait string) (some bool) {
	r := f.u.RawSync(f.since, fmt.Sprintf(`filter={"room":{"timeline":{"limit":%d}}}`, f.limit), "timeout="+wait)
	r.Get("rooms.join").ForEach(func(k, j gjson.Result) bool {
		room := id.RoomID(k.Str)
		tl := j.Get("timeline")
		if !tl.Exists() {
			return true
		}
		page := eventIDs(tl.Get("events"))
		some = some || len(page) > 0
		if tl.Get("limited").Bool() {
			var gap []string
			for from := tl.Get("prev_batch").Str; from != ""; {
				path := hstest.Path("rooms", string(room), "messages") + "?dir=b&limit=4&from=" + from
				if len(f.seen[room]) > 0 {
					path += "&to=" + f.since
				}
				m := f.u.OK("GET", path, nil)
				gap = append(gap, eventIDs(m.Get("chunk"))...)
				from = m.Get("end").Str
			}
			slices.Reverse(gap)
			f.seen[room] = append(f.seen[room], gap...)
		}
		f.seen[room] = append(f.seen[room], page...)
		return true
	})
	f.since = r.Get("next_batch").Str
	return some
}

func TestFollowersMissNothing(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	var rooms []id.RoomID
	for range 3 {
		rooms = append(rooms, alice.Room(nil))
	}
	var followers []*follower
	for i := range 4 {
		u := s.User(fmt.Sprint("reader", i))
		f := &follower{u: u, limit: 1 + 6*i, seen: map[id.RoomID][]string{}}
		followers = append(followers, f)
		f.read("0")
		for _, room := range rooms {
			u.OK("POST", hstest.Path("join", string(room)), "{}")
		}
	}
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	for _, f := range followers {
		readers.Go(func() {
			for {
				some := f.read("200")
				select {
				case <-stop:
					if !some {
						return
					}
				default:
				}
			}
		})
	}
	for i := range 3 {
		u := s.User(fmt.Sprint("writer", i))
		writers.Go(func() {
			for k := range 40 {
				room := rooms[(i+k)%3]
				if k < 3 {
					u.OK("POST", hstest.Path("join", string(room)), "{}")
				}
				send(u, room, fmt.Sprint("f", k), fmt.Sprint(k))
				switch k % 10 {
				case 4:
					alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.topic", ""), map[string]string{"topic": fmt.Sprint(i, k)})
				case 7:
					u.OK("PUT", hstest.Path("rooms", string(room), "typing", string(u.UserID)), `{"typing":true,"timeout":1000}`)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	for _, room := range rooms {
		want := page(t, alice, room, "f", "", 500, "")
		for _, f := range followers {
			if got := f.seen[room]; !slices.Equal(got, want) {
				t.Errorf("%s, %d events at a time, has seen %d of %d events (%d different)", f.u.UserID, f.limit, len(got), len(want), len(slices.Compact(slices.Sorted(slices.Values(got)))))
			}
		}
	}
}
