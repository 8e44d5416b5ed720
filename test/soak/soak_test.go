// Package soak runs several homeservers as processes on loopback addresses, has their people talk, come and go while
// doors are shut and processes killed and frozen, and compares in the end: every server has the same state of every
// room, every message that was acknowledged is on every server exactly once, and no room is left in pieces.
//
// CARILLON_SOAK_SITES and CARILLON_SOAK_TIME make it larger than what the ordinary tests run; CARILLON_SOAK_REPORT
// names a file for the report.
package soak_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// maxTips is how many ends a room may have on a server when all is quiet.
const maxTips = 10

// person is somebody with an account at a site.
type person struct {
	site      *site
	id, token string
}

// soak is one run.
type soak struct {
	t      *testing.T
	sites  []*site
	people [][]*person // by site; the first of each stays in every room
	rooms  []string    // the first is everybody's; the last sees people come and go
	rnd    *rand.Rand
	mu     sync.Mutex // of rnd, sent, newest
	sent   map[string]map[string]bool
	newest map[string]string // event of a room, for receipts

	serial                                  atomic.Int64
	acknowledged, receipts, moves, states   atomic.Int64
	cuts, kills, freezes, retries, refusals atomic.Int64
	stopped                                 atomic.Bool
	began                                   time.Time
}

func setting(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return otherwise
}

func length(name string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(os.Getenv(name)); err == nil && d > 0 {
		return d
	}
	return otherwise
}

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute}}

// do makes a request; err is set when there was no answer.
func (p *person) do(method, path string, body any) (status int, answer []byte, err error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, p.site.url+"/_matrix/client/v3"+path, r)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// must makes a request that has to succeed while nothing is broken yet.
func (s *soak) must(p *person, method, path string, body any) gjson.Result {
	s.t.Helper()
	status, answer, err := p.do(method, path, body)
	if err != nil || status != http.StatusOK {
		s.t.Fatalf("%s %s by %s: %d %s %v", method, path, p.id, status, answer, err)
	}
	return gjson.ParseBytes(answer)
}

func seg(s string) string { return url.PathEscape(s) }

func TestSoak(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if n := setting("CARILLON_SOAK_SEED", 0); n > 0 {
		seed = uint64(n)
	}
	s := &soak{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), sent: map[string]map[string]bool{}, newest: map[string]string{}, began: time.Now()}
	t.Logf("CARILLON_SOAK_SEED=%d", seed)
	sites, lasts := setting("CARILLON_SOAK_SITES", 3), length("CARILLON_SOAK_TIME", 20*time.Second)
	s.build(sites, setting("CARILLON_SOAK_PEOPLE", 4), setting("CARILLON_SOAK_ROOMS", 3))
	var work sync.WaitGroup
	for range setting("CARILLON_SOAK_WORKERS", 6) {
		work.Go(s.talk)
	}
	work.Go(s.harm)
	time.Sleep(lasts)
	s.stopped.Store(true)
	work.Wait()
	s.settle()
	s.compare()
	s.report(lasts)
}

// build starts the sites and fills the rooms.
func (s *soak) build(sites, people, rooms int) {
	t := s.t
	bin, ca := program(t), httpapitest.NewAuthority(t)
	var starts sync.WaitGroup
	for n := range sites {
		st := newSite(t, n, bin, ca)
		s.sites = append(s.sites, st)
		starts.Go(func() {
			if err := st.start(); err != nil {
				t.Error(err)
			}
		})
	}
	if starts.Wait(); t.Failed() {
		t.FailNow()
	}
	for _, st := range s.sites {
		var list []*person
		for i := range people {
			p := &person{site: st}
			r := s.must(p, "POST", "/register", map[string]any{"username": fmt.Sprint("p", i), "password": "x1-long-enough", "auth": map[string]string{"type": "m.login.dummy"}})
			p.id, p.token = r.Get("user_id").Str, r.Get("access_token").Str
			list = append(list, p)
		}
		s.people = append(s.people, list)
	}
	for i := range rooms {
		home := s.people[i%sites][0]
		users := map[string]int{}
		for _, list := range s.people {
			for _, p := range list {
				if p != home {
					users[p.id] = 50
				}
			}
		}
		room := s.must(home, "POST", "/createRoom", map[string]any{
			"preset": "public_chat", "power_level_content_override": map[string]any{"users": users, "events_default": 0},
		}).Get("room_id").Str
		s.rooms, s.sent[room] = append(s.rooms, room), map[string]bool{}
		var joins sync.WaitGroup
		for _, list := range s.people {
			joins.Go(func() {
				for _, p := range list {
					if p != home {
						status, answer, err := p.do("POST", "/join/"+seg(room)+"?via="+url.QueryEscape(home.site.name), map[string]any{})
						if err != nil || status != http.StatusOK {
							t.Errorf("%s joins %s: %d %s %v", p.id, room, status, answer, err)
						}
					}
				}
			})
		}
		if joins.Wait(); t.Failed() {
			t.FailNow()
		}
	}
}

func (s *soak) intn(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rnd.IntN(n)
}

// talk has people do things until it is over.
func (s *soak) talk() {
	for !s.stopped.Load() {
		list := s.people[s.intn(len(s.people))]
		i := s.intn(len(list))
		p, room := list[i], s.rooms[s.intn(len(s.rooms))]
		switch x := s.intn(100); {
		case x < 72:
			s.say(p, room)
		case x < 86:
			s.mu.Lock()
			event := s.newest[room]
			s.mu.Unlock()
			if event != "" {
				if status, _, err := p.do("POST", "/rooms/"+seg(room)+"/receipt/m.read/"+seg(event), map[string]any{}); err == nil && status == http.StatusOK {
					s.receipts.Add(1)
				}
			}
		case x < 94:
			if last := s.rooms[len(s.rooms)-1]; i > 0 {
				step := "/rooms/" + seg(last) + "/leave"
				if s.intn(2) == 0 {
					step = "/join/" + seg(last) + "?via=" + url.QueryEscape(s.sites[s.intn(len(s.sites))].name)
				}
				if status, _, err := p.do("POST", step, map[string]any{}); err == nil && status == http.StatusOK {
					s.moves.Add(1)
				}
			}
		default:
			path := fmt.Sprintf("/rooms/%s/state/im.carillon.note/%d", seg(room), s.intn(3))
			if status, _, err := p.do("PUT", path, map[string]any{"n": s.serial.Add(1)}); err == nil && status == http.StatusOK {
				s.states.Add(1)
			}
		}
		time.Sleep(time.Duration(s.intn(20)) * time.Millisecond)
	}
}

// say sends a message, again and again under the same transaction until it is acknowledged or refused.
func (s *soak) say(p *person, room string) {
	text := fmt.Sprintf("%s %d", p.id, s.serial.Add(1))
	path := "/rooms/" + seg(room) + "/send/m.room.message/" + strconv.FormatInt(s.serial.Add(1), 10)
	for {
		status, answer, err := p.do("PUT", path, map[string]string{"msgtype": "m.text", "body": text})
		switch {
		case err != nil || status >= 500:
			s.retries.Add(1)
			time.Sleep(200 * time.Millisecond)
			continue
		case status == http.StatusOK:
			id := gjson.GetBytes(answer, "event_id").Str
			s.mu.Lock()
			s.sent[room][id], s.newest[room] = true, id
			s.mu.Unlock()
			s.acknowledged.Add(1)
		case status == http.StatusForbidden: // left the room
			s.refusals.Add(1)
		default:
			s.t.Errorf("%s says something in %s: %d %s", p.id, room, status, answer)
		}
		return
	}
}

// harm cuts sites off, kills and freezes them.
func (s *soak) harm() {
	for !s.stopped.Load() {
		time.Sleep(time.Duration(500+s.intn(1500)) * time.Millisecond)
		st := s.sites[s.intn(len(s.sites))]
		for3 := time.Duration(500+s.intn(3000)) * time.Millisecond
		switch s.intn(4) {
		case 0, 1:
			s.cuts.Add(1)
			st.door.close()
			time.Sleep(for3)
			st.door.reopen()
		case 2:
			s.kills.Add(1)
			st.kill()
			time.Sleep(for3 / 4)
			if err := st.start(); err != nil {
				s.t.Error(err)
				return
			}
		case 3:
			s.freezes.Add(1)
			st.signal(syscall.SIGSTOP, false)
			time.Sleep(for3)
			st.signal(syscall.SIGCONT, false)
		}
	}
}

// settle lets everything come together: in each room one of each site says a last word.
func (s *soak) settle() {
	for _, room := range s.rooms {
		for _, list := range s.people {
			s.say(list[0], room)
		}
	}
}

// view is what a site shows of a room.
type view struct {
	state    map[string]string
	messages map[string]int
}

func (s *soak) view(p *person, room string) (v view, err error) {
	v = view{map[string]string{}, map[string]int{}}
	status, answer, err := p.do("GET", "/rooms/"+seg(room)+"/state", nil)
	if err != nil || status != http.StatusOK {
		return v, errors.Join(err, fmt.Errorf("state: %d %s", status, answer))
	}
	gjson.ParseBytes(answer).ForEach(func(_, e gjson.Result) bool {
		v.state[e.Get("type").Str+" "+e.Get("state_key").Str] = e.Get("event_id").Str
		return true
	})
	from := ""
	for {
		path := "/rooms/" + seg(room) + "/messages?dir=b&limit=1000&filter=" + url.QueryEscape(`{"types":["m.room.message"]}`)
		if from != "" {
			path += "&from=" + url.QueryEscape(from)
		}
		status, answer, err := p.do("GET", path, nil)
		if err != nil || status != http.StatusOK {
			return v, errors.Join(err, fmt.Errorf("messages: %d %s", status, answer))
		}
		r := gjson.ParseBytes(answer)
		r.Get("chunk").ForEach(func(_, e gjson.Result) bool {
			v.messages[e.Get("event_id").Str]++
			return true
		})
		if from = r.Get("end").Str; from == "" {
			return v, nil
		}
	}
}

// differences says what is not yet right in a room.
func (s *soak) differences(room string) (list []string) {
	views := make([]view, len(s.sites))
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range s.sites {
		wg.Go(func() {
			v, err := s.view(s.people[i][0], room)
			views[i] = v
			if err != nil {
				mu.Lock()
				list = append(list, fmt.Sprintf("site %d: %v", i, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for i, v := range views {
		lost := 0
		for id := range s.sent[room] {
			if v.messages[id] == 0 {
				lost++
			}
		}
		if lost > 0 {
			list = append(list, fmt.Sprintf("site %d lacks %d of %d messages", i, lost, len(s.sent[room])))
		}
		for id, n := range v.messages {
			if n > 1 {
				list = append(list, fmt.Sprintf("site %d shows %s %d times", i, id, n))
			}
			if !s.sent[room][id] {
				list = append(list, fmt.Sprintf("site %d shows %s, which was never acknowledged", i, id))
			}
		}
		if !maps.Equal(v.state, views[0].state) {
			for _, k := range slices.Sorted(maps.Keys(v.state)) {
				if v.state[k] != views[0].state[k] {
					list = append(list, fmt.Sprintf("site %d has %s for %q, site 0 %s", i, v.state[k], k, views[0].state[k]))
				}
			}
			for k := range views[0].state {
				if _, ok := v.state[k]; !ok {
					list = append(list, fmt.Sprintf("site %d lacks %q", i, k))
				}
			}
		}
	}
	return list
}

// compare waits until all sites agree.
func (s *soak) compare() {
	patience := time.Now().Add(length("CARILLON_SOAK_PATIENCE", 90*time.Second))
	for _, room := range s.rooms {
		for {
			diff := s.differences(room)
			if len(diff) == 0 {
				break
			}
			if time.Now().After(patience) {
				s.t.Errorf("room %s never came together:\n%s", room, strings.Join(diff[:min(len(diff), 30)], "\n"))
				break
			}
			time.Sleep(500 * time.Millisecond)
		}
	}
	for _, st := range s.sites {
		st.kill()
		s.ends(st)
	}
}

// ends counts the ends that rooms have on a server that has stopped.
func (s *soak) ends(st *site) {
	db, err := sqldb.Open(st.db)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer db.Close()
	for _, room := range s.rooms {
		var text string
		var tips []string
		err := db.Read(s.t.Context(), func(tx *sqldb.Tx) error {
			return tx.QueryRow(`SELECT tips FROM rooms WHERE room_id = $1`, room).Scan(&text)
		})
		if err == nil {
			err = json.Unmarshal([]byte(text), &tips)
		}
		if err != nil {
			s.t.Errorf("site %d, room %s: %v", st.n, room, err)
		} else if len(tips) > maxTips {
			s.t.Errorf("site %d: room %s has %d ends", st.n, room, len(tips))
		}
	}
}

// report says what happened.
func (s *soak) report(lasts time.Duration) {
	text := fmt.Sprintf(`%d homeservers, %d people, %d rooms; %s of work, %s until all agreed and were compared.
Messages acknowledged: %d (%d requests were repeated, %d refused). Receipts: %d. Joins and leaves: %d. Changes of state: %d.
Doors shut: %d. Processes killed with SIGKILL: %d. Processes frozen: %d.
`, len(s.sites), len(s.sites)*len(s.people[0]), len(s.rooms), lasts, time.Since(s.began).Round(time.Second)-lasts,
		s.acknowledged.Load(), s.retries.Load(), s.refusals.Load(), s.receipts.Load(), s.moves.Load(), s.states.Load(), s.cuts.Load(), s.kills.Load(), s.freezes.Load())
	if !s.t.Failed() {
		text += "In the end every server had the same state of every room and every message once.\n"
	}
	s.t.Log(text)
	if path := os.Getenv("CARILLON_SOAK_REPORT"); path != "" {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			s.t.Error(err)
		}
	}
}
