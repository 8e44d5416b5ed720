package soak_test

import (
	"net/http"
	"sync"
	"syscall"
	"time"
)

// absence is how a site that was cut off for long came back.
type absence struct {
	site            int
	lasted          time.Duration
	heard, wasHeard time.Duration // after the repair: until it knew what others had said, and they what it had
	missed          int           // messages that others sent meanwhile, in its rooms
}

// harm lets things fail until the time is over: the roads, the processes, and one site for long.
func (s *soak) harm(wg *sync.WaitGroup) {
	for range max(1, len(s.sites)/6) {
		wg.Go(func() { s.until(s.harmRoads) })
		wg.Go(func() { s.until(s.harmProcess) })
	}
	if s.o.lasts >= 40*time.Second && len(s.sites) > 2 {
		wg.Go(s.awayForLong)
	}
}

func (s *soak) until(do func()) {
	for {
		s.rest(s.span())
		if s.stopped.Load() {
			return
		}
		do()
	}
}

// rest sleeps, and ends when the time is over.
func (s *soak) rest(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end) && !s.stopped.Load(); {
		time.Sleep(20 * time.Millisecond)
	}
}

// span is how long something stays broken, or whole: up to a thirtieth of the time.
func (s *soak) span() time.Duration {
	most := min(max(s.o.lasts/30, 2*time.Second), 30*time.Second)
	return 300*time.Millisecond + time.Duration(s.intn(int(most)))
}

// others are all sites but some.
func (s *soak) others(some ...int) (list []int) {
	for n := range s.sites {
		other := true
		for _, x := range some {
			other = other && x != n
		}
		if other {
			list = append(list, n)
		}
	}
	return list
}

// harmRoads breaks a part of the network for a while.
func (s *soak) harmRoads() {
	two := s.some(2, len(s.sites))
	a, b := two[0], two[1%len(two)]
	var repair func()
	switch s.intn(5) {
	case 0:
		s.tally.add("links cut")
		repair = s.wires.shut(between([]int{a}, []int{b}))
	case 1:
		s.tally.add("links cut in one direction")
		repair = s.wires.shut([]way{{a, b}})
	case 2:
		s.tally.add("sites cut off")
		repair = s.wires.shut(between([]int{a}, s.others(a)))
	case 3:
		s.tally.add("partitions in halves")
		half := s.some(len(s.sites)/2, len(s.sites))
		repair = s.wires.shut(between(half, s.others(half...)))
	default:
		s.tally.add("links slowed")
		repair = s.wires.delay(between([]int{a}, s.others(a)))
	}
	s.rest(s.span())
	repair()
}

// harmProcess kills, freezes or restarts a site.
func (s *soak) harmProcess() {
	st := pick(s, s.sites)
	st.harm.Lock()
	defer st.harm.Unlock()
	switch s.intn(5) {
	case 0, 1:
		s.tally.add("processes killed")
		st.kill()
		s.rest(s.span() / 4)
	case 2:
		s.tally.add("restarts")
		if took := st.end(syscall.SIGTERM); took > 12*time.Second {
			s.t.Errorf("site %d took %s to stop", st.n, took)
		}
	default:
		s.tally.add("processes frozen")
		st.signal(syscall.SIGSTOP)
		s.rest(s.span())
		st.signal(syscall.SIGCONT)
		return
	}
	if err := st.start(); err != nil {
		s.t.Error(err)
		s.stopped.Store(true)
	}
}

// newest lists the newest message of each of a site's rooms, sent from elsewhere or from there.
func (s *soak) newestOf(n int, elsewhere bool) map[*room]*message {
	out := map[*room]*message{}
	for _, r := range s.roomsOf(n) {
		r.mu.Lock()
		for i := len(r.list) - 1; i >= 0; i-- {
			if m := r.list[i]; (m.by.site.n != n) == elsewhere && !m.by.moves {
				out[r] = m
				break
			}
		}
		r.mu.Unlock()
	}
	return out
}

func (s *soak) roomsOf(n int) (list []*room) {
	for _, r := range s.rooms {
		if len(r.members[n]) > 0 {
			list = append(list, r)
		}
	}
	return list
}

func (s *soak) countSent(n int) (sum int) {
	for _, r := range s.roomsOf(n) {
		r.mu.Lock()
		sum += len(r.sent)
		r.mu.Unlock()
	}
	return sum
}

// awayForLong cuts a site off for a quarter of the time, while it and all others go on, and measures how it comes back.
func (s *soak) awayForLong() {
	s.rest(s.o.lasts / 4)
	n := s.intn(len(s.sites))
	st := s.sites[n]
	st.harm.Lock() // nobody kills it: what is measured is the way back
	defer st.harm.Unlock()
	a := absence{site: n, missed: s.countSent(n)}
	began := time.Now()
	repair := s.wires.shut(between([]int{n}, s.others(n)))
	s.rest(min(s.o.lasts/4, 5*time.Minute))
	repair()
	a.lasted, a.missed = time.Since(began), s.countSent(n)-a.missed
	back := time.Now()
	for r, m := range s.newestOf(n, true) {
		s.await(s.people[n][0], r, m)
	}
	a.heard = time.Since(back)
	for r, m := range s.newestOf(n, false) {
		for _, at := range r.sites {
			s.await(s.people[at][0], r, m)
		}
	}
	a.wasHeard = time.Since(back)
	s.step("site %d was away for %s, missed %d messages, knew the newest after %s, and was heard everywhere after %s", n,
		a.lasted.Round(time.Second), a.missed, a.heard.Round(100*time.Millisecond), a.wasHeard.Round(100*time.Millisecond))
	s.times.away = append(s.times.away, a)
}

// await waits until a server knows a message.
func (s *soak) await(p *person, r *room, m *message) {
	for end := time.Now().Add(s.o.patience); ; time.Sleep(100 * time.Millisecond) {
		status, answer, err := p.do("GET", "/rooms/"+seg(r.id)+"/event/"+seg(m.id), nil)
		if err == nil && status == http.StatusOK {
			return
		}
		if time.Now().After(end) {
			waits, _ := s.waiting(m.by.site)
			s.t.Errorf("site %d does not know %s of %s, which %s sent: %d %s %v; what waits at the sender's: %s\nthe end of its log:\n%s",
				p.site.n, m.id, r.id, m.by.id, status, answer, err, waits, p.site.tail())
			return
		}
	}
}
