package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// template prepares a membership event for a user of another server.
func (r *Rooms) template(ctx context.Context, id matrix.RoomID, user matrix.UserID, membership string, supported []string) (RemoteTemplate, error) {
	if !r.participates(id) {
		return RemoteTemplate{}, matrix.NotFound("this server is not in %s", id)
	}
	rm, err := r.settled(ctx, id)
	if err != nil {
		return RemoteTemplate{}, err
	}
	defer rm.mu.Unlock()
	if supported != nil && !slices.Contains(supported, string(rm.version)) {
		return RemoteTemplate{}, matrix.IncompatibleRoomVersion(string(rm.version))
	}
	content := map[string]any{"membership": membership}
	if rule := rm.joinRule(); membership == spec.Join && (rule == spec.Restricted || rule == spec.KnockRestricted) {
		if m := rm.membership(user); m != spec.Join && m != spec.Invite {
			via, err := r.vouchFor(ctx, rm, user)
			if err != nil {
				return RemoteTemplate{}, err
			}
			content["join_authorised_via_users_server"] = string(via)
		}
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return RemoteTemplate{}, err
	}
	key := string(user)
	p := events.Proto{
		Version: rm.version, Room: id, Sender: user, Type: spec.MRoomMember, StateKey: &key, Content: raw,
		PrevEvents: rm.tips, Depth: rm.nextDepth(), Time: r.o.Now(),
	}
	if p.AuthEvents, err = r.authEventIDs(ctx, rm, &p); err != nil {
		return RemoteTemplate{}, err
	}
	ev, err := events.Build(p, r.o.Signer)
	if err != nil {
		return RemoteTemplate{}, err
	}
	if err := r.authorise(ctx, rm, ev); err != nil {
		return RemoteTemplate{}, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(ev.JSON, &fields); err != nil {
		return RemoteTemplate{}, err
	}
	delete(fields, "signatures")
	delete(fields, "hashes")
	delete(fields, "event_id")
	proto, err := json.Marshal(fields)
	return RemoteTemplate{Version: string(rm.version), Event: proto}, err
}

// vouchFor finds a local user who may vouch for a user's join to a restricted
// room, and says as the specification asks why there is none.
func (r *Rooms) vouchFor(ctx context.Context, rm *room, user matrix.UserID) (matrix.UserID, error) {
	ok, known := r.allowedByRooms(rm, user, "")
	if !ok && !known {
		return "", matrix.NewError(400, "M_UNABLE_TO_AUTHORISE_JOIN", "this server is not in the rooms whose members may join")
	}
	if !ok {
		return "", matrix.Forbidden("%s is in none of the rooms whose members may join", user)
	}
	via, err := r.voucher(ctx, rm)
	if err == nil && via == "" {
		err = matrix.NewError(400, "M_UNABLE_TO_GRANT_JOIN", "nobody of this server may invite to the room")
	}
	return via, err
}

// MakeJoin prepares a join for a user of another server.
func (r *Rooms) MakeJoin(ctx context.Context, id matrix.RoomID, user matrix.UserID, supported []string) (RemoteTemplate, error) {
	if supported == nil {
		supported = []string{"1"}
	}
	return r.template(ctx, id, user, spec.Join, supported)
}

// MakeLeave prepares a leave for a user of another server.
func (r *Rooms) MakeLeave(ctx context.Context, id matrix.RoomID, user matrix.UserID) (RemoteTemplate, error) {
	return r.template(ctx, id, user, spec.Leave, nil)
}

// MakeKnock prepares a knock for a user of another server.
func (r *Rooms) MakeKnock(ctx context.Context, id matrix.RoomID, user matrix.UserID, supported []string) (RemoteTemplate, error) {
	if supported == nil {
		supported = []string{}
	}
	return r.template(ctx, id, user, spec.Knock, supported)
}

// membershipPDU checks a membership event that another server hands over for one
// of its own users.
func (r *Rooms) membershipPDU(ctx context.Context, id matrix.RoomID, eventID matrix.EventID, origin matrix.ServerName, raw json.RawMessage, membership string) (*events.Event, error) {
	if !r.participates(id) {
		return nil, matrix.NotFound("this server is not in %s", id)
	}
	version, err := r.Version(ctx, id)
	if err != nil {
		return nil, err
	}
	ev, err := events.Parse(raw, gomatrixserverlib.RoomVersion(version))
	if err != nil {
		return nil, err
	}
	switch {
	case ev.Room != id:
		return nil, matrix.BadJSON("the event is of another room")
	case ev.ID != eventID:
		return nil, matrix.BadJSON("the event's ID is %s, not %s", ev.ID, eventID)
	case ev.Type != spec.MRoomMember || ev.StateKey == nil || ev.Membership != membership:
		return nil, matrix.BadJSON("a member event with membership %s is needed", membership)
	case *ev.StateKey != string(ev.Sender):
		return nil, matrix.BadJSON("sender and state_key must be the same user")
	case ev.Sender.Server() != origin:
		return nil, matrix.Forbidden("%s is not a user of %s", ev.Sender, origin)
	}
	if via := matrix.UserID(ev.ContentString("join_authorised_via_users_server")); via != "" && r.isLocal(via) {
		if ev, err = ev.Sign(r.o.Signer); err != nil {
			return nil, err
		}
	}
	if err := r.o.Remote.Verify(ctx, version, []json.RawMessage{ev.JSON})[0]; err != nil {
		return nil, matrix.Forbidden("bad signature: %s", err)
	}
	return ev, nil
}

// SendJoin lets a user of another server in and returns the state before his
// join, without most of the members if that server can do without them.
func (r *Rooms) SendJoin(ctx context.Context, id matrix.RoomID, eventID matrix.EventID, origin matrix.ServerName, raw json.RawMessage, omitMembers bool) (JoinState, error) {
	ev, err := r.membershipPDU(ctx, id, eventID, origin, raw, spec.Join)
	if err != nil {
		return JoinState{}, err
	}
	before := slices.Clone(r.hub.Servers(id))
	placed, err := r.accept(ctx, origin, ev, handed)
	if err != nil {
		return JoinState{}, err
	}
	if placed.Hidden() {
		return JoinState{}, matrix.Forbidden("the join is not allowed")
	}
	out := JoinState{Version: string(ev.Version), Event: placed.JSON, Servers: before}
	if omitMembers {
		out.State, out.AuthChain, err = r.leanStateBefore(ctx, placed)
	} else {
		out.State, out.AuthChain, err = r.stateBefore(ctx, placed)
	}
	return out, err
}

// SendLeave takes a user of another server out.
func (r *Rooms) SendLeave(ctx context.Context, id matrix.RoomID, eventID matrix.EventID, origin matrix.ServerName, raw json.RawMessage) error {
	ev, err := r.membershipPDU(ctx, id, eventID, origin, raw, spec.Leave)
	if err != nil {
		return err
	}
	_, err = r.accept(ctx, origin, ev, handed)
	return err
}

// SendKnock takes in the knock of a user of another server and returns what he
// may see of the room.
func (r *Rooms) SendKnock(ctx context.Context, id matrix.RoomID, eventID matrix.EventID, origin matrix.ServerName, raw json.RawMessage) ([]json.RawMessage, error) {
	ev, err := r.membershipPDU(ctx, id, eventID, origin, raw, spec.Knock)
	if err != nil {
		return nil, err
	}
	if _, err := r.accept(ctx, origin, ev, handed); err != nil {
		return nil, err
	}
	rm, err := r.locked(ctx, id)
	if err != nil {
		return nil, err
	}
	defer rm.mu.Unlock()
	return stripPDUs(r.inviteState(rm)), nil
}

// ReceiveInvite takes in an invitation of a local user and returns it with this
// server's signature.
// Spec: server-server-api#inviting-to-a-room
func (r *Rooms) ReceiveInvite(ctx context.Context, origin matrix.ServerName, id matrix.RoomID, eventID matrix.EventID, version string, raw json.RawMessage, st []json.RawMessage) (json.RawMessage, error) {
	if !Supported(version) {
		return nil, matrix.IncompatibleRoomVersion(version)
	}
	ev, err := events.Parse(raw, gomatrixserverlib.RoomVersion(version))
	if err != nil {
		return nil, err
	}
	target := matrix.UserID(ev.Key())
	switch {
	case ev.Room != id || ev.ID != eventID:
		return nil, matrix.BadJSON("the event is another one than the path says")
	case ev.Type != spec.MRoomMember || ev.StateKey == nil || ev.Membership != spec.Invite:
		return nil, matrix.BadJSON("an invitation is needed")
	case ev.Sender.Server() != origin:
		return nil, matrix.Forbidden("%s is not a user of %s", ev.Sender, origin)
	case !r.isLocal(target):
		return nil, matrix.InvalidParam("%s is not a user of this server", target)
	}
	if r.o.Exists != nil {
		ok, err := r.o.Exists(ctx, target)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, matrix.NotFound("%s is not a user of this server", target)
		}
	}
	if err := r.mayInvite(ev.Sender, target); err != nil {
		return nil, err
	}
	if ev, err = ev.Sign(r.o.Signer); err != nil {
		return nil, err
	}
	if err := r.o.Remote.Verify(ctx, version, []json.RawMessage{ev.JSON})[0]; err != nil {
		return nil, matrix.Forbidden("bad signature: %s", err)
	}
	if r.participates(id) {
		if r.hub.Joined(target, id) {
			return nil, matrix.Forbidden("%s is in the room already", target)
		}
		return ev.JSON, nil // it comes again with the room's other events
	}
	return ev.JSON, r.outside(ctx, ev, joinRaw(stripPDUs(st), ev))
}

func (r *Rooms) stateBefore(ctx context.Context, ev *events.Event) (st, chain []json.RawMessage, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		v, err := state.ViewBefore(tx, ev.NID, ev.Pos)
		if err != nil {
			return err
		}
		all, err := v.All(tx, ev.Room)
		if err != nil {
			return err
		}
		nids := make([]int64, 0, len(all))
		for _, nid := range all {
			nids = append(nids, nid)
		}
		evs, err := r.events.ByNID(tx, nids)
		if err != nil {
			return err
		}
		list := make([]*events.Event, 0, len(evs)+1)
		for _, e := range evs {
			list = append(list, e)
			st = append(st, e.JSON)
		}
		auth, err := r.authChain(tx, append(list, ev))
		if err != nil {
			return err
		}
		for _, e := range auth {
			chain = append(chain, e.JSON)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading the state before %s: %w", ev.ID, err)
	}
	return st, chain, nil
}

// at reads an event that has a place in the timeline of a room.
func (r *Rooms) at(ctx context.Context, id matrix.RoomID, eventID matrix.EventID) (*events.Event, error) {
	ev, err := r.known(ctx, eventID)
	if err != nil {
		return nil, err
	}
	if ev == nil || ev.Room != id || ev.Flags&(events.FlagOutlier|events.FlagRejected) != 0 {
		return nil, matrix.NotFound("the event is not known")
	}
	return ev, nil
}

// StateAt is the state before an event with its auth chain, as PDUs.
func (r *Rooms) StateAt(ctx context.Context, id matrix.RoomID, eventID matrix.EventID) (st, chain []json.RawMessage, err error) {
	ev, err := r.at(ctx, id, eventID)
	if err != nil {
		return nil, nil, err
	}
	return r.stateBefore(ctx, ev)
}

// AuthChain is the auth chain of an event, as PDUs.
func (r *Rooms) AuthChain(ctx context.Context, id matrix.RoomID, eventID matrix.EventID) (out []json.RawMessage, err error) {
	ev, err := r.known(ctx, eventID)
	if err != nil {
		return nil, err
	}
	if ev == nil || ev.Room != id {
		return nil, matrix.NotFound("the event is not known")
	}
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		chain, err := r.authChain(tx, []*events.Event{ev})
		for _, e := range chain {
			out = append(out, e.JSON)
		}
		return err
	})
	return out, err
}

// walk goes back from events along prev_events, breadth first, at most limit
// events; stop ends a branch.
func (r *Rooms) walk(ctx context.Context, id matrix.RoomID, from []matrix.EventID, limit int, stop func(*events.Event) bool) (out []*events.Event, err error) {
	seen := map[matrix.EventID]bool{}
	for _, s := range from {
		seen[s] = true
	}
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		next := from
		for len(next) > 0 && len(out) < limit {
			got, err := r.events.GetMany(tx, next)
			if err != nil {
				return err
			}
			var more []matrix.EventID
			for _, i := range next {
				e := got[i]
				if e == nil || e.Room != id || e.Flags&events.FlagOutlier != 0 || stop(e) {
					continue
				}
				if len(out) < limit && !e.Rejected() {
					out = append(out, e)
				}
				for _, p := range e.PrevEvents() {
					if !seen[p] {
						seen[p] = true
						more = append(more, p)
					}
				}
			}
			next = more
		}
		return nil
	})
	return out, err
}

// MissingEvents serves POST /get_missing_events: the events between earliest and
// latest, the oldest first.
func (r *Rooms) MissingEvents(ctx context.Context, server matrix.ServerName, id matrix.RoomID, earliest, latest []matrix.EventID, limit int, minDepth int64) ([]json.RawMessage, error) {
	start, err := r.many(ctx, latest)
	if err != nil {
		return nil, err
	}
	var from []matrix.EventID
	for _, e := range start {
		if e.Room == id {
			from = append(from, e.PrevEvents()...)
		}
	}
	list, err := r.walk(ctx, id, unique(from), limit, func(e *events.Event) bool {
		return slices.Contains(earliest, e.ID) || slices.Contains(latest, e.ID) || e.Depth < minDepth
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b *events.Event) int { return int(a.Depth - b.Depth) })
	return r.seenBy(ctx, server, list)
}

// History serves GET /backfill: the events and their ancestors, the newest first.
func (r *Rooms) History(ctx context.Context, server matrix.ServerName, id matrix.RoomID, from []matrix.EventID, limit int) ([]json.RawMessage, error) {
	list, err := r.walk(ctx, id, from, limit, func(*events.Event) bool { return false })
	if err != nil {
		return nil, err
	}
	return r.seenBy(ctx, server, list)
}

// seenBy gives the PDUs of those events that a server may see, and the redacted
// form of the others.
func (r *Rooms) seenBy(ctx context.Context, server matrix.ServerName, list []*events.Event) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, 0, len(list))
	for _, e := range list {
		ok, err := r.ServerMaySee(ctx, server, e)
		if err != nil {
			return nil, err
		}
		if !ok {
			if e, err = e.Redact(e); err != nil {
				return nil, err
			}
		}
		out = append(out, e.JSON)
	}
	return out, nil
}

// ServerMaySee evaluates the history visibility for a server: at least one of
// its users must have been able to see the event.
// Spec: server-server-api#backfilling-and-retrieving-missing-events
func (r *Rooms) ServerMaySee(ctx context.Context, server matrix.ServerName, ev *events.Event) (ok bool, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		row, found, err := state.KeyAt(tx, ev.Room, state.Key{Type: spec.MRoomHistoryVisibility}, ev.Pos)
		if err != nil {
			return err
		}
		if erased, err := r.erasedFor(tx, server, ev); err != nil || erased {
			return err
		}
		visibility := "shared"
		if found {
			if visibility, err = r.visibilityOf(tx, row.NID); err != nil {
				return err
			}
		}
		if visibility == "world_readable" || visibility == "shared" {
			ok = true
			return nil
		}
		members, err := state.TypeAt(tx, ev.Room, spec.MRoomMember, ev.Pos)
		for _, m := range members {
			if matrix.UserID(m.StateKey).Server() == server && (m.Membership == spec.Join || m.Membership == spec.Invite && visibility == "invited") {
				ok = true
			}
		}
		return err
	})
	return ok, err
}

// Fetch asks other servers for history before what is known of a room and stores
// it. It reports whether anything new came.
// Spec: server-server-api#backfilling-and-retrieving-missing-events
func (r *Rooms) Fetch(ctx context.Context, id matrix.RoomID, limit int) (bool, error) {
	if r.o.Remote == nil || !r.participates(id) {
		return false, nil
	}
	unlock, err := r.filling.LockContext(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	edge, version, err := r.edge(ctx, id)
	if err != nil || len(edge) == 0 {
		return false, err
	}
	list, err := r.backfill(ctx, id, version, edge, limit)
	if err != nil || len(list) == 0 {
		return false, err
	}
	return true, r.storeOldest(ctx, list)
}

// edge lists ancestors that are named by the oldest known events and are not
// known themselves.
func (r *Rooms) edge(ctx context.Context, id matrix.RoomID) (out []matrix.EventID, version string, err error) {
	var oldest []*events.Event
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		oldest, err = r.events.Timeline(tx, id, stream.Pos(-1<<62), state.Open-1, 20, true)
		return err
	})
	if err != nil || len(oldest) == 0 {
		return nil, "", err
	}
	var prev []matrix.EventID
	for _, e := range oldest {
		prev = append(prev, e.PrevEvents()...)
	}
	out, _, err = r.missing(ctx, id, unique(prev))
	return out, string(oldest[0].Version), err
}

// newHistory picks those PDUs that are good and have no place here yet, the oldest
// first.
func (r *Rooms) newHistory(ctx context.Context, id matrix.RoomID, version string, raws []json.RawMessage) ([]*events.Event, error) {
	_, fresh, _, err := r.outliers(ctx, version, id, raws)
	if err != nil {
		return nil, err
	}
	known := map[matrix.EventID]*events.Event{}
	var ids []matrix.EventID
	var list []*events.Event
	for _, raw := range raws {
		if e, err := events.Parse(raw, gomatrixserverlib.RoomVersion(version)); err == nil && e.Room == id {
			ids = append(ids, e.ID)
		}
	}
	for _, e := range fresh {
		known[e.ID] = e
	}
	stored, err := r.many(ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, i := range ids {
		if e := stored[i]; e != nil && e.Flags&events.FlagOutlier != 0 {
			list = append(list, e)
		} else if e := known[i]; e != nil && stored[i] == nil {
			list = append(list, e)
		}
	}
	slices.SortStableFunc(list, func(a, b *events.Event) int { return int(a.Depth - b.Depth) })
	return list, nil
}

// storeOldest puts a list before all that is known of a room.
func (r *Rooms) storeOldest(ctx context.Context, list []*events.Event) error {
	err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
		nid, err := r.events.Lower(tx, len(list))
		if err != nil {
			return err
		}
		for i, e := range list {
			if err := r.putHistory(tx, e, nid+int64(i), stream.Pos(nid+int64(i)), events.FlagBackfilled); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing history: %w", err)
	}
	return nil
}

// ServersAt lists the servers with a joined user right after a position, from
// the state as it then was.
func (r *Rooms) ServersAt(tx *sqldb.Tx, id matrix.RoomID, pos stream.Pos) ([]matrix.ServerName, error) {
	members, err := state.TypeAt(tx, id, spec.MRoomMember, pos)
	if err != nil {
		return nil, err
	}
	var out []matrix.ServerName
	for _, m := range members {
		if s := matrix.UserID(m.StateKey).Server(); m.Membership == spec.Join && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, nil
}

func (r *Rooms) visibilityOf(tx *sqldb.Tx, nid int64) (string, error) {
	evs, err := r.events.ByNID(tx, []int64{nid})
	if err != nil {
		return "", err
	}
	return visibilityIn(evs[nid]), nil
}

// visibilityIn is what an event makes the visibility of a room's history; nil is a
// room without one.
func visibilityIn(e *events.Event) string {
	if e != nil {
		switch v := gjson.GetBytes(e.JSON, "content.history_visibility").Str; v {
		case "world_readable", "shared", "invited", "joined":
			return v
		}
	}
	return "shared"
}
