package soak_test

import (
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/test/program"
)

// joiners is how many people of one site join at a time.
const joiners = 4

// build starts the sites, makes the accounts and fills the rooms.
func (s *soak) build() {
	bin, ca, prefix := program.Path(s.t), httpapitest.NewAuthority(s.t), addresses(s.t)
	for n := range s.o.sites {
		s.sites = append(s.sites, newSite(s.t, n, prefix, bin, ca, s.wires))
	}
	s.wires.sites = s.sites
	began := time.Now()
	lap := func() time.Duration {
		d := time.Since(began)
		began = time.Now()
		return d
	}
	if !s.everywhere(func(st *site) error { return st.start() }) {
		return
	}
	s.step("%d sites run after %s", len(s.sites), lap().Round(time.Millisecond))
	s.people = make([][]*person, len(s.sites))
	for _, st := range s.sites {
		for i := range s.o.people {
			s.people[st.n] = append(s.people[st.n], &person{site: st, n: i, id: fmt.Sprintf("@p%d:%s", i, st.name), moves: i >= max(4, s.o.people*4/5)})
		}
	}
	if !s.everywhere(func(st *site) error { return each(s.people[st.n], joiners, s.register) }) {
		return
	}
	s.times.accounts = lap()
	s.step("%d accounts after %s", len(s.sites)*s.o.people, s.times.accounts.Round(time.Millisecond))
	s.found()
	if err := s.fill(s.staff); err != nil {
		s.t.Error(err)
		return
	}
	s.times.joins = lap()
	s.step("all have joined the room of all staff after %s", s.times.joins.Round(time.Millisecond))
	if err := each(s.rooms[1:], 4, s.fill); err != nil {
		s.t.Error(err)
		return
	}
	for _, r := range s.rooms { // the first message: what comparing goes back to
		s.say(r.home, r)
	}
	if !s.everywhere(s.drained) {
		return
	}
	s.times.created = lap()
	s.step("%d departments after %s", len(s.rooms)-1, s.times.created.Round(time.Millisecond))
}

// everywhere does something at all sites at once; false when it failed somewhere.
func (s *soak) everywhere(do func(*site) error) bool {
	var wg sync.WaitGroup
	for _, st := range s.sites {
		wg.Go(func() {
			if err := do(st); err != nil {
				s.t.Errorf("site %d: %v", st.n, err)
			}
		})
	}
	wg.Wait()
	return !s.t.Failed()
}

// each does something with all of a list, a few at a time, and gives the first error.
func each[T any](list []T, atOnce int, do func(T) error) (first error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	next := 0
	for range atOnce {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				failed := first != nil
				mu.Unlock()
				if failed || i >= len(list) {
					return
				}
				if err := do(list[i]); err != nil {
					mu.Lock()
					first = err
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}

// register makes an account.
func (s *soak) register(p *person) error {
	own := p.n < 2 // these log in, others act through the application service
	service := &person{site: p.site, id: "@soakbot:" + p.site.name}
	r, err := s.must(service, "POST", "/register", map[string]any{
		"type": "m.login.application_service", "username": fmt.Sprint("p", p.n), "inhibit_login": !own,
	})
	p.token = r.Get("access_token").Str
	return err
}

// found decides which rooms there are, and who is in them.
func (s *soak) found() {
	s.staff = &room{home: s.people[0][0], open: "public", members: map[int][]*person{}}
	for n := range s.sites {
		s.staff.sites = append(s.staff.sites, n)
	}
	for n, list := range s.people {
		s.staff.members[n] = list
	}
	s.rooms = []*room{s.staff}
	kinds := []string{"public", "restricted", "invite"}
	for i := range s.o.departments {
		home := i % len(s.sites)
		r := &room{home: s.people[home][0], open: kinds[i%len(kinds)], sites: []int{home}, members: map[int][]*person{}}
		for _, n := range s.some(1+i%4, len(s.sites)) {
			if n != home {
				r.sites = append(r.sites, n)
			}
		}
		s.rooms = append(s.rooms, r)
	}
	for n := range s.sites { // everybody is in one department of those that their site takes part in
		var here []*room
		for _, r := range s.rooms[1:] {
			for _, at := range r.sites {
				if at == n {
					r.members[n] = append(r.members[n], s.people[n][:2]...)
					here = append(here, r)
				}
			}
		}
		for i, p := range s.people[n][2:] {
			if len(here) > 0 {
				r := here[i%len(here)]
				r.members[n] = append(r.members[n], p)
			}
		}
	}
}

// create makes a room, to which the administrators of all its sites may come.
func (s *soak) create(r *room) error {
	r.sent, r.redacted = map[string]*message{}, map[string]bool{}
	powers := map[string]int{}
	var invited []string
	for _, n := range r.sites {
		if p := s.people[n][0]; p != r.home {
			powers[p.id] = 100
			if r.open == "invite" {
				invited = append(invited, p.id)
			}
		}
	}
	rule := map[string]any{"join_rule": r.open}
	if r.open == "restricted" {
		rule["allow"] = []any{map[string]string{"type": "m.room_membership", "room_id": s.staff.id}}
	}
	answer, err := s.must(r.home, "POST", "/createRoom", map[string]any{
		"preset": "public_chat", "name": "A room", "invite": invited,
		"initial_state": []any{map[string]any{"type": "m.room.join_rules", "state_key": "", "content": rule}},
		"power_level_content_override": map[string]any{
			"users": powers, "events": map[string]int{noteType: 0}, "events_default": 0, "invite": 0,
		},
	})
	if err != nil {
		return err
	}
	r.id = answer.Get("room_id").Str
	return nil
}

func (s *soak) join(p *person, r *room, via *site) error {
	_, err := s.must(p, "POST", "/join/"+seg(r.id)+"?via="+url.QueryEscape(via.name), map[string]any{})
	return err
}

// enter has the people of one site join a room: the administrator through another site, then the others.
func (s *soak) enter(r *room, n int) error {
	admin := s.people[n][0]
	if admin != r.home {
		began := time.Now()
		if err := s.join(admin, r, r.home.site); err != nil {
			return err
		}
		if r == s.staff {
			s.times.entered = time.Since(began) // of the last site: the room is nearly full
		}
	}
	return each(r.members[n][1:], joiners, func(p *person) error {
		if r.open == "invite" {
			if _, err := s.must(admin, "POST", "/rooms/"+seg(r.id)+"/invite", map[string]string{"user_id": p.id}); err != nil {
				return err
			}
		}
		return s.join(p, r, r.home.site)
	})
}

// fill makes a room and has its people join, site after site as a company would grow. They do not all come at once:
// what happens when much happens at several sites is the matter of the work that follows.
func (s *soak) fill(r *room) error {
	if err := s.create(r); err != nil {
		return err
	}
	for _, n := range r.sites {
		if err := s.enter(r, n); err != nil {
			return err
		}
		if err := s.drained(s.sites[n]); err != nil {
			return err
		}
	}
	return nil
}
