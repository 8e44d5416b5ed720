// Package soak runs several homeservers as processes on loopback addresses, one company over all of them. Its people
// talk, come and go while roads between the sites are cut and slowed and processes killed and frozen. In the end
// every server has the same state of every room and the same events, every message that was acknowledged is on every
// server, no client has been shown one twice, the last receipts are everywhere, and nothing waits to be sent.
//
// It runs when CARILLON_SOAK_TIME says for how long, alone: docs/soak.md has the settings and what is compared.
package soak_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// settings are what the environment says.
type settings struct {
	sites, people, departments int
	rate                       int // things that people do in a second
	seed                       uint64
	lasts, patience            time.Duration
	report                     string
}

func number(name string, otherwise int) int {
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

func readSettings() settings {
	o := settings{
		sites: number("CARILLON_SOAK_SITES", 3), people: number("CARILLON_SOAK_PEOPLE", 60),
		departments: number("CARILLON_SOAK_ROOMS", 6), rate: number("CARILLON_SOAK_RATE", 40),
		seed:  uint64(number("CARILLON_SOAK_SEED", int(time.Now().Unix()))),
		lasts: length("CARILLON_SOAK_TIME", 0), patience: length("CARILLON_SOAK_PATIENCE", 3*time.Minute),
		report: os.Getenv("CARILLON_SOAK_REPORT"),
	}
	o.people = max(o.people/o.sites, 6) // at each site
	return o
}

// person is somebody with an account at a site. The first of a site is its administrator, the second watches by
// /sync; these two are in all of the site's rooms and stay there. The last fifth come and go.
type person struct {
	site  *site
	n     int
	id    string
	token string // "" for those who act through the application service
	moves bool
}

// room is a room with what has been done in it.
type room struct {
	id      string
	home    *person
	open    string            // who may join: public, restricted, invite
	sites   []int             // that have people in it
	members map[int][]*person // by site

	mu       sync.Mutex
	sent     map[string]*message // acknowledged
	list     []*message
	newest   *message
	redacted map[string]bool
}

// message is one that a server has acknowledged.
type message struct {
	id string
	by *person
}

// soak is one run.
type soak struct {
	t        *testing.T
	o        settings
	wires    *network
	sites    []*site
	people   [][]*person // by site
	staff    *room       // everybody
	rooms    []*room     // staff first
	watchers []*watcher
	rnd      *rand.Rand
	rndMu    sync.Mutex
	serial   atomic.Int64
	stopped  atomic.Bool
	tally    tally
	times    times
}

// times are the durations of a run.
type times struct {
	accounts, joins, entered, created, settled time.Duration
	away                                       []absence
	events, tips                               int
}

func (s *soak) intn(n int) int {
	s.rndMu.Lock()
	defer s.rndMu.Unlock()
	return s.rnd.IntN(n)
}

// some picks n different numbers below max.
func (s *soak) some(n, below int) []int {
	s.rndMu.Lock()
	defer s.rndMu.Unlock()
	return s.rnd.Perm(below)[:min(n, below)]
}

func pick[T any](s *soak, list []T) T { return list[s.intn(len(list))] }

// client makes all requests. Its connections are many, since a request to a frozen site holds one for long.
var client = &http.Client{Timeout: 40 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute}}

// do makes a request; err is set when there was no answer.
func (p *person) do(method, path string, body any) (status int, answer []byte, err error) {
	return p.call(method, "/_matrix/client/v3"+path, body)
}

func (p *person) call(method, path string, body any) (status int, answer []byte, err error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, p.site.url+path, r)
	if err != nil {
		return 0, nil, err
	}
	if p.token != "" {
		req.Header.Set("Authorization", "Bearer "+p.token)
	} else {
		req.Header.Set("Authorization", "Bearer "+serviceToken)
		q := req.URL.Query()
		q.Set("user_id", p.id)
		req.URL.RawQuery = q.Encode()
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// must makes a request that has to succeed while nothing is broken.
func (s *soak) must(p *person, method, path string, body any) (gjson.Result, error) {
	status, answer, err := p.do(method, path, body)
	if err != nil || status != http.StatusOK {
		return gjson.Result{}, fmt.Errorf("%s %s by %s: %d %s %w", method, path, p.id, status, answer[:min(len(answer), 500)], err)
	}
	return gjson.ParseBytes(answer), nil
}

func seg(s string) string { return url.PathEscape(s) }

// addresses finds a /24 of loopback addresses that nobody uses.
func addresses(t *testing.T) string {
	t.Helper()
	for range 50 {
		prefix := fmt.Sprintf("127.%d.%d", 20+rand.IntN(200), rand.IntN(250))
		if l, err := net.Listen("tcp", prefix+".1:"+federationPort); err == nil {
			l.Close()
			return prefix
		}
	}
	t.Fatal("no loopback addresses are free")
	return ""
}

func TestSoak(t *testing.T) {
	o := readSettings()
	if o.lasts == 0 {
		t.Skip("runs alone: make soak-small, make soak")
	}
	t.Logf("CARILLON_SOAK_SEED=%d", o.seed)
	s := &soak{t: t, o: o, rnd: rand.New(rand.NewPCG(o.seed, 1)), wires: newNetwork()}
	s.build()
	if t.Failed() {
		t.FailNow()
	}
	s.watch()
	s.work()
	s.settle()
	s.compare()
	s.stop()
	s.report()
}

// step tells how far the run is.
func (s *soak) step(format string, args ...any) {
	s.t.Logf("%s "+format, append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}
