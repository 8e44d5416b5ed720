package hstest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// A filter that turns everything away must not make a sync read a room to its
// beginning, in small pages at that.
func TestAFilterCannotMakeASyncReadAll(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	room := alice.Room(nil)
	for i := range 300 {
		send(alice, room, fmt.Sprint(i), "x")
	}
	filter := `{"room":{"timeline":{"limit":1,"types":["org.example.none"]}},"presence":{"types":[]}}`
	before := s.DB().Statements()
	s.Eventually("what follows the log is through with it", func() bool {
		last := before
		time.Sleep(200 * time.Millisecond)
		before = s.DB().Statements()
		return before == last
	})
	r := alice.RawSync("", "filter="+filter)
	if n := s.DB().Statements() - before; n > 60 {
		t.Errorf("it takes %d statements", n)
	}
	if tl := r.Get("rooms.join." + escape(string(room)) + ".timeline"); !tl.Get("limited").Bool() || tl.Get("prev_batch").Str == "" {
		t.Errorf("the timeline is %s", tl.Raw)
	}
}
