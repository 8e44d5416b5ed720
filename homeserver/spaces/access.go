package spaces

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// rule is the join rule of a room, as its version understands it.
//
// Spec: rooms/v7, rooms/v8 and rooms/v10
func (r *Summary) rule() string {
	since := map[string]int{"knock": 7, "restricted": 8, "knock_restricted": 10}[r.JoinRule]
	if r.Version == "" || since == 0 {
		return r.JoinRule
	}
	// A version that is no number is somebody's experiment on a newer one.
	if v, err := strconv.Atoi(r.Version); err == nil && v < since {
		return "invite"
	}
	return r.JoinRule
}

// open reports whether everybody may join, ask to be let in, or read.
func (r *Summary) open() bool { return r.WorldReadable || r.mayAsk() }

func (r *Summary) mayAsk() bool {
	switch r.rule() {
	case "public", "knock", "knock_restricted":
		return true
	}
	return false
}

// shown reports whether a user may see a room: he is in it or may join it, may
// ask to be let in, or anybody may read it.
//
// Spec: get_matrixclientv1roomsroomidhierarchy
func (s *Spaces) shown(user matrix.UserID, room *Summary, membership string) bool {
	switch {
	case membership == "join" || membership == "invite" || room.WorldReadable:
		return true
	case membership == "ban":
		return false
	case room.mayAsk():
		return true
	}
	return room.rule() == "restricted" && slices.ContainsFunc(room.Allowed, func(r matrix.RoomID) bool { return s.hub.Joined(user, r) })
}

// shownTo is shown for a server: some user of it may see the room.
func (s *Spaces) shownTo(ctx context.Context, server matrix.ServerName, room *Summary) (bool, error) {
	if ok, err := s.rooms.ACLAllows(ctx, room.Room, server); !ok || err != nil {
		return false, err
	}
	if room.open() {
		return true, nil
	}
	if room.rule() == "restricted" {
		for _, r := range room.Allowed {
			if slices.Contains(s.hub.Servers(r), server) {
				return true, nil
			}
		}
	}
	if slices.Contains(s.hub.Servers(room.Room), server) {
		return true, nil
	}
	return s.invited(ctx, server, room.Room)
}

// invited reports whether a user of the server is invited to a room.
func (s *Spaces) invited(ctx context.Context, server matrix.ServerName, room matrix.RoomID) (ok bool, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		members, err := state.TypeAt(tx, room, "m.room.member", state.Open-1)
		ok = slices.ContainsFunc(members, func(m state.Row) bool {
			return m.Membership == "invite" && matrix.UserID(m.StateKey).Server() == server
		})
		return err
	})
	if err != nil {
		return false, fmt.Errorf("reading invitations to %s: %w", room, err)
	}
	return ok, nil
}
