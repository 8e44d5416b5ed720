package hstest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

const costService = "as-token-of-the-cost-tests"

// crowd is a room full of people, made without the network; requests go to the
// handler directly, as its users by an application service.
type crowd struct {
	s     *hstest.Server
	h     http.Handler
	room  matrix.RoomID
	users []matrix.UserID
	since []string
}

func newCrowd(tb testing.TB, n int) *crowd {
	tb.Helper()
	reg, err := accounts.ParseRegistration([]byte(`
id: cost
url: null
as_token: ` + costService + `
hs_token: unused
sender_localpart: costbot
rate_limited: false
namespaces: {users: [{exclusive: false, regex: '@u.*'}], rooms: [], aliases: []}
`))
	if err != nil {
		tb.Fatal(err)
	}
	s := hstest.New(tb, hstest.With(reg))
	c := &crowd{s: s, h: s.Handler(), users: make([]matrix.UserID, n), since: make([]string, n)}
	for i := range c.users {
		c.users[i] = matrix.UserID(fmt.Sprintf("@u%d:%s", i, s.Name))
	}
	var wg sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				c.call(tb, "POST", "/_matrix/client/v3/register", -1, fmt.Sprintf(`{"type":"m.login.application_service","username":"u%d","inhibit_login":true}`, i))
			}
		})
	}
	for i := range c.users {
		next <- i
	}
	close(next)
	wg.Wait()
	if c.room, err = s.Rooms().Create(tb.Context(), c.users[0], rooms.CreateRequest{Preset: "public_chat", Name: "everybody"}, 0); err != nil {
		tb.Fatal(err)
	}
	queue := make(chan matrix.UserID)
	for range 16 {
		wg.Go(func() {
			for u := range queue {
				if err := s.Rooms().Join(tb.Context(), rooms.MemberChange{Room: c.room, Sender: u, Target: u}); err != nil {
					tb.Error(err)
				}
			}
		})
	}
	for _, u := range c.users[1:] {
		queue <- u
	}
	close(queue)
	wg.Wait()
	return c
}

func (c *crowd) call(tb testing.TB, method, path string, user int, body string) []byte {
	tb.Helper()
	sep := "?"
	if user >= 0 {
		if u, err := url.Parse(path); err == nil && u.RawQuery != "" {
			sep = "&"
		}
		path += sep + "user_id=" + url.QueryEscape(string(c.users[user]))
	}
	var r io.Reader
	if body != "" {
		r = stringReader(body)
	}
	req := httptest.NewRequestWithContext(tb.Context(), method, path, r)
	req.Header.Set("Authorization", "Bearer "+costService)
	w := httptest.NewRecorder()
	c.h.ServeHTTP(w, req)
	if w.Code != 200 {
		tb.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	return w.Body.Bytes()
}

type stringBody struct{ s string }

func (b *stringBody) Read(p []byte) (int, error) {
	if b.s == "" {
		return 0, io.EOF
	}
	n := copy(p, b.s)
	b.s = b.s[n:]
	return n, nil
}

func stringReader(s string) io.Reader { return &stringBody{s} }

const lazy = "%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A10%2C%22lazy_load_members%22%3Atrue%7D%2C%22state%22%3A%7B%22lazy_load_members%22%3Atrue%7D%7D%7D"

// sync reads on for one user and returns the body.
func (c *crowd) sync(tb testing.TB, user int, timeout int) []byte {
	tb.Helper()
	b := c.call(tb, "GET", fmt.Sprintf("/_matrix/client/v3/sync?set_presence=offline&timeout=%d&filter=%s&since=%s", timeout, lazy, c.since[user]), user, "")
	c.since[user] = gjson.GetBytes(b, "next_batch").Str
	return b
}

func (c *crowd) say(tb testing.TB) {
	tb.Helper()
	_, err := c.s.Rooms().Send(tb.Context(), rooms.Draft{
		Room: c.room, Sender: c.users[0], Type: "m.room.message", Content: json.RawMessage(`{"msgtype":"m.text","body":"hello all"}`),
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// settle waits until the search index, which works a moment later, has caught up.
func (c *crowd) settle(tb testing.TB) {
	tb.Helper()
	c.call(tb, "POST", "/_matrix/client/v3/search", 0, `{"search_categories":{"room_events":{"search_term":"hello"}}}`)
}

// A sync that finds nothing asks the database nothing, and a message costs the
// clients that hear of it a handful of statements together, not each.
func TestSyncQueries(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, 30)
	for i := range c.users {
		c.sync(t, i, 0)
	}
	for i := range c.users { // the first reads of receipts and counts are behind us
		c.sync(t, i, 0)
	}
	c.settle(t)
	idle := c.fewest(func() {
		for range 5 {
			for i := range c.users {
				c.sync(t, i, 0)
			}
		}
	})
	if idle != 0 {
		t.Errorf("%d idle syncs ran %d statements", 5*len(c.users), idle)
	}
	c.say(t)
	c.settle(t)
	before := c.s.DB().Statements()
	for i := range c.users {
		if n := gjson.GetBytes(c.sync(t, i, 0), "rooms.join").Map(); len(n) != 1 {
			t.Fatalf("user %d hears of %d rooms", i, len(n))
		}
	}
	if n := c.s.DB().Statements() - before; n > 12 {
		t.Errorf("%d clients hearing of one message ran %d statements", len(c.users), n)
	}
}

// fewest is how many statements fn ran in the best of three rounds: what the
// server does now and then by itself may fall into one, but not into each.
func (c *crowd) fewest(fn func()) uint64 {
	best := uint64(math.MaxUint64)
	for round := 0; round < 3 && best > 0; round++ {
		before := c.s.DB().Statements()
		fn()
		best = min(best, c.s.DB().Statements()-before)
	}
	return best
}

// BenchmarkSyncWake is what one client costs that is told of one message, the
// HTTP library left out.
func BenchmarkSyncWake(b *testing.B) {
	const clients = 200
	c := newCrowd(b, 1000)
	for i := range clients {
		c.sync(b, i, 0)
	}
	for b.Loop() {
		b.StopTimer()
		c.say(b)
		b.StartTimer()
		for i := range clients {
			c.sync(b, i, 0)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/clients, "ns/client")
}

// BenchmarkReceiptWake is the same for a receipt.
func BenchmarkReceiptWake(b *testing.B) {
	const clients = 200
	c := newCrowd(b, 1000)
	c.say(b)
	for i := range clients {
		c.sync(b, i, 0)
	}
	reader := 0
	for b.Loop() {
		b.StopTimer()
		if reader++; reader == len(c.users) {
			c.say(b)
			reader = 1
			for i := range clients {
				c.sync(b, i, 0)
			}
		}
		list, _ := c.s.Hub().Recent(c.room, 0, c.s.Hub().Head())
		c.call(b, "POST", "/_matrix/client/v3/rooms/"+url.PathEscape(string(c.room))+"/receipt/m.read/"+url.PathEscape(string(list[len(list)-1].ID)), reader, "{}")
		b.StartTimer()
		for i := range clients {
			c.sync(b, i, 0)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/clients, "ns/client")
}

// BenchmarkIdleSync is a sync that finds nothing.
func BenchmarkIdleSync(b *testing.B) {
	c := newCrowd(b, 100)
	c.sync(b, 5, 0)
	b.ReportAllocs()
	for b.Loop() {
		c.sync(b, 5, 0)
	}
}

// BenchmarkInitialSync is the first sync of a member of a room of 1,000.
func BenchmarkInitialSync(b *testing.B) {
	c := newCrowd(b, 1000)
	for _, lazyMembers := range []bool{true, false} {
		b.Run(fmt.Sprintf("lazy=%v", lazyMembers), func(b *testing.B) {
			for b.Loop() {
				if lazyMembers {
					c.since[7] = ""
					c.sync(b, 7, 0)
					continue
				}
				c.call(b, "GET", "/_matrix/client/v3/sync?set_presence=offline", 7, "")
			}
		})
	}
}

// BenchmarkStateDelta is a sync over a gap in which the room's state changed.
func BenchmarkStateDelta(b *testing.B) {
	c := newCrowd(b, 1000)
	c.sync(b, 5, 0)
	since := c.since[5]
	key := ""
	for i := range 60 {
		_, err := c.s.Rooms().Send(b.Context(), rooms.Draft{
			Room: c.room, Sender: c.users[0], Type: "m.room.topic", StateKey: &key, Content: json.RawMessage(fmt.Sprintf(`{"topic":"%d"}`, i)),
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	time.Sleep(10 * time.Millisecond)
	for b.Loop() {
		c.since[5] = since
		c.sync(b, 5, 0)
	}
}
