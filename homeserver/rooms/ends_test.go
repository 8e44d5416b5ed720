package rooms

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// fork has n events sent beside each other, of everybody who is in the room in turn.
func (s *story) fork(t *testing.T, typ string, n int) (out []*events.Event) {
	t.Helper()
	base := s.servers[0].tips
	for i := range n {
		teller := s.servers[i%len(s.servers)]
		e := s.make(teller, teller.users[i/len(s.servers)%2], typ, nil, map[string]any{"body": fmt.Sprint(i)}, base, nil, "")
		if s.err != nil {
			t.Fatal(s.err)
		}
		s.add(e)
		out = append(out, e)
	}
	return out
}

func (o *observer) hearAll(t *testing.T, list []*events.Event) {
	t.Helper()
	for _, e := range list {
		if _, err := o.hears(context.Background(), e); err != nil && !matrix.IsCode(err, "M_FORBIDDEN") {
			t.Fatal(err)
		}
	}
}

func (o *observer) tips(t *testing.T, s *story) []matrix.EventID {
	t.Helper()
	_, tips, err := o.now(context.Background(), s.room)
	if err != nil {
		t.Fatal(err)
	}
	return tips
}

func (o *observer) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = o.RunEnds(ctx) }()
	return func() { cancel(); <-done }
}

// TestManyEndsAreBroughtTogether has people of other servers speak at once, and nobody
// after that.
func TestManyEndsAreBroughtTogether(t *testing.T) {
	a := newArchive()
	o := observeWith(t, 0, a, sqldbtest.Open(t), 100*time.Millisecond)
	defer o.run(t)()
	for _, version := range []string{"1", "11", "12"} {
		s, err := newStory(roomVersion(version), 1, []matrix.UserID{o.user})
		if err == nil {
			a.add(s)
			err = o.begin(t.Context(), s)
		}
		if err != nil {
			t.Fatal(err)
		}
		forks := s.fork(t, "m.room.message", 15)
		o.hearAll(t, forks)
		e := o.dummyOf(t, s)
		if e == nil || e.Sender != o.user || !e.Hidden() || e.Dead() {
			t.Fatalf("version %s: %+v", version, e)
		}
		n := len(o.tips(t, s)) // it may have come before all of them were there
		for wait := 0; n > fewTips && wait < 500; wait++ {
			time.Sleep(10 * time.Millisecond)
			n = len(o.tips(t, s))
		}
		if n > fewTips {
			t.Errorf("there are still %d ends", n)
		}
		if n := len(e.PrevEvents()); n > maxPrev || n <= fewTips {
			t.Errorf("it is built on %d events", n)
		}
		// Others read it as one of their own would be read, and go on from there.
		if _, err := events.Parse(e.JSON, e.Version); err != nil {
			t.Error(err)
		}
		s.add(e)
		if s.rejected[e.ID] {
			t.Error("others reject it")
		}
		// People read what was said, and nothing of this.
		var list []*events.Event
		err = o.db.Read(t.Context(), func(tx *sqldb.Tx) error {
			list, err = o.events.Timeline(tx, s.room, 0, state.Open-1, 1000, true)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		seen, err := o.Visible(t.Context(), o.user, s.room, list)
		if err != nil {
			t.Fatal(err)
		}
		said := 0
		for _, e := range seen {
			if e.Type == events.Dummy {
				t.Error("a dummy event is shown to people")
			}
			if e.Type == "m.room.message" {
				said++
			}
		}
		if said != len(forks) {
			t.Errorf("%d messages are seen, %d were sent", said, len(forks))
		}
	}
}

// dummyOf waits for an event by which the observer has brought ends together.
func (o *observer) dummyOf(t *testing.T, s *story) *events.Event {
	t.Helper()
	for range 1000 {
		var list []*events.Event
		err := o.db.Read(t.Context(), func(tx *sqldb.Tx) (err error) {
			list, err = o.events.Timeline(tx, s.room, 0, state.Open-1, 1000, false)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if e.Type == events.Dummy {
				return e
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// TestDummiesOfOthers are hidden like our own, and built upon.
func TestDummiesOfOthers(t *testing.T) {
	a := newArchive()
	o := observe(t, 0, a)
	s, err := newStory("11", 1, []matrix.UserID{o.user})
	if err == nil {
		a.add(s)
		err = o.begin(t.Context(), s)
	}
	if err != nil {
		t.Fatal(err)
	}
	list := s.fork(t, events.Dummy, 2)
	o.hearAll(t, list)
	for _, want := range list {
		e, err := o.known(t.Context(), want.ID)
		if err != nil || !e.Hidden() || e.Dead() || !slices.Contains(o.tips(t, s), e.ID) {
			t.Errorf("%+v (%v)", e, err)
		}
	}
}

// TestWhatIsNoEnd: events that are soft-failed or rejected are not built on, and do not
// make a room look for a way to bring its ends together; neither does who may not speak.
func TestWhatIsNoEnd(t *testing.T) {
	a := newArchive()
	o := observeWith(t, 0, a, sqldbtest.Open(t), 20*time.Millisecond)
	defer o.run(t)()
	s, err := newStory("11", 1, []matrix.UserID{o.user})
	if err == nil {
		a.add(s)
		err = o.begin(t.Context(), s)
	}
	if err != nil {
		t.Fatal(err)
	}
	first, base := s.servers[0], s.servers[0].tips
	banned := s.servers[2].users[0]
	ban := s.tell(first, first.users[0], "m.room.member", ptr(string(banned)), map[string]any{"membership": "ban"})
	o.hearAll(t, []*events.Event{ban})
	for i := range 12 { // what he says was allowed where he says it
		e := s.make(s.servers[2], banned, "m.room.message", nil, map[string]any{"body": fmt.Sprint(i)}, base, nil, "")
		s.add(e)
		o.hearAll(t, []*events.Event{e})
		if got, err := o.known(t.Context(), e.ID); err != nil || got.Flags&events.FlagSoftFailed == 0 {
			t.Fatalf("%+v (%v)", got, err)
		}
		// And what was not.
		e = s.make(s.servers[3], s.servers[3].users[2], "m.room.message", nil, map[string]any{"body": fmt.Sprint(i)}, base, nil, "")
		s.add(e)
		o.hearAll(t, []*events.Event{e})
		if got, err := o.known(t.Context(), e.ID); err != nil || !got.Rejected() {
			t.Fatalf("%+v (%v)", got, err)
		}
	}
	if got := o.tips(t, s); !slices.Equal(got, []matrix.EventID{ban.ID}) {
		t.Errorf("built on %v, not on %s", got, ban.ID)
	}
	// Now only those with power may speak, and none of them is here.
	levels := s.content(s.after(ban.ID), "m.room.power_levels", "").Value().(map[string]any)
	levels["events_default"] = 50
	quiet := s.tell(first, first.users[0], "m.room.power_levels", ptr(""), levels)
	forks := []*events.Event{quiet}
	for i := range 6 {
		forks = append(forks, s.make(first, first.users[0], "m.room.message", nil, map[string]any{"body": fmt.Sprint(i)}, first.tips, nil, ""))
	}
	o.hearAll(t, forks)
	time.Sleep(150 * time.Millisecond)
	if got := o.tips(t, s); len(got) != 6 {
		t.Errorf("%d ends, not 6", len(got))
	}
}
