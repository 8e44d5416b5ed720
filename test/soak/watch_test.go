package soak_test

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/tidwall/gjson"
)

// watcher is a client that follows its site by /sync all the time, as a person's client would: it goes on from the
// same place after its server was away, and reads with /messages what a sync has left out.
type watcher struct {
	s     *soak
	p     *person
	since string
	seen  map[string]map[string]int // by room: how often a sync has shown an event
	holes []hole
	last  time.Time // newest answer
	ended sync.WaitGroup
	stop  chan struct{}
}

// hole is what a sync has left out between two places.
type hole struct{ room, from, to string }

const watchFilter = `{"presence":{"types":[]},"account_data":{"types":[]},"room":{"timeline":{"limit":100},"state":{"lazy_load_members":true},"ephemeral":{"types":[]},"account_data":{"types":[]}}}`

// watch has the second person of each site watch.
func (s *soak) watch() {
	for _, list := range s.people {
		w := &watcher{s: s, p: list[1], seen: map[string]map[string]int{}, stop: make(chan struct{})}
		if _, err := w.sync(0); err != nil {
			s.t.Fatalf("site %d: the first sync: %v", w.p.site.n, err)
		}
		s.watchers = append(s.watchers, w)
		w.ended.Go(func() {
			for {
				select {
				case <-w.stop:
					return
				default:
				}
				if _, err := w.sync(10 * time.Second); err != nil {
					time.Sleep(200 * time.Millisecond)
				}
			}
		})
	}
}

// sync asks for what is new; it reports whether any timeline had something.
func (w *watcher) sync(timeout time.Duration) (news bool, err error) {
	path := fmt.Sprintf("/sync?timeout=%d&filter=%s", timeout.Milliseconds(), url.QueryEscape(watchFilter))
	if w.since != "" {
		path += "&since=" + url.QueryEscape(w.since)
	}
	status, answer, err := w.p.do("GET", path, nil)
	if err != nil {
		return false, err
	}
	if status != http.StatusOK {
		if status <= 500 {
			w.s.t.Errorf("site %d: sync: %d %s", w.p.site.n, status, answer)
		}
		return false, fmt.Errorf("sync: %d", status)
	}
	r := gjson.ParseBytes(answer)
	r.Get("rooms.join").ForEach(func(id, room gjson.Result) bool {
		seen := w.seen[id.Str]
		if seen == nil {
			seen = map[string]int{}
			w.seen[id.Str] = seen
		}
		line := room.Get("timeline")
		for _, e := range line.Get("events").Array() {
			seen[e.Get("event_id").Str]++
			news = true
		}
		if line.Get("limited").Bool() && w.since != "" {
			w.holes = append(w.holes, hole{id.Str, line.Get("prev_batch").Str, w.since})
		}
		return true
	})
	w.since, w.last = r.Get("next_batch").Str, time.Now()
	return news, nil
}

// fill reads what a sync has left out.
func (w *watcher) fill(h hole) (ids []string, err error) {
	for from := h.from; from != ""; {
		q := url.Values{"dir": {"b"}, "limit": {"500"}, "from": {from}, "to": {h.to}}
		status, answer, err := w.p.do("GET", "/rooms/"+seg(h.room)+"/messages?"+q.Encode(), nil)
		if err != nil || status != http.StatusOK {
			return nil, fmt.Errorf("messages: %d %s %w", status, answer, err)
		}
		r := gjson.ParseBytes(answer)
		for _, e := range r.Get("chunk").Array() {
			ids = append(ids, e.Get("event_id").Str)
		}
		from = r.Get("end").Str
	}
	return ids, nil
}

// finish ends the watching: it takes the last news, and fills what was left out.
func (w *watcher) finish() {
	close(w.stop)
	w.ended.Wait()
	t, n := w.s.t, w.p.site.n
	for news := true; news; {
		var err error
		if news, err = w.sync(0); err != nil {
			t.Errorf("site %d: the last sync: %v", n, err)
			return
		}
	}
	for room, seen := range w.seen {
		for id, times := range seen {
			if times > 1 {
				t.Errorf("site %d has shown %s of %s %d times in /sync", n, id, room, times)
			}
		}
	}
	for _, h := range w.holes {
		ids, err := w.fill(h)
		if err != nil {
			t.Errorf("site %d: %v", n, err)
		}
		here := map[string]bool{}
		for _, id := range ids {
			if here[id] || w.seen[h.room][id] > 1 {
				t.Errorf("site %d has shown %s of %s twice in /messages", n, id, h.room)
			}
			here[id] = true
			w.seen[h.room][id]++
		}
	}
	for room, seen := range w.seen {
		for id, times := range seen {
			if times > 1 {
				t.Errorf("site %d has shown %s of %s %d times in /sync and /messages", n, id, room, times)
			}
		}
	}
}
