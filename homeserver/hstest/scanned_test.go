package hstest_test

import (
	"fmt"
	"testing"

	"github.com/tidwall/gjson"

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
	// What follows the log makes statements of its own until it is through with it.
	var r gjson.Result
	s.Eventually("it takes at most 60 statements", func() bool {
		before := s.DB().Statements()
		r = alice.RawSync("", "filter="+filter)
		return s.DB().Statements()-before <= 60
	})
	if tl := r.Get("rooms.join." + escape(string(room)) + ".timeline"); !tl.Get("limited").Bool() || tl.Get("prev_batch").Str == "" {
		t.Errorf("the timeline is %s", tl.Raw)
	}
}
