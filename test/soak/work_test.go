package soak_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tidwall/gjson"
)

// noteType is state that everybody may set.
const noteType = "im.carillon.note"

// tally counts what was done.
type tally struct {
	mu   sync.Mutex
	done map[string]int
}

func (y *tally) add(what string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.done == nil {
		y.done = map[string]int{}
	}
	y.done[what]++
}

// work has people do things and sites fail until the time is over.
func (s *soak) work() {
	s.step("work for %s", s.o.lasts)
	var people, harms sync.WaitGroup
	turns := make(chan struct{})
	for range 8 * len(s.sites) {
		people.Go(func() {
			for range turns {
				s.act()
			}
		})
	}
	s.harm(&harms)
	harms.Go(func() {
		for !s.stopped.Load() {
			for _, st := range s.sites {
				st.usage() // keeps the peak
			}
			s.rest(2 * time.Second)
		}
	})
	tick := time.NewTicker(time.Second / time.Duration(s.o.rate))
	defer tick.Stop()
	for end := time.Now().Add(s.o.lasts); time.Now().Before(end); {
		<-tick.C
		select {
		case turns <- struct{}{}:
		default: // all wait for answers
			s.tally.add("turns missed")
		}
	}
	s.stopped.Store(true)
	harms.Wait() // all is whole again
	close(turns)
	people.Wait()
}

// somebody picks a room, and one of those who are meant to be in it.
func (s *soak) somebody() (*person, *room) {
	r := s.staff
	if s.intn(4) > 0 && len(s.rooms) > 1 {
		r = pick(s, s.rooms[1:])
	}
	return pick(s, r.members[pick(s, r.sites)]), r
}

// act has somebody do something.
func (s *soak) act() {
	p, r := s.somebody()
	switch x := s.intn(100); {
	case x < 56:
		s.say(p, r)
	case x < 60:
		s.edit(r)
	case x < 64:
		s.redact(r)
	case x < 78:
		s.read(p, r)
	case x < 82:
		s.count("typing", p, "PUT", "/rooms/"+seg(r.id)+"/typing/"+seg(p.id), map[string]any{"typing": true, "timeout": 5000})
	case x < 92:
		s.churn(r)
	case x < 95:
		s.clash(r)
	case x < 97:
		s.promote(r)
	default:
		admin := s.people[pick(s, r.sites)][0]
		if x == 97 {
			s.count("renamed rooms", admin, "PUT", "/rooms/"+seg(r.id)+"/state/m.room.name", map[string]any{"name": fmt.Sprint("Room ", s.serial.Add(1))})
		} else if q := s.mover(r); q != nil {
			s.count("renamed people", q, "PUT", "/profile/"+seg(q.id)+"/displayname", map[string]any{"displayname": fmt.Sprint("Somebody ", s.serial.Add(1))})
		}
	}
}

// count makes a request once and counts what has come of it. Servers may say no, and may be away; they may not fail.
func (s *soak) count(what string, p *person, method, path string, body any) bool {
	status, answer, err := p.do(method, path, body)
	switch {
	case err != nil:
		s.tally.add("requests without an answer")
	case status == http.StatusOK:
		s.tally.add(what)
		return true
	case status == http.StatusInternalServerError:
		s.t.Errorf("%s %s by %s: %d %s", method, path, p.id, status, answer)
	default:
		s.tally.add("requests refused")
	}
	return false
}

// send sends an event, again and again under the same transaction until it is acknowledged or refused.
func (s *soak) send(p *person, r *room, content map[string]any) *message {
	path := "/rooms/" + seg(r.id) + "/send/m.room.message/" + strconv.FormatInt(s.serial.Add(1), 10)
	for {
		status, answer, err := p.do("PUT", path, content)
		switch {
		case err != nil || status > 500:
			s.tally.add("messages tried again")
			time.Sleep(200 * time.Millisecond)
			continue
		case status == http.StatusOK:
			m := &message{gjson.GetBytes(answer, "event_id").Str, p}
			r.mu.Lock()
			r.sent[m.id], r.newest = m, m
			r.list = append(r.list, m)
			r.mu.Unlock()
			return m
		case status == http.StatusForbidden && p.moves: // is not in the room
			s.tally.add("messages refused")
		default:
			s.t.Errorf("%s says something in %s: %d %s", p.id, r.id, status, answer)
		}
		return nil
	}
}

// say sends a message.
func (s *soak) say(p *person, r *room) *message {
	m := s.send(p, r, map[string]any{"msgtype": "m.text", "body": fmt.Sprintf("%s %d", p.id, s.serial.Add(1))})
	if m != nil {
		s.tally.add("messages")
	}
	return m
}

// earlier picks a message of somebody who stays.
func (s *soak) earlier(r *room) *message {
	r.mu.Lock()
	list := r.list
	r.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	if m := pick(s, list[len(list)*2/3:]); !m.by.moves {
		return m
	}
	return nil
}

func (s *soak) edit(r *room) {
	m := s.earlier(r)
	if m == nil {
		return
	}
	body := fmt.Sprintf("better %d", s.serial.Add(1))
	if s.send(m.by, r, map[string]any{
		"msgtype": "m.text", "body": "* " + body, "m.new_content": map[string]any{"msgtype": "m.text", "body": body},
		"m.relates_to": map[string]any{"rel_type": "m.replace", "event_id": m.id},
	}) != nil {
		s.tally.add("edits")
	}
}

func (s *soak) redact(r *room) {
	m := s.earlier(r)
	if m == nil {
		return
	}
	path := fmt.Sprintf("/rooms/%s/redact/%s/%d", seg(r.id), seg(m.id), s.serial.Add(1))
	if s.count("redactions", m.by, "PUT", path, map[string]any{}) {
		r.mu.Lock()
		r.redacted[m.id] = true
		r.mu.Unlock()
	}
}

// read sends a receipt for the newest message, which the person's server may not know yet.
func (s *soak) read(p *person, r *room) {
	r.mu.Lock()
	m := r.newest
	r.mu.Unlock()
	if m != nil {
		s.count("receipts", p, "POST", "/rooms/"+seg(r.id)+"/receipt/m.read/"+seg(m.id), map[string]any{})
	}
}

// mover picks somebody of a room who comes and goes.
func (s *soak) mover(r *room) *person {
	list := r.members[pick(s, r.sites)]
	if p := list[len(list)-1-s.intn(min(len(list), max(1, len(list)/5)))]; p.moves {
		return p
	}
	return nil
}

// churn changes who is in a room.
func (s *soak) churn(r *room) {
	p := s.mover(r)
	if p == nil {
		return
	}
	admin := s.people[pick(s, r.sites)][0]
	base, who := "/rooms/"+seg(r.id), map[string]string{"user_id": p.id}
	switch s.intn(8) {
	case 0:
		s.count("leaves", p, "POST", base+"/leave", map[string]any{})
	case 1:
		s.count("kicks", admin, "POST", base+"/kick", who)
	case 2:
		s.count("bans", admin, "POST", base+"/ban", who)
	case 3, 4:
		s.count("unbans", admin, "POST", base+"/unban", who)
	case 5:
		s.count("invitations", admin, "POST", base+"/invite", who)
	default:
		via := s.sites[pick(s, r.sites)].name
		s.count("joins", p, "POST", "/join/"+seg(r.id)+"?via="+url.QueryEscape(via), map[string]any{})
	}
}

// clash has up to four sites change the same state at once.
func (s *soak) clash(r *room) {
	path := fmt.Sprintf("/rooms/%s/state/%s/%d", seg(r.id), noteType, s.intn(5))
	var wg sync.WaitGroup
	for _, i := range s.some(4, len(r.sites)) {
		p := s.people[r.sites[i]][0]
		wg.Go(func() { s.count("clashing changes of state", p, "PUT", path, map[string]any{"n": s.serial.Add(1)}) })
	}
	wg.Wait()
}

// promote gives one of those who come and go other power, as the administrator of some site sees things.
func (s *soak) promote(r *room) {
	admin, p := s.people[pick(s, r.sites)][0], s.mover(r)
	if p == nil {
		return
	}
	path := "/rooms/" + seg(r.id) + "/state/m.room.power_levels"
	status, answer, err := admin.do("GET", path, nil)
	if err != nil || status != http.StatusOK {
		return
	}
	var levels map[string]any
	if json.Unmarshal(answer, &levels) != nil {
		return
	}
	users, _ := levels["users"].(map[string]any)
	users = maps.Clone(users)
	for _, id := range slices.Sorted(maps.Keys(users)) { // keeps the content small
		if len(users) > len(s.sites)+5 && s.intn(2) == 0 && users[id] != 100.0 {
			delete(users, id)
		}
	}
	users[p.id] = s.intn(40)
	levels["users"] = users
	s.count("changes of power", admin, "PUT", path, levels)
}
