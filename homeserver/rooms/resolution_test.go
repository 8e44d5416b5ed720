package rooms

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// long is for how long the tests of resolution go on beyond their short form, and
// where they begin: CARILLON_RESOLUTION=10m, CARILLON_RESOLUTION_SEED=7.
func long(t testing.TB) (for_ time.Duration, seed uint64) {
	t.Helper()
	var err error
	if s := os.Getenv("CARILLON_RESOLUTION"); s != "" {
		if for_, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	seed = 1
	if s := os.Getenv("CARILLON_RESOLUTION_SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return for_, seed
}

// TestEveryOrderGivesTheSameState tells the random story of a room, with forks and
// malicious servers, to some servers, each of which hears it in an order of its own,
// and compares what they make of it with each other and with the specification: what
// is rejected, the state before each event, the state now.
func TestEveryOrderGivesTheSameState(t *testing.T) {
	for_, seed := long(t)
	a := newArchive()
	var all []*observer
	observers := 2
	if for_ > 0 {
		observers = 3
	}
	for i := range observers {
		all = append(all, observe(t, i, a))
	}
	begin := time.Now()
	forks, rejected, soft, told, healed, out := 0, 0, 0, 0, 0, 0
	for round := 0; round == 0 || time.Since(begin) < for_; round++ {
		for _, v := range append(Versions(), UnstableVersions()...) {
			if for_ == 0 && round == 0 && slices.Contains(UnstableVersions(), v) {
				continue
			}
			n := 14
			if for_ > 0 {
				n += int(seed % 5 * 15)
			}
			s := tellAll(t, a, all, gomatrixserverlib.RoomVersion(v), seed, n)
			if t.Failed() {
				t.Fatalf("version %s, seed %d, %d events: CARILLON_RESOLUTION_SEED=%d", v, seed, n, seed)
			}
			forks, rejected, soft = forks+len(s.forks), rejected+len(s.rejected), soft+s.soft
			out += s.out
			if told++; s.healed {
				healed++
			}
		}
		seed++
	}
	t.Logf("%d stories, %d of them healed, %d times an observer fell out; %d forks, %d events rejected, %d soft-failed somewhere; next is seed %d", told, healed, out, forks, rejected, soft, seed)
	if forks == 0 || rejected == 0 || soft == 0 || healed == 0 {
		t.Error("the stories are too tame")
	}
}

// tellAll makes a story of n events beyond its beginning and tells it to all.
func tellAll(t *testing.T, a *archive, all []*observer, v gomatrixserverlib.RoomVersion, seed uint64, n int) *story {
	t.Helper()
	ctx := context.Background()
	var users []matrix.UserID
	for _, o := range all {
		users = append(users, o.user)
	}
	s, err := newStory(v, seed, users)
	if err == nil {
		a.add(s)
		err = s.grow(n)
	}
	if err != nil {
		t.Fatal(err)
	}
	var in []*observer
	for i, o := range all {
		if err := o.begin(ctx, s); err != nil {
			t.Fatal(err)
		}
		why := map[matrix.EventID]error{}
		for _, id := range arrival(s, rand.New(rand.NewPCG(seed, uint64(i)+2))) {
			e := s.events[id]
			got, err := o.hears(ctx, e)
			why[id] = err
			if matrix.IsCode(err, "M_NOT_FOUND") && !o.participates(s.room) {
				break
			}
			if id != s.order[0] && got != id || err != nil && !matrix.IsCode(err, "M_FORBIDDEN") && id != s.order[0] {
				t.Errorf("observer %d hears %s as %q: %v", i, id, got, err)
			}
			if !o.participates(s.room) {
				break
			}
		}
		if !o.participates(s.room) { // it has lost its place; there is a fork from before it came
			s.out++
			continue
		}
		compare(t, i, o, s, why)
		in = append(in, o)
	}
	if len(in) > 0 {
		heal(t, in, s)
	}
	return s
}

// arrival is an order in which a story is heard: mostly what is built on comes first.
func arrival(s *story, rnd *rand.Rand) []matrix.EventID {
	left := slices.Clone(s.order)
	told := map[matrix.EventID]bool{}
	var out []matrix.EventID
	for len(left) > 0 {
		i := rnd.IntN(len(left))
		if rnd.IntN(6) > 0 {
			for j, id := range left {
				ready := true
				for _, p := range s.events[id].PrevEvents() {
					ready = ready && told[p]
				}
				if i = j; ready && rnd.IntN(2) == 0 {
					break
				}
			}
		}
		told[left[i]] = true
		out = append(out, left[i])
		left = slices.Delete(left, i, i+1)
	}
	return out
}

// compare holds an observer's room against the specification's.
func compare(t *testing.T, n int, o *observer, s *story, why map[matrix.EventID]error) {
	t.Helper()
	ctx := context.Background()
	have, err := o.many(ctx, s.order)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range s.order {
		e := have[id]
		if e == nil {
			t.Errorf("observer %d has not got %s: %v", n, describe(s, id), why[id])
			continue
		}
		if e.Flags&events.FlagOutlier != 0 {
			continue // from before it came in
		}
		if e.Rejected() != s.rejected[id] {
			t.Errorf("observer %d: rejected is %v, not %v: %s (%v)", n, e.Rejected(), s.rejected[id], describe(s, id), why[id])
		}
		if e.Flags&events.FlagSoftFailed != 0 {
			s.soft++
		}
		st, err := o.stateBefore(ctx, e)
		if err != nil {
			t.Fatal(err)
		}
		if !sameStates(t, fmt.Sprintf("observer %d before %s", n, describe(s, id)), s, st, s.before[id]) {
			return // all that comes after it follows from that
		}
	}
	now, tips, err := o.now(ctx, s.room)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range tips {
		if s.rejected[id] || s.covered(id, s.accepted()) && s.covered(id, tips) {
			t.Errorf("observer %d builds on %s", n, describe(s, id))
		}
	}
	sameStates(t, fmt.Sprintf("observer %d now", n), s, now, s.stateAt(tips))
}

func sameStates(t *testing.T, what string, s *story, got, want stateMap) (same bool) {
	t.Helper()
	same = true
	keys := map[state.Key]bool{}
	for k := range got {
		keys[k] = true
	}
	for k := range want {
		keys[k] = true
	}
	for k := range keys {
		if got[k] != want[k] {
			t.Errorf("%s: %s %s is %s, not %s", what, k.Type, k.StateKey, describe(s, got[k]), describe(s, want[k]))
			same = false
		}
	}
	return same
}

// describe says what an event of a story is, with its place.
func describe(s *story, id matrix.EventID) string {
	e := s.events[id]
	if e == nil {
		return fmt.Sprintf("%q", id)
	}
	i := slices.Index(s.order, id)
	return fmt.Sprintf("event %d (%s %s by %s, %s)", i, e.Type, e.Key(), e.Sender, e.Content())
}

// heal has somebody build on all ends of the room, who by all accounts is in it: then
// all servers must have the same state, whatever they had soft-failed.
func heal(t *testing.T, all []*observer, s *story) {
	t.Helper()
	ctx := context.Background()
	ends := s.ends()
	for first := true; first || len(ends) > 1; first = false { // a few at a time
		some := ends[:min(len(ends), 10)]
		healer := somebody(t, all, s, s.stateAt(some))
		if healer == "" {
			return
		}
		e := s.make(&teller{Signer: signerOf(healer.Server())}, healer, "m.room.message", nil, map[string]any{"body": "merged"}, some, nil, "")
		if s.err != nil {
			t.Fatal(s.err)
		}
		s.add(e)
		if s.rejected[e.ID] {
			return // he may not speak
		}
		for i, o := range all {
			if _, err := o.hears(ctx, e); err != nil {
				t.Errorf("observer %d: %v", i, err)
			}
			if known, err := o.known(ctx, e.ID); err != nil || known == nil || known.Hidden() || !o.participates(s.room) {
				return // nor there
			}
		}
		ends = append(slices.Clone(ends[len(some):]), e.ID)
	}
	s.healed = true
	for i, o := range all {
		now, tips, err := o.now(ctx, s.room)
		if err != nil {
			t.Fatal(err)
		}
		if len(tips) > 1 {
			for _, id := range tips {
				t.Errorf("observer %d still builds on %s", i, describe(s, id))
			}
		}
		sameStates(t, fmt.Sprintf("observer %d healed", i), s, now, s.stateAt(ends))
	}
}

// somebody is in the room by a state and by those of all observers; "" if nobody is.
func somebody(t *testing.T, all []*observer, s *story, merged stateMap) matrix.UserID {
	t.Helper()
	states := []stateMap{merged}
	for _, o := range all {
		now, _, err := o.now(context.Background(), s.room)
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, now)
	}
	for _, teller := range s.servers {
		for _, u := range teller.users {
			in := true
			for _, st := range states {
				in = in && s.content(st, spec.MRoomMember, string(u)).Get("membership").Str == spec.Join
			}
			if in {
				return u
			}
		}
	}
	return ""
}
