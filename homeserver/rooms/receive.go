package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	// maxMissing is how many events are asked for at once where some are missing,
	// and maxRounds how often for one event.
	maxMissing = 50
	maxRounds  = 10
	// maxOneByOne is how many events are asked for each by itself.
	maxOneByOne  = 100
	eventsAtOnce = 8
	// fewMissing: an answer with fewer events than that is all that a server has to
	// give, as servers put their bound at 10 or above. Spec: post_matrixfederationv1get_missing_eventsroomid
	fewMissing = 10
	// maxEntering is how long an event waits for a join that is under way.
	maxEntering = time.Minute
	// maxPrev and maxAuth are how many prev_events and auth_events an event may have;
	// in room version 12 the create event, which it does not name, is counted besides.
	// Spec: server-server-api#pdus
	maxPrev = 20
	maxAuth = 10 + 1
	// maxTips bounds the prev_events of our own events.
	maxTips = maxPrev
	// maxChain bounds the walk through an auth chain that another server gives.
	maxChain = 100_000
	// selfNID stands for the row of the event that is being stored.
	selfNID = int64(-1) << 62
)

// Receive takes in an event from another server: the checks on receipt, missing
// ancestors, authorisation before and now, state resolution. An event that is
// rejected is stored as such and reported as an error. The event's ID is returned
// with an error, too, unless the event is too malformed to have one.
//
// Spec: server-server-api#checks-performed-on-receipt-of-a-pdu
func (r *Rooms) Receive(ctx context.Context, origin matrix.ServerName, raw json.RawMessage) (matrix.EventID, error) {
	room, err := roomOf(raw)
	if err != nil {
		return statedID(raw), err
	}
	if !r.participates(room) && !r.enters(ctx, room) {
		return r.receiveOutside(ctx, origin, room, raw)
	}
	version, err := r.Version(ctx, room)
	if err != nil {
		return statedID(raw), err
	}
	ev, err := events.Parse(raw, gomatrixserverlib.RoomVersion(version))
	if err != nil {
		return statedID(raw), err
	}
	if ok, err := r.ACLAllows(ctx, room, origin); err != nil || !ok {
		if err == nil {
			err = matrix.Forbidden("%s is not allowed in this room", origin)
		}
		return ev.ID, err
	}
	if err := r.signed(ctx, ev); err != nil {
		return ev.ID, err
	}
	_, err = r.accept(ctx, origin, ev, sent)
	return ev.ID, err
}

// enters waits while this server is on its way into a room, of which the servers
// there may already tell it, and reports whether it is in.
func (r *Rooms) enters(ctx context.Context, room matrix.RoomID) bool {
	unlock, free := r.entering.TryLock(room)
	if free {
		unlock()
		return r.participates(room)
	}
	ctx, cancel := context.WithTimeout(ctx, maxEntering)
	defer cancel()
	unlock, err := r.entering.LockContext(ctx, room)
	if err != nil {
		return false
	}
	unlock()
	return r.participates(room)
}

// statedID is the ID that an event of one of the first two room versions gives
// itself; empty for others.
func statedID(raw json.RawMessage) matrix.EventID {
	id, err := matrix.ParseEventID(gjson.GetBytes(raw, "event_id").Str)
	if err != nil {
		return ""
	}
	return id
}

// roomOf finds the room of a PDU.
func roomOf(raw json.RawMessage) (matrix.RoomID, error) {
	f := gjson.GetBytes(raw, "room_id")
	if f.Type != gjson.String {
		return "", matrix.BadJSON("the event has no room_id")
	}
	return matrix.ParseRoomID(f.Str)
}

// receiveOutside takes in what concerns a local user in a room that this server
// is not in: his invitation is taken back, or his knock refused. The room's state
// is not known; the event must build on the very invitation or knock, and only
// who gave an invitation is believed to take it back.
func (r *Rooms) receiveOutside(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, raw json.RawMessage) (matrix.EventID, error) {
	id := statedID(raw)
	if id == "" { // the ID depends on the version; this is the rule of most
		if ev, err := events.Parse(raw, gomatrixserverlib.RoomVersionV11); err == nil {
			id = ev.ID
		}
	}
	unknown := matrix.NotFound("this server is not in %s", room)
	f := gjson.GetManyBytes(raw, "type", "state_key", "content.membership")
	target := matrix.UserID(f[1].Str)
	if f[0].Str != spec.MRoomMember || !r.isLocal(target) || f[2].Str != spec.Leave && f[2].Str != spec.Ban {
		return id, unknown
	}
	m, err := r.MembershipOf(ctx, target, room)
	if err != nil {
		return id, err
	}
	if m == nil || m.Membership != spec.Invite && m.Membership != spec.Knock {
		return id, unknown
	}
	before, err := r.known(ctx, m.Event)
	if err != nil {
		return id, err
	}
	if before == nil {
		return id, unknown
	}
	ev, err := r.check(ctx, string(before.Version), raw)
	if err != nil {
		return id, err
	}
	if ev.Sender.Server() != origin || m.Membership == spec.Invite && ev.Sender != m.Sender || !slices.Contains(ev.AuthEvents(), before.ID) {
		return ev.ID, matrix.Forbidden("%s does not end the membership of %s", ev.ID, target)
	}
	return ev.ID, r.outside(ctx, ev, "")
}

// check parses a PDU and verifies its signatures.
func (r *Rooms) check(ctx context.Context, version string, raw json.RawMessage) (*events.Event, error) {
	ev, err := events.Parse(raw, gomatrixserverlib.RoomVersion(version))
	if err != nil {
		return nil, err
	}
	return ev, r.signed(ctx, ev)
}

// signed verifies an event's signatures.
func (r *Rooms) signed(ctx context.Context, ev *events.Event) error {
	if err := r.o.Remote.Verify(ctx, string(ev.Version), []json.RawMessage{ev.JSON})[0]; err != nil {
		return matrix.Forbidden("bad signature on %s: %s", ev.ID, err)
	}
	return nil
}

// way is how an event has come here.
type way int

const (
	sent    way = iota // origin sent it, and is asked for what is missing before it
	between            // origin gave it as something that was missing
	handed             // it was made on a template of ours, or by ourselves
)

// accept stores a checked event in its room.
func (r *Rooms) accept(ctx context.Context, origin matrix.ServerName, ev *events.Event, came way) (*events.Event, error) {
	known, err := r.known(ctx, ev.ID)
	if err != nil {
		return nil, err
	}
	if known != nil && known.Flags&events.FlagOutlier == 0 {
		return known, nil
	}
	if known != nil {
		ev.NID = known.NID
	}
	if err := placeable(ev, known); err != nil {
		return known, err
	}
	foreign, err := r.ancestors(ctx, origin, ev, came == sent)
	if err == nil && foreign == nil && came != handed {
		foreign, err = r.stateDue(ctx, origin, ev)
	}
	if err != nil {
		return nil, err
	}
	auth, err := r.authEvents(ctx, origin, ev)
	if err != nil {
		return nil, err
	}
	rejected := authorisedBy(ev, auth)
	if rejected == nil {
		if ev, err = r.vet(ctx, ev); err != nil {
			return nil, err
		}
	}
	for attempt := 0; ; attempt++ {
		placed, err := r.acceptOnce(ctx, ev, rejected, foreign, came != handed && unplaced(auth))
		if err != nil && attempt < maxAttempts && errors.Is(err, errRoomMoved) {
			continue
		}
		if errors.Is(err, errStateLacks) {
			if foreign, err = r.stateBeside(ctx, origin, ev); err != nil {
				return nil, matrix.Forbidden("the state before %s cannot be had: %s", ev.ID, err)
			}
			continue
		}
		if attempt < maxAttempts && errors.Is(err, sqldb.ErrExists) {
			// It has come in by another way meanwhile, as a part of what was fetched.
			if known, err = r.known(ctx, ev.ID); err != nil {
				return nil, err
			}
			if known != nil && known.Flags&events.FlagOutlier == 0 {
				return known, nil
			}
			if known != nil {
				ev.NID = known.NID
				continue
			}
		}
		return placed, err
	}
}

// placeable refuses what can have no place in a room that this server is in.
//
// Spec: server-server-api#pdus (prev_events, auth_events)
func placeable(ev, known *events.Event) error {
	switch prev := ev.PrevEvents(); {
	case len(prev) == 0 && known != nil:
		return matrix.Forbidden("%s is known, and from before this server came in", ev.ID)
	case len(prev) == 0:
		return matrix.Forbidden("%s is built on nothing", ev.ID)
	case len(prev) > maxPrev:
		return matrix.Forbidden("%s is built on %d events, at most %d are allowed", ev.ID, len(prev), maxPrev)
	case len(ev.AuthEvents()) > maxAuth:
		return matrix.Forbidden("%s names %d events that authorise it, at most %d are allowed", ev.ID, len(ev.AuthEvents()), maxAuth)
	}
	return nil
}

func (r *Rooms) known(ctx context.Context, id matrix.EventID) (e *events.Event, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		e, err = r.events.Get(tx, id)
		return err
	})
	return e, err
}

// missing lists those of ids that have no place in the timeline of a room here, and
// one of them that is of another room, "" if there is none.
func (r *Rooms) missing(ctx context.Context, room matrix.RoomID, ids []matrix.EventID) (out []matrix.EventID, alien matrix.EventID, err error) {
	var have map[matrix.EventID]*events.Event
	err = r.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		have, err = r.events.GetMany(tx, ids)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("looking for prev_events: %w", err)
	}
	for _, id := range ids {
		switch e := have[id]; {
		case e != nil && e.Room != room:
			alien = id
		case e == nil || e.Flags&events.FlagOutlier != 0:
			out = append(out, id)
		}
	}
	return out, alien, nil
}

// authorisedBy judges an event by the events that it names as authorising it: they
// must be those that decide over it, and allow it.
// Spec: rooms/v12#authorization-rules, 3 (2 in other versions)
func authorisedBy(ev *events.Event, auth []*events.Event) error {
	if ev.Type != spec.MRoomCreate {
		selected, seen := selection(ev), map[state.Key]bool{}
		for _, a := range auth {
			key := keyOf(a)
			switch {
			case a.StateKey == nil || !selected[key]:
				return matrix.Forbidden("%s is authorised by %s, which has no say in it", ev.ID, a.ID)
			case seen[key]:
				return matrix.Forbidden("%s is authorised by two events of type %s", ev.ID, a.Type)
			case a.Room != ev.Room:
				return matrix.Forbidden("%s is authorised by an event of another room", ev.ID)
			}
			seen[key] = true
		}
	}
	return allowedBy(ev, auth)
}

// selection names the state that may decide over an event.
// Spec: server-server-api#auth-events-selection
func selection(ev *events.Event) map[state.Key]bool {
	out := map[state.Key]bool{{Type: spec.MRoomCreate}: true, {Type: spec.MRoomPowerLevels}: true, memberKey(ev.Sender): true}
	if ev.Type != spec.MRoomMember {
		return out
	}
	out[memberKey(matrix.UserID(ev.Key()))] = true
	switch ev.Membership {
	case spec.Join, spec.Invite, spec.Knock:
		out[state.Key{Type: spec.MRoomJoinRules}] = true
	}
	if token := gjson.GetBytes(ev.JSON, "content.third_party_invite.signed.token"); ev.Membership == spec.Invite && token.Type == gjson.String {
		out[state.Key{Type: spec.MRoomThirdPartyInvite, StateKey: token.Str}] = true
	}
	if via := ev.ContentString("join_authorised_via_users_server"); ev.Membership == spec.Join && via != "" {
		out[memberKey(matrix.UserID(via))] = true
	}
	return out
}

// allowedBy authorises an event against the events that it names itself; nil if
// it is allowed.
func allowedBy(ev *events.Event, auth []*events.Event) error {
	return allowedByParsed(ev, auth, (*events.Event).PDU)
}

// allowedByParsed is allowedBy with a way of its own to parse events.
func allowedByParsed(ev *events.Event, auth []*events.Event, parse func(*events.Event) (gomatrixserverlib.PDU, error)) error {
	pdus := make([]gomatrixserverlib.PDU, 0, len(auth))
	for _, a := range auth {
		if a.Rejected() {
			return matrix.Forbidden("%s is authorised by the rejected event %s", ev.ID, a.ID)
		}
		p, err := parse(a)
		if err != nil {
			return err
		}
		pdus = append(pdus, p)
	}
	provider, err := gomatrixserverlib.NewAuthEvents(pdus)
	if err != nil {
		return matrix.Forbidden("auth_events: %s", err)
	}
	pdu, err := parse(ev)
	if err != nil {
		return err
	}
	return allowed(ev, pdu, provider)
}

// acceptOnce places one event. An event whose prev_events are the room's tips is
// treated like one of our own; others go through views and resolution. lacks says that
// the state here may lack what authorises the event; if it would be refused because of
// that, nothing is done, and errStateLacks returned.
func (r *Rooms) acceptOnce(ctx context.Context, ev *events.Event, rejected error, foreign *foreignState, lacks bool) (*events.Event, error) {
	rm, err := r.locked(ctx, ev.Room)
	if err != nil {
		return nil, err
	}
	b := &built{ev: ev.Placed(ev.NID, 0, 0)}
	// Only what comes after everything is sure to bring along all that is missing.
	heard := foreign != nil && foreign.beside && sameSet(ev.PrevEvents(), rm.tips)
	verdict := rejected
	err = rm.guarded(func() (err error) {
		verdict, err = r.judge(ctx, rm, b, rejected, foreign)
		if err == nil && verdict != nil && rejected == nil && foreign == nil && lacks {
			err = errStateLacks
		}
		return err
	})
	if err != nil {
		rm.loaded = false
		rm.mu.Unlock()
		return nil, err
	}
	if verdict != nil && b.pend == nil { // rejected: kept, but nothing builds on it
		if !matrix.IsCode(verdict, "M_FORBIDDEN") {
			rm.mu.Unlock()
			return nil, verdict
		}
		b.ev.Flags |= events.FlagRejected
		b.pend, b.noState = &pending{}, true
	}
	crowded := len(rm.tips) > fewTips
	if err := r.commit(ctx, rm, []*built{b}); err != nil {
		return nil, err
	}
	if crowded {
		r.ends.note(ev.Room)
	}
	if heard && !b.placed.Dead() {
		return b.placed, r.heard(ctx, ev.Room, foreign.since)
	}
	return b.placed, verdict
}

// judge authorises an event and applies it to the room in memory; the verdict
// says why it is rejected.
func (r *Rooms) judge(ctx context.Context, rm *room, b *built, rejected error, foreign *foreignState) (verdict, err error) {
	if b.ev.Redacts != "" {
		if b.redacts, err = r.mayRedact(ctx, rm, b.ev, b.ev.Sender); err != nil {
			return nil, err
		}
	}
	if foreign != nil || b.ev.Flags&events.FlagPolicy != 0 || !sameSet(b.ev.PrevEvents(), rm.tips) {
		return r.fork(ctx, rm, b, rejected, foreign)
	}
	if rejected != nil {
		return rejected, nil
	}
	if verdict = r.authorise(ctx, rm, b.ev); verdict != nil {
		return verdict, nil
	}
	return nil, r.remember(ctx, rm, b)
}

func sameSet(a, b []matrix.EventID) bool {
	if len(a) != len(b) {
		return false
	}
	for _, id := range a {
		if !slices.Contains(b, id) {
			return false
		}
	}
	return true
}

// fork places an event beside the room's tips: its state is a view, the current
// state is resolved anew between the tips. It returns why the event is rejected.
func (r *Rooms) fork(ctx context.Context, rm *room, b *built, verdict error, foreign *foreignState) (error, error) {
	if rm.last != nil {
		rm.last.Wait() // views are read from the database: what is on its way must be there
	}
	b.pend, b.noState = &pending{}, true
	ev := b.ev
	var before state.View
	var tips []matrix.EventID
	err := r.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		head := r.log.Head()
		if foreign != nil {
			if !foreign.beside {
				ev.Flags |= events.FlagGap
			}
			before, err = r.viewBeyond(ctx, tx, rm, head, ev, foreign)
		} else {
			before, err = r.viewBefore(ctx, tx, rm, ev)
		}
		if err != nil {
			return err
		}
		b.view = &before
		if verdict == nil {
			if verdict, err = r.allowedIn(tx, rm, before, ev); err != nil {
				return err
			}
		}
		now := r.authorise(ctx, rm, ev)
		if now != nil && foreign != nil && foreign.beside {
			if now, err = r.allowedWith(ctx, tx, rm, head, before, ev); err != nil {
				return err
			}
		}
		switch {
		case verdict != nil:
			ev.Flags |= events.FlagRejected
		case ev.Flags&events.FlagPolicy != 0 || now != nil:
			ev.Flags |= events.FlagSoftFailed
		case ev.IsDummy():
			ev.Flags |= dummy
		}
		tips, err = r.placeTips(ctx, tx, rm, head, b, foreign != nil)
		return err
	})
	if err != nil {
		return verdict, err
	}
	rm.tips, rm.moved = tips, r.o.Now()
	if !ev.Dead() {
		rm.depth = max(rm.depth, ev.Depth)
	}
	return verdict, nil
}

// between resolves the state between a new event and the other tips, and gives
// what changes of the current state, that at head. It is never nil. The state before
// an event that is no tip is nil.
func (r *Rooms) between(ctx context.Context, tx *sqldb.Tx, rm *room, head stream.Pos, ev *events.Event, before *state.View, others []matrix.EventID) ([]resolvedEntry, error) {
	extra := map[int64]*events.Event{}
	var views []state.View
	if before != nil {
		after := *before
		if ev.StateKey != nil {
			after, extra[selfNID] = before.With(keyOf(ev), selfNID), ev
		}
		views = append(views, after)
	}
	tips, err := r.events.GetMany(tx, others)
	if err != nil {
		return nil, err
	}
	for _, id := range others {
		if t := tips[id]; t != nil {
			v, err := viewAfter(tx, t)
			if err != nil {
				return nil, err
			}
			views = append(views, v)
		}
	}
	if len(views) == 0 {
		return nil, fmt.Errorf("after %s there is nothing to build on", ev.ID)
	}
	after := views[0]
	if len(views) > 1 {
		changes, err := r.resolve(ctx, tx, rm, views, extra)
		if err != nil {
			return nil, err
		}
		after = changed(after, changes)
	}
	diff, err := state.Differences(tx, rm.id, []state.View{{Base: head}, after})
	if err != nil {
		return nil, err
	}
	sets, nids := make([]resolvedEntry, 0, len(diff)), []int64{}
	for key, list := range diff {
		e := resolvedEntry{key: key, nid: list[1]}
		if e.nid == selfNID {
			e.membership = ev.Membership
		} else if key.Type == spec.MRoomMember && e.nid != 0 {
			nids = append(nids, e.nid)
		}
		sets = append(sets, e)
	}
	members, err := r.events.ByNID(tx, nids)
	if err != nil {
		return nil, err
	}
	for i := range sets {
		if m := members[sets[i].nid]; m != nil {
			sets[i].membership = m.Membership
		}
	}
	return sets, nil
}
