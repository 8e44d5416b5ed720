package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	log "github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// candidates lists the servers to ask about a room, the likeliest first.
func (r *Rooms) candidates(ctx context.Context, c MemberChange) ([]matrix.ServerName, error) {
	if r.o.Remote == nil {
		return nil, matrix.NotFound("this server does not know the room %s and does not federate", c.Room)
	}
	var out []matrix.ServerName
	add := func(list ...matrix.ServerName) {
		for _, s := range list {
			if s != "" && s != r.o.Signer.Server && !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	add(c.Via...)
	m, err := r.MembershipOf(ctx, c.Target, c.Room)
	if err != nil {
		return nil, err
	}
	if m != nil {
		add(m.Sender.Server())
	}
	if len(out) == 0 {
		add(r.hub.Servers(c.Room)...)
	}
	if len(out) == 0 { // its name says who made the room, not who is in it
		add(c.Room.Server())
	}
	if len(out) == 0 {
		return nil, matrix.NotFound("no server is known that is in %s", c.Room)
	}
	return out, nil
}

// anyOf tries servers in turn and gives the most telling error of all.
func anyOf(servers []matrix.ServerName, try func(matrix.ServerName) error) error {
	var last error
	for _, s := range servers {
		err := try(s)
		if err == nil {
			return nil
		}
		var me *matrix.Error
		if last == nil || errors.As(err, &me) {
			last = err
		}
	}
	var me *matrix.Error
	if errors.As(last, &me) {
		return me
	}
	return matrix.NewError(502, "M_UNKNOWN", "no server of the room could be reached: %s", last)
}

// fromTemplate signs a membership event that another server has prepared.
func (r *Rooms) fromTemplate(ctx context.Context, c MemberChange, t RemoteTemplate, membership string) (*events.Event, error) {
	if !Supported(t.Version) {
		return nil, matrix.IncompatibleRoomVersion(t.Version)
	}
	content, err := r.memberContent(ctx, c, membership)
	if err != nil {
		return nil, err
	}
	if via := gjson.GetBytes(t.Event, "content.join_authorised_via_users_server"); via.Type == gjson.String {
		if content, err = sjson.SetBytes(content, "join_authorised_via_users_server", via.Str); err != nil {
			return nil, err
		}
	}
	e := events.Event{JSON: t.Event}
	key := string(c.Target)
	return events.Build(events.Proto{
		Version: gomatrixserverlib.RoomVersion(t.Version), Room: c.Room, Sender: c.Target, Type: spec.MRoomMember, StateKey: &key,
		Content: content, PrevEvents: e.PrevEvents(), AuthEvents: e.AuthEvents(), Depth: gjson.GetBytes(t.Event, "depth").Int(),
		Time: r.o.Now(),
	}, r.o.Signer)
}

// joinRemote joins through another server. alone says that entering is held for
// the room.
func (r *Rooms) joinRemote(ctx context.Context, c MemberChange, alone bool) error {
	servers, err := r.candidates(ctx, c)
	if err != nil {
		return err
	}
	return anyOf(servers, func(s matrix.ServerName) error {
		t, err := r.o.Remote.MakeJoin(ctx, s, c.Room, c.Target, joinable())
		if err != nil {
			return err
		}
		ev, err := r.fromTemplate(ctx, c, t, spec.Join)
		if err != nil {
			return err
		}
		joined, err := r.o.Remote.SendJoin(ctx, s, c.Room, ev.ID, ev.JSON)
		if err != nil {
			return err
		}
		if len(joined.Event) > 0 {
			if signed, err := events.Parse(joined.Event, ev.Version); err == nil && signed.ID == ev.ID {
				ev = signed
			}
		}
		if !alone {
			// A restricted room in which nobody here may vouch. The last one here may
			// have left by now, and others be about to enter.
			unlock, err := r.entering.LockContext(ctx, c.Room)
			if err != nil {
				return err
			}
			defer unlock()
		}
		if r.participates(c.Room) {
			_, err := r.accept(ctx, s, ev, sent)
			return err
		}
		return r.enter(ctx, ev, joined)
	})
}

// enter stores the state of a room that this server joins, and the join.
func (r *Rooms) enter(ctx context.Context, ev *events.Event, joined RemoteJoin) error {
	raws := append(slices.Clone(joined.AuthChain), joined.State...)
	all, fresh, silent, err := r.outliers(ctx, string(ev.Version), ev.Room, raws)
	if err == nil {
		err = r.noteSilent(ctx, ev.Room, silent)
	}
	if err != nil {
		return err
	}
	st := map[state.Key]*events.Event{}
	for _, raw := range joined.State {
		e, err := events.Parse(raw, ev.Version)
		if err != nil || e.StateKey == nil {
			continue
		}
		if good := all[e.ID]; good != nil && !good.Rejected() {
			st[state.Key{Type: good.Type, StateKey: *good.StateKey}] = good
		}
	}
	if st[state.Key{Type: spec.MRoomCreate}] == nil {
		return matrix.NewError(502, "M_UNKNOWN", "the answer to the join holds no valid create event")
	}
	auth := make([]*events.Event, 0, 4)
	for _, id := range ev.AuthEvents() {
		if e := all[id]; e != nil {
			auth = append(auth, e)
		}
	}
	if err := authorisedBy(ev, auth); err != nil {
		return fmt.Errorf("the join is not allowed by the room's state: %w", err)
	}
	for attempt := 0; ; attempt++ {
		err := r.enterOnce(ctx, ev, st, fresh)
		if !errors.Is(err, errRoomMoved) || attempt == maxAttempts {
			return err
		}
	}
}

func (r *Rooms) enterOnce(ctx context.Context, ev *events.Event, st map[state.Key]*events.Event, fresh []*events.Event) error {
	rm := r.get(ev.Room)
	rm.mu.Lock()
	for rm.gone {
		rm.mu.Unlock()
		rm = r.get(ev.Room)
		rm.mu.Lock()
	}
	err := r.load(ctx, rm)
	if err != nil && !matrix.IsCode(err, "M_NOT_FOUND") {
		rm.mu.Unlock()
		return err
	}
	unknown := err != nil
	seq := rm.seq
	rm.loaded = false // read again when it is next used
	rm.mu.Unlock()
	var members []matrix.UserID
	for k, e := range st {
		if k.Type == spec.MRoomMember && e.Membership == spec.Join {
			members = append(members, matrix.UserID(k.StateKey))
		}
	}
	free := stream.Pos(holeRoom)
	if unknown {
		free = 0 // what comes before is before all that is known here
	}
	_, err = r.log.Append(ctx, 2+int(free), func(tx *sqldb.Tx, first stream.Pos) ([]stream.Change, error) {
		first += free
		tips := encodeTips([]matrix.EventID{ev.ID})
		if unknown {
			if _, err := tx.Exec(qInsertRoom, string(ev.Room), string(ev.Version), 1, tips, ev.Depth); err != nil {
				return nil, err
			}
		} else if n, err := tx.Exec(qMoveRoom, string(ev.Room), seq, seq+1, tips, ev.Depth); err != nil {
			return nil, err
		} else if n == 0 {
			return nil, errRoomMoved
		}
		if err := r.insertOutliers(tx, fresh); err != nil {
			return nil, err
		}
		if err := r.replaceState(tx, ev.Room, first, st); err != nil {
			return nil, err
		}
		b := &built{ev: ev, pend: &pending{}, key: memberKey(matrix.UserID(*ev.StateKey))}
		ev.Flags |= events.FlagGap
		if old := st[b.key]; old != nil {
			stored, err := r.events.Get(tx, old.ID)
			if err != nil {
				return nil, err
			}
			if stored != nil {
				b.prevNID, b.prevEv = stored.NID, stored
			}
		}
		if known, err := r.events.Get(tx, ev.ID); err != nil {
			return nil, err
		} else if known != nil {
			b.ev = ev.Placed(known.NID, 0, 0)
		}
		if err := r.store(tx, b, first+1); err != nil {
			return nil, err
		}
		return []stream.Change{
			{Pos: first, Kind: stream.KindEvent, Room: ev.Room, Payload: hub.Seeded{Members: members}},
			{Pos: first + 1, Kind: stream.KindEvent, Room: ev.Room, User: ev.Sender, Payload: b.placed},
		}, nil
	})
	return err
}

// replaceState makes st the state of a room from pos on.
func (r *Rooms) replaceState(tx *sqldb.Tx, room matrix.RoomID, pos stream.Pos, st map[state.Key]*events.Event) error {
	rows, err := state.Current(tx, room)
	if err != nil {
		return err
	}
	ids := make([]matrix.EventID, 0, len(st))
	for _, e := range st {
		ids = append(ids, e.ID)
	}
	stored, err := r.events.GetMany(tx, ids)
	if err != nil {
		return err
	}
	held := map[state.Key]int64{}
	for _, row := range rows {
		held[row.Key] = row.NID
		if st[row.Key] == nil {
			if err := state.Unset(tx, room, pos, row.Key); err != nil {
				return err
			}
		}
	}
	for k, e := range st {
		s := stored[e.ID]
		if s == nil {
			return fmt.Errorf("state event %s was not stored", e.ID)
		}
		if held[k] != s.NID {
			if err := state.Set(tx, room, pos, k, s.NID, s.Membership); err != nil {
				return err
			}
		}
	}
	return nil
}

// inviteRemote has the invited's server sign the invitation before it is stored.
func (r *Rooms) inviteRemote(ctx context.Context, c MemberChange) error {
	if r.o.Remote == nil {
		return matrix.Forbidden("this server does not federate")
	}
	content, err := r.memberContent(ctx, c, spec.Invite)
	if err != nil {
		return err
	}
	rm, err := r.settled(ctx, c.Room)
	if err != nil {
		return err
	}
	key := string(c.Target)
	var p *policy
	ev, stripped, err := func() (*events.Event, []json.RawMessage, error) {
		defer rm.mu.Unlock()
		if rm.membership(c.Target) == spec.Join {
			return nil, nil, matrix.Forbidden("%s is in the room already", c.Target)
		}
		proto := events.Proto{
			Version: rm.version, Room: rm.id, Sender: c.Sender, Type: spec.MRoomMember, StateKey: &key, Content: content,
			PrevEvents: rm.tips, Depth: rm.nextDepth(), Time: r.o.Now(),
		}
		var err error
		if proto.AuthEvents, err = r.authEventIDs(ctx, rm, &proto); err != nil {
			return nil, nil, err
		}
		ev, err := events.Build(proto, r.o.Signer)
		if err != nil {
			return nil, nil, err
		}
		if err := r.authorise(ctx, rm, ev); err != nil {
			return nil, nil, err
		}
		p = rm.policy()
		return ev, r.inviteState(rm), nil
	}()
	if err == nil && p != nil {
		ev, err = r.approve(ctx, p, ev)
	}
	if err != nil {
		return err
	}
	signed, err := r.o.Remote.Invite(ctx, c.Target.Server(), string(ev.Version), c.Room, ev.ID, ev.JSON, stripped)
	if err != nil {
		return err
	}
	got, err := r.check(ctx, string(ev.Version), signed)
	if err != nil {
		return err
	}
	if got.ID != ev.ID || !gjson.GetBytes(got.JSON, "signatures."+gjson.Escape(string(c.Target.Server()))).IsObject() {
		return matrix.NewError(502, "M_UNKNOWN", "%s changed the invitation, or did not sign it", c.Target.Server())
	}
	_, err = r.accept(ctx, r.o.Signer.Server, got, handed)
	return err
}

// inviteState is what a server that is not in the room gets with an invitation:
// full PDUs since v1.16 of the specification.
func (r *Rooms) inviteState(rm *room) []json.RawMessage {
	var out []json.RawMessage
	for _, typ := range []string{
		spec.MRoomCreate, spec.MRoomJoinRules, "m.room.canonical_alias", "m.room.avatar", "m.room.encryption", "m.room.name", "m.room.topic",
	} {
		if e := rm.current(typ, ""); e != nil {
			out = append(out, e.JSON)
		}
	}
	return out
}

// leaveRemote leaves or declines a room that this server is not in. The room's
// servers are told if one can be reached; the user is out in any case.
func (r *Rooms) leaveRemote(ctx context.Context, c MemberChange) error {
	m, err := r.MembershipOf(ctx, c.Target, c.Room)
	if err != nil {
		return err
	}
	switch {
	case m == nil:
		return matrix.Forbidden("you are not in %s", c.Room)
	case m.Membership == spec.Leave:
		return nil
	case m.Membership == spec.Ban:
		return matrix.Forbidden("you are banned from %s", c.Room)
	}
	var ev *events.Event
	if servers, err := r.candidates(ctx, c); err == nil {
		err = anyOf(servers, func(s matrix.ServerName) error {
			t, err := r.o.Remote.MakeLeave(ctx, s, c.Room, c.Target)
			if err != nil {
				return err
			}
			if ev, err = r.fromTemplate(ctx, c, t, spec.Leave); err != nil {
				return err
			}
			return r.o.Remote.SendLeave(ctx, s, c.Room, ev.ID, ev.JSON)
		})
		if err != nil {
			log.WithError(err).WithField("room_id", c.Room).Info("no server of the room was told of a declined invitation")
		}
	}
	if ev == nil {
		if ev, err = r.lonelyLeave(ctx, c, m); err != nil {
			return err
		}
	}
	return r.outside(ctx, ev, "")
}

// lonelyLeave makes a leave event that nobody else will see, for the user's own
// clients.
func (r *Rooms) lonelyLeave(ctx context.Context, c MemberChange, m *Member) (*events.Event, error) {
	version := gomatrixserverlib.RoomVersion(gjson.GetBytes(m.Stripped, `#(type=="m.room.create").content.room_version`).Str)
	if version == "" {
		version = gomatrixserverlib.RoomVersionV1
	}
	content, err := r.memberContent(ctx, c, spec.Leave)
	if err != nil {
		return nil, err
	}
	key := string(c.Target)
	return events.Build(events.Proto{
		Version: version, Room: c.Room, Sender: c.Target, Type: spec.MRoomMember, StateKey: &key, Content: content,
		PrevEvents: []matrix.EventID{m.Event}, Depth: 1, Time: r.o.Now(),
	}, r.o.Signer)
}

func (r *Rooms) knockRemote(ctx context.Context, c MemberChange) error {
	servers, err := r.candidates(ctx, c)
	if err != nil {
		return err
	}
	return anyOf(servers, func(s matrix.ServerName) error {
		t, err := r.o.Remote.MakeKnock(ctx, s, c.Room, c.Target, joinable())
		if err != nil {
			return err
		}
		ev, err := r.fromTemplate(ctx, c, t, spec.Knock)
		if err != nil {
			return err
		}
		st, err := r.o.Remote.SendKnock(ctx, s, c.Room, ev.ID, ev.JSON)
		if err != nil {
			return err
		}
		return r.outside(ctx, ev, joinRaw(stripPDUs(st), ev))
	})
}

// outside stores a membership in a room that this server is not in: the event as
// an outlier, and the user's standing.
func (r *Rooms) outside(ctx context.Context, ev *events.Event, stripped string) error {
	_, err := r.log.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		known, err := r.events.Get(tx, ev.ID)
		if err != nil {
			return nil, err
		}
		p := ev.Placed(int64(pos), 0, 0)
		p.Flags |= events.FlagOutlier
		if known == nil {
			if err := r.events.Insert(tx, p); err != nil {
				return nil, err
			}
		}
		if err := r.storeMember(tx, p, pos, stripped); err != nil {
			return nil, err
		}
		return []stream.Change{{Pos: pos, Kind: stream.KindEvent, Room: ev.Room, User: matrix.UserID(ev.Key()), Payload: p}}, nil
	})
	return err
}

// stripPDUs reduces what came with an invitation to stripped state.
func stripPDUs(raws []json.RawMessage) []json.RawMessage {
	var out []json.RawMessage
	for _, raw := range raws {
		f := gjson.GetManyBytes(raw, "type", "state_key", "sender", "content")
		if f[0].Type != gjson.String || f[1].Type != gjson.String || !f[3].IsObject() {
			continue
		}
		key := f[1].Str
		e := events.Event{Type: f[0].Str, StateKey: &key, Sender: matrix.UserID(f[2].Str), JSON: []byte(`{"content":` + f[3].Raw + `}`)}
		out = append(out, e.AppendStripped(nil))
	}
	return out
}

func joinRaw(list []json.RawMessage, last *events.Event) string {
	b := []byte{'['}
	for _, raw := range list {
		b = append(append(b, raw...), ',')
	}
	return string(append(last.AppendStripped(b), ']'))
}
