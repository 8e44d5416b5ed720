package rooms_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// TestOwnedState has a creator, a moderator and members set state that belongs to one
// of them, in rooms of each of the versions in which that means something.
func TestOwnedState(t *testing.T) {
	s := start(t, sqldbtest.Open(t), "a.example", nil)
	ctx := t.Context()
	const suffix = "_dev:!@#$1"
	long := strings.Repeat("x", 255)
	for _, version := range append(rooms.UnstableVersions(), "10", "11", "12") {
		t.Run(version, func(t *testing.T) {
			room := must[matrix.RoomID](t)(s.Create(ctx, alice, rooms.CreateRequest{
				Version: version, Preset: "public_chat", PowerLevels: json.RawMessage(`{"events":{"open":0}}`),
			}, 0))
			for _, u := range []matrix.UserID{bob, carol} {
				if err := s.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u}); err != nil {
					t.Fatal(err)
				}
			}
			protects, frees := strings.Contains(version, "3757"), strings.Contains(version, "3779")
			for _, c := range []struct {
				by       matrix.UserID
				typ, key string
				want     string // "" if it is allowed
				plain    string // the same in versions without such rules
			}{
				{bob, "open", string(bob), "", ""},
				{bob, "open", string(bob) + suffix, "", "M_FORBIDDEN"},
				{alice, "open", string(bob), pick(protects, "", "M_FORBIDDEN"), "M_FORBIDDEN"},
				{alice, "open", string(bob) + suffix, pick(protects, "", "M_FORBIDDEN"), "M_FORBIDDEN"},
				{alice, "open", "@nobody:else.example", pick(protects, "", "M_FORBIDDEN"), "M_FORBIDDEN"},
				{bob, "open", string(carol), "M_FORBIDDEN", "M_FORBIDDEN"},
				{bob, "open", string(carol) + suffix, "M_FORBIDDEN", "M_FORBIDDEN"},
				{bob, "open", string(bob) + "dev" + suffix, "M_FORBIDDEN", "M_FORBIDDEN"},
				{bob, "open", "@prefix_" + string(bob) + suffix, "M_FORBIDDEN", "M_FORBIDDEN"},
				{alice, "open", "@oops", pick(protects, "M_BAD_JSON", "M_FORBIDDEN"), "M_FORBIDDEN"},
				{alice, "open", string(alice) + "@x", pick(protects, "M_BAD_JSON", "M_FORBIDDEN"), "M_FORBIDDEN"},
				{bob, "open", string(bob) + "_" + long, pick(protects, "", "M_TOO_LARGE"), "M_TOO_LARGE"},
				{bob, "open", string(bob) + "_" + long + "x", pick(protects, "M_BAD_JSON", "M_TOO_LARGE"), "M_TOO_LARGE"},
				{alice, "open", long + "y", "M_TOO_LARGE", "M_TOO_LARGE"},
				// What is not open to all needs power, but where one's own state does not.
				{bob, "closed", string(bob), pick(frees, "", "M_FORBIDDEN"), "M_FORBIDDEN"},
				{bob, "closed", string(bob) + suffix, pick(frees, "", "M_FORBIDDEN"), "M_FORBIDDEN"},
				{bob, "closed", "", "M_FORBIDDEN", "M_FORBIDDEN"},
				{bob, "m.room.topic", "", "M_FORBIDDEN", "M_FORBIDDEN"},
				{bob, "m.room.power_levels", "", "M_FORBIDDEN", "M_FORBIDDEN"},
				{alice, "closed", string(alice), "", ""},
			} {
				want := c.want
				if !protects && !frees {
					want = c.plain
				}
				id, err := s.Put(ctx, rooms.Draft{Room: room, Sender: c.by, Type: c.typ, StateKey: &c.key, Content: json.RawMessage(`{}`)})
				if (want == "") != (err == nil) || want != "" && !matrix.IsCode(err, want) {
					t.Errorf("%s sets %s %.60q: %v, want %q", c.by, c.typ, c.key, err, want)
				}
				if err != nil {
					continue
				}
				e := must[*events.Event](t)(s.events.ByID(ctx, id))
				if p, err := events.Parse(e.JSON, e.Version); err != nil || p.ID != id || p.Key() != c.key {
					t.Errorf("it reads back as %v (%v)", p, err)
				}
			}
		})
	}
}

func pick(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}
