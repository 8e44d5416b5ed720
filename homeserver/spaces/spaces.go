// Package spaces shows rooms to people who are not in them yet: the tree of rooms
// below a space, and the summary of a single room. What this server does not have
// is asked from other servers, and other servers are answered.
//
// It owns no tables: a summary is the room's current state, read when somebody
// asks. Answers of other servers are kept for a minute, and the place that a
// reader of a tree has reached for some minutes.
//
// Spec: client-server-api#spaces, client-server-api#room-summaries,
// server-server-api#spaces
//
// Invariants: nobody is shown a room that he could neither join nor read; where
// this server is in a room, what others say of it does not count.
package spaces

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

const (
	childType = "m.space.child"
	spaceType = "m.space"
	// mostChildren bounds the children of one space that are looked at.
	mostChildren = 2000
)

// Remote asks other servers.
type Remote interface {
	// Hierarchy asks a server for a room and its children.
	Hierarchy(ctx context.Context, server matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (*Answer, error)
}

// Options are what may be set.
type Options struct {
	Server matrix.ServerName
	// Remote is nil on a server that does not federate.
	Remote Remote
	Now    matrix.Now
}

// Spaces is the module.
type Spaces struct {
	db    *sqldb.DB
	rooms *rooms.Rooms
	hub   *hub.Hub
	dir   *directory.Directory
	opts  Options

	answers answers
	walks   walks
}

// New prepares the module.
func New(db *sqldb.DB, r *rooms.Rooms, h *hub.Hub, dir *directory.Directory, opts Options) *Spaces {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Spaces{db: db, rooms: r, hub: h, dir: dir, opts: opts}
}

// Summary is what a room looks like from outside.
type Summary struct {
	directory.Entry
	Allowed    []matrix.RoomID `json:"allowed_room_ids,omitempty"`
	Encryption string          `json:"encryption,omitempty"`
	Version    string          `json:"room_version,omitempty"`
}

// Child is a child event of a space, in the form for people outside.
type Child struct {
	Type    string        `json:"type"`
	Key     matrix.RoomID `json:"state_key"`
	Content childContent  `json:"content"`
	Sender  matrix.UserID `json:"sender"`
	TS      int64         `json:"origin_server_ts"`
}

// Room is a room of a tree.
type Room struct {
	Summary
	Children []Child `json:"children_state"`
}

// here reports whether this server is in the room, so that what it knows is true.
func (s *Spaces) here(room matrix.RoomID) bool { return s.hub.LocalCount(room) > 0 }

// summary reads the summary of a room of this server.
func (s *Spaces) summary(ctx context.Context, room matrix.RoomID) (*Summary, error) {
	entry, err := s.dir.Describe(ctx, room)
	if err != nil {
		return nil, err
	}
	out := &Summary{Entry: entry}
	if out.Version, err = s.rooms.Version(ctx, room); err != nil {
		return nil, err
	}
	if entry.JoinRule == "restricted" || entry.JoinRule == "knock_restricted" {
		e, err := s.rooms.State(ctx, room, "m.room.join_rules", "")
		if err != nil {
			return nil, err
		}
		out.Allowed = allowed(e)
	}
	e, err := s.rooms.State(ctx, room, "m.room.encryption", "")
	if err != nil {
		return nil, err
	}
	if e != nil {
		out.Encryption = e.ContentString("algorithm")
	}
	return out, nil
}

// allowed lists the rooms whose members may join by the join rules.
func allowed(rules *events.Event) (list []matrix.RoomID) {
	if rules == nil {
		return nil
	}
	gjson.GetBytes(rules.Content(), "allow").ForEach(func(_, a gjson.Result) bool {
		room, err := matrix.ParseRoomID(a.Get("room_id").Str)
		if a.Get("type").Str == "m.room_membership" && err == nil && !slices.Contains(list, room) {
			list = append(list, room)
		}
		return true
	})
	return list
}

// children reads the child events of a space of this server, in their order.
func (s *Spaces) children(ctx context.Context, room *Summary, suggestedOnly bool) ([]Child, error) {
	list := []Child{}
	if room.Type != spaceType {
		return list, nil
	}
	var evs []*events.Event
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := state.TypeAt(tx, room.Room, childType, state.Open-1)
		if err != nil {
			return err
		}
		evs, err = s.rooms.EventsOf(tx, rows)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the children of %s: %w", room.Room, err)
	}
	for _, e := range evs {
		list = append(list, Child{Type: e.Type, Key: matrix.RoomID(e.Key()), Content: e.Content(), Sender: e.Sender, TS: e.TS})
	}
	return sorted(list, suggestedOnly), nil
}

// sorted leaves out what is no valid child, or not suggested where only that is
// wanted, and puts the others in their order.
//
// Spec: client-server-api#ordering-of-children-within-a-space
func sorted(list []Child, suggestedOnly bool) []Child {
	type keyed struct {
		Child
		order string
	}
	ks := make([]keyed, 0, len(list))
	for _, c := range list {
		if c.valid() && (!suggestedOnly || c.Content.suggested()) {
			ks = append(ks, keyed{c, c.Content.order()})
		}
	}
	slices.SortFunc(ks, func(a, b keyed) int {
		switch {
		case (a.order == "") != (b.order == ""):
			if a.order == "" {
				return 1
			}
			return -1
		case a.order != b.order:
			return strings.Compare(a.order, b.order)
		case a.TS != b.TS:
			return int(max(min(a.TS-b.TS, 1), -1))
		}
		return strings.Compare(string(a.Key), string(b.Key))
	})
	ks = ks[:min(len(ks), mostChildren)]
	out := make([]Child, len(ks))
	for i, k := range ks {
		out[i] = k.Child
	}
	return out
}
