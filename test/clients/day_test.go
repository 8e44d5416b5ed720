package clients_test

import (
	"testing"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// The same day over /sync and over sliding sync.
func TestDay(t *testing.T) {
	for name, sliding := range map[string]bool{"sync": false, "sliding sync": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := people(hstest.New(t), "zhou", "chen", "li")
			in.More = map[string]any{"sliding": sliding}
			script(t, "day.mjs", in)
		})
	}
}
