package derive_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/astest"
	"github.com/carillon-chat/carillon/appservice/derive"
)

func TestDingRoomIsOnePerPerson(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	before := len(c.hs.Rooms())
	rooms := make([]id.RoomID, 32)
	var wg sync.WaitGroup
	for i := range rooms {
		wg.Go(func() {
			room, err := c.rec.DingRoom(t.Context(), "003")
			if err != nil {
				t.Error(err)
			}
			rooms[i] = room
		})
	}
	wg.Wait()
	for _, r := range rooms {
		if r == "" || r != rooms[0] {
			t.Fatalf("rooms %v", rooms)
		}
	}
	if n := len(c.hs.Rooms()) - before; n != 1 {
		t.Errorf("%d rooms were made", n)
	}
	if p, ok := c.rec.DingPerson(rooms[0]); !ok || p != "003" {
		t.Errorf("the room is of %q", p)
	}
	if n := c.hs.MemberEvents(string(rooms[0]), user("003"), "join") + c.hs.MemberEvents(string(rooms[0]), user("003"), "invite"); n != 1 {
		t.Errorf("%d membership events", n)
	}
	c.restart()
	requests := c.hs.Requests()
	if again, err := c.rec.DingRoom(t.Context(), "003"); err != nil || again != rooms[0] || c.hs.Requests() != requests {
		t.Errorf("after a restart: %s %v", again, err)
	}
	if _, err := c.rec.DingRoom(t.Context(), "nobody"); !errors.Is(err, derive.ErrNoAccount) {
		t.Errorf("a stranger's DING room: %v", err)
	}
}

func TestDingRoomComesBack(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	room, err := c.rec.DingRoom(t.Context(), "003")
	if err != nil {
		t.Fatal(err)
	}
	c.hs.Act(t, string(room), user("003"), "leave", "")
	events := c.hs.Events(string(room))
	if err := c.rec.OnMember(t.Context(), events[len(events)-1]); err != nil {
		t.Fatal(err)
	}
	if again, err := c.rec.DingRoom(t.Context(), "003"); err != nil || again != room || c.hs.Membership(string(room), user("003")) != "join" {
		t.Errorf("%s %v", again, err)
	}
}

func TestDingRoomsOfEverybodyCutOff(t *testing.T) {
	people := []string{"001", "002", "003", "004", "005", "006", "nobody"}
	for _, after := range []astest.Fault{astest.FaultBefore, astest.FaultAfter} {
		c := found(t, func(o *derive.Options, _ *astest.Server) { o.Concurrency = 3 })
		c.becomes(staff())
		c.run()
		before := len(c.hs.Rooms())
		done := false
		for limit := 1; !done; limit++ {
			if limit > 60 {
				t.Fatal("it does not come to an end")
			}
			if limit%2 == 0 { // now and then the process lives on
				c.restart()
			}
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			c.hs.SetFault(func(r *http.Request) astest.Fault {
				if strings.HasSuffix(r.URL.Path, "joined_rooms") {
					return astest.FaultNone
				}
				if n++; n <= limit {
					return astest.FaultNone
				}
				cancel()
				return after
			})
			done = c.rec.EnsureDingRooms(ctx, people) == nil
			cancel()
			c.hs.Settle() // a homeserver is done with what it was asked when the next process asks again
		}
		c.hs.SetFault(nil)
		if n := len(c.hs.Rooms()) - before; n != 6 {
			t.Errorf("%d rooms for 6 people", n)
		}
		requests := c.hs.Requests()
		if err := c.rec.EnsureDingRooms(t.Context(), people); err != nil || c.hs.Requests() != requests {
			t.Errorf("again: %v, %d requests", err, c.hs.Requests()-requests)
		}
	}
}
