package soak_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/tidwall/gjson"
)

// settle lets everything come together: each site says a last word in each of its rooms, somebody of each site reads
// the last of all words, and then nothing may be left that waits to be sent.
func (s *soak) settle() {
	began := time.Now()
	s.step("the last words")
	s.eachPlace(func(r *room, n int) { s.say(s.people[n][0], r) })
	s.eachPlace(func(r *room, n int) { s.await(s.people[n][0], r, r.newest) })
	s.eachPlace(func(r *room, n int) {
		for _, p := range s.steady(r, n) {
			status, answer, err := p.do("POST", "/rooms/"+seg(r.id)+"/receipt/m.read/"+seg(r.newest.id), map[string]any{})
			if err != nil || status != http.StatusOK {
				s.t.Errorf("the last receipt of %s: %d %s %v", p.id, status, answer, err)
			}
		}
	})
	s.everywhere(s.drained)
	s.everywhere(s.awaitReceipts)
	s.times.settled = time.Since(began)
	s.step("nothing waits to be sent after %s", s.times.settled.Round(100*time.Millisecond))
}

// drained waits until a site has sent everything to the others.
func (s *soak) drained(st *site) error {
	for end := time.Now().Add(s.o.patience); ; time.Sleep(50 * time.Millisecond) {
		waits, err := s.waiting(st)
		if err == nil && waits == "" {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(err, fmt.Errorf("things still wait to be sent: %s", waits))
		}
	}
}

const receiptFilter = `{"presence":{"types":[]},"account_data":{"types":[]},"room":{"timeline":{"limit":1},"state":{"types":[]},"ephemeral":{"types":["m.receipt"]},"account_data":{"types":[]}}}`

// awaitReceipts waits until a client of a site sees everybody's last receipts. Servers may hold receipts back for a
// while, so they come later than what waits in the queues.
func (s *soak) awaitReceipts(st *site) error {
	for end := time.Now().Add(s.o.patience); ; time.Sleep(500 * time.Millisecond) {
		status, answer, err := s.people[st.n][0].do("GET", "/sync?filter="+url.QueryEscape(receiptFilter), nil)
		if err != nil || status != http.StatusOK {
			return errors.Join(err, fmt.Errorf("sync: %d %s", status, answer[:min(len(answer), 500)]))
		}
		missing, example := 0, ""
		rooms := gjson.ParseBytes(answer).Get("rooms.join").Map()
		for _, r := range s.roomsOf(st.n) {
			has := map[string]string{}
			rooms[r.id].Get("ephemeral.events.0.content").ForEach(func(event, types gjson.Result) bool {
				for user := range types.Get("m\\.read").Map() {
					has[user] = event.Str
				}
				return true
			})
			for _, n := range r.sites {
				for _, p := range s.steady(r, n) {
					if has[p.id] != r.newest.id {
						missing++
						example = fmt.Sprintf("%s in %s is at %q, not at %s", p.id, r.id, has[p.id], r.newest.id)
					}
				}
			}
		}
		if missing == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d receipts have not arrived: %s", missing, example)
		}
	}
}

// steady are those of a site who send the last receipts of a room.
func (s *soak) steady(r *room, n int) (list []*person) {
	for _, p := range r.members[n] {
		if !p.moves && len(list) < 4 {
			list = append(list, p)
		}
	}
	return list
}

// eachPlace does something in all rooms at all their sites.
func (s *soak) eachPlace(do func(*room, int)) {
	_ = each(s.sites, len(s.sites), func(st *site) error {
		for _, r := range s.roomsOf(st.n) {
			do(r, st.n)
		}
		return nil
	})
}

// waiting says what a site has not yet sent to others.
func (s *soak) waiting(st *site) (string, error) {
	status, answer, err := s.people[st.n][0].call("GET", "/_carillon/admin/v1/federation/destinations?limit=1000", nil)
	if err != nil || status != http.StatusOK {
		return "", errors.Join(err, fmt.Errorf("destinations: %d %s", status, answer))
	}
	for _, d := range gjson.GetBytes(answer, "destinations").Array() {
		if d.Get("waiting_transactions").Int() > 0 || d.Get("failures").Int() > 0 || d.Get("behind").Bool() {
			return d.Raw, nil
		}
	}
	return "", nil
}

// shown is a message as a client sees it.
type shown struct {
	times    int
	redacted bool
}

// view is what a site shows of a room.
type view struct {
	state    map[string]string
	messages map[string]shown // since the first of the room
}

func (s *soak) view(n int, r *room) (v view, err error) {
	p := s.people[n][0]
	v = view{map[string]string{}, map[string]shown{}}
	status, answer, err := p.do("GET", "/rooms/"+seg(r.id)+"/state", nil)
	if err != nil || status != http.StatusOK {
		return v, errors.Join(err, fmt.Errorf("state: %d %s", status, answer))
	}
	gjson.ParseBytes(answer).ForEach(func(_, e gjson.Result) bool {
		v.state[e.Get("type").Str+" "+e.Get("state_key").Str] = e.Get("event_id").Str
		return true
	})
	first := r.list[0].id
	for from := ""; ; {
		q := url.Values{"dir": {"b"}, "limit": {"500"}, "filter": {`{"types":["m.room.message"]}`}}
		if from != "" {
			q.Set("from", from)
		}
		status, answer, err := p.do("GET", "/rooms/"+seg(r.id)+"/messages?"+q.Encode(), nil)
		if err != nil || status != http.StatusOK {
			return v, errors.Join(err, fmt.Errorf("messages: %d %s", status, answer))
		}
		a := gjson.ParseBytes(answer)
		done := false
		for _, e := range a.Get("chunk").Array() {
			id := e.Get("event_id").Str
			v.messages[id] = shown{v.messages[id].times + 1, !e.Get("content.body").Exists()}
			done = done || id == first
		}
		if from = a.Get("end").Str; from == "" || done {
			return v, nil
		}
	}
}

// differences says what is not right in a room.
func (s *soak) differences(r *room, views map[int]view) (list []string) {
	tell := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	base := r.sites[0]
	for _, n := range r.sites {
		v := views[n]
		lost, unredacted := 0, 0
		for id, m := range r.sent {
			if v.messages[id].times == 0 && !m.by.moves {
				lost++
			}
		}
		if lost > 0 {
			tell("site %d lacks %d of %d messages", n, lost, len(r.sent))
		}
		for id, m := range v.messages {
			if m.times > 1 {
				tell("site %d shows %s %d times", n, id, m.times)
			}
			if r.sent[id] == nil {
				tell("site %d shows %s, which was never acknowledged", n, id)
			}
			if r.redacted[id] && !m.redacted {
				unredacted++
			}
		}
		if unredacted > 0 {
			tell("site %d shows %d messages that were redacted", n, unredacted)
		}
		for k, id := range v.state {
			if other := views[base].state[k]; other != id {
				tell("site %d has %s for %q, site %d has %q", n, id, k, base, other)
			}
		}
		for k := range views[base].state {
			if _, ok := v.state[k]; !ok {
				tell("site %d lacks %q", n, k)
			}
		}
	}
	return list
}

// compare holds what the sites show of the rooms against each other, and against what was sent.
func (s *soak) compare() {
	_ = each(s.watchers, len(s.watchers), func(w *watcher) error { w.finish(); return nil })
	for _, r := range s.rooms {
		views := map[int]view{}
		var mu sync.Mutex
		err := each(r.sites, 4, func(n int) error {
			v, err := s.view(n, r)
			mu.Lock()
			defer mu.Unlock()
			views[n] = v
			return err
		})
		if err != nil {
			s.t.Errorf("room %s: %v", r.id, err)
			continue
		}
		if diff := s.differences(r, views); len(diff) > 0 {
			s.t.Errorf("room %s (%s, %d sites) is not the same everywhere: %d differences", r.id, r.open, len(r.sites), len(diff))
			for _, d := range diff[:min(len(diff), 20)] {
				s.t.Log(d)
			}
		}
		for _, n := range r.sites {
			missed, seen := 0, s.watchers[n].seen[r.id]
			for id := range views[n].messages {
				if seen[id] == 0 && id != r.list[0].id {
					missed++
				}
			}
			if missed > 0 {
				s.t.Errorf("the client at site %d has missed %d of %d messages of %s", n, missed, len(views[n].messages), r.id)
			}
		}
	}
	s.step("all sites were compared")
}
