package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Draft is an event that a local user wants to send.
type Draft struct {
	Room     matrix.RoomID
	Sender   matrix.UserID
	Type     string
	StateKey *string
	Content  json.RawMessage
	Redacts  matrix.EventID
	TS       int64  // ms; 0 is now
	Txn      string // events.TxnKey, "" for none: the same one again gives the same event
	Sticky   *int64 // ms that clients are to hear of it in any case, nil for none
	// Always makes a new event even where the state already says the same.
	Always bool
	// OwnOnly lets a redaction touch nothing but the sender's own events.
	OwnOnly bool
}

// built is an event that has been authorised and is to be stored.
type built struct {
	ev       *events.Event
	key      state.Key // of state events
	pend     *pending
	prev     *pending // the entry that it replaces, while that is pending
	prevNID  int64
	prevEv   *events.Event
	stripped string // of invitations and knocks
	placed   *events.Event
	view     *state.View     // the state before it, where it is not that of its position
	sets     []resolvedEntry // how the current state changes, where it is not just by the event itself
	noState  bool            // it does not change the current state by itself
	redacts  bool            // it is a redaction that its sender may make
}

type resolvedEntry struct {
	key        state.Key
	nid        int64 // 0: the entry ends
	membership string
}

// maxAttempts is how often an event is built again on a room that moves.
const maxAttempts = 32

// Send authorises and stores an event of a local user and returns its ID once it
// is durable. A transaction that was there before gives the first one's ID.
func (r *Rooms) Send(ctx context.Context, d Draft) (matrix.EventID, error) {
	var dup matrix.EventID
	var flight *stream.Pending
	evs, err := r.change(ctx, d.Room, func(rm *room) ([]*built, error) {
		dup, flight = "", nil
		if d.Txn != "" {
			if again, ok := rm.txns[txn{d.Sender, d.Txn}]; ok {
				dup, flight = again.id, again.w
				return nil, nil
			}
		}
		if d.StateKey != nil && !d.Always {
			if e := rm.state[state.Key{Type: d.Type, StateKey: *d.StateKey}]; e != nil && e.ev != nil && e.ev.Sender == d.Sender {
				if same(e.ev.Content(), d.Content) {
					dup = e.id
					return nil, nil
				}
			}
		}
		b, err := r.build(ctx, rm, d)
		if err != nil {
			return nil, err
		}
		return []*built{b}, nil
	})
	if errors.Is(err, sqldb.ErrExists) && d.Txn != "" {
		return r.sent(ctx, d)
	}
	if err != nil {
		return "", err
	}
	if flight != nil {
		if _, err := flight.Wait(); err != nil {
			return "", fmt.Errorf("a repeated transaction: %w", err)
		}
	}
	if dup != "" {
		return dup, nil
	}
	return evs[0].ID, nil
}

// same compares two JSON objects, the first of them canonical.
func same(canonical, other []byte) bool {
	c, err := matrix.CanonicalJSON(other, false)
	return err == nil && string(c) == string(canonical)
}

// sent finds what a transaction made when it was sent before.
func (r *Rooms) sent(ctx context.Context, d Draft) (id matrix.EventID, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		id, err = r.events.ByTxn(tx, d.Room, d.Sender, d.Txn)
		return err
	})
	if err == nil && id == "" {
		err = errors.New("a stored transaction is missing")
	}
	if err != nil {
		return "", fmt.Errorf("finding a repeated transaction: %w", err)
	}
	return id, nil
}

// build makes and authorises one event on the room's tips and applies it to the
// room in memory. The room is locked.
func (r *Rooms) build(ctx context.Context, rm *room, d Draft) (*built, error) {
	p := events.Proto{
		Version: rm.version, Room: rm.id, Sender: d.Sender, Type: d.Type, StateKey: d.StateKey, Content: d.Content,
		Redacts: d.Redacts, Sticky: d.Sticky, PrevEvents: rm.tips, Depth: rm.nextDepth(), Time: r.o.Now(),
	}
	if d.TS != 0 {
		p.Time = time.UnixMilli(d.TS)
	}
	err := r.checkLevels(ctx, rm, d)
	if err != nil {
		return nil, err
	}
	if p.AuthEvents, err = r.authEventIDs(ctx, rm, &p); err != nil {
		return nil, err
	}
	ev, err := events.Build(p, r.o.Signer)
	if err != nil {
		return nil, err
	}
	ev.Txn = d.Txn
	if err := r.authorise(ctx, rm, ev); err != nil {
		return nil, err
	}
	b := &built{ev: ev}
	if ev.Redacts != "" {
		if b.redacts, err = r.mayRedact(ctx, rm, ev, ev.Sender); err != nil {
			return nil, err
		}
		if !b.redacts {
			return nil, matrix.Forbidden("you may redact only your own messages here")
		}
	}
	if rm.dry {
		return b, nil
	}
	if err := r.remember(ctx, rm, b); err != nil {
		return nil, err
	}
	return b, nil
}

// remember applies an event that was built on all the room's tips.
func (r *Rooms) remember(ctx context.Context, rm *room, b *built) error {
	b.pend = &pending{}
	if b.ev.IsDummy() {
		b.ev.Flags |= dummy
	}
	if ev := b.ev; ev.StateKey != nil {
		b.key = state.Key{Type: ev.Type, StateKey: *ev.StateKey}
		if old := rm.state[b.key]; old != nil {
			prev, err := r.event(ctx, old)
			if err != nil {
				return err
			}
			b.prev, b.prevNID, b.prevEv = old.pend, old.nid, prev
		}
		if ev.Type == spec.MRoomMember && (ev.Membership == spec.Invite || ev.Membership == spec.Knock) {
			b.stripped = r.stripped(rm, ev)
		}
		rm.set(b.key, &entry{id: ev.ID, ev: ev, pend: b.pend, membership: ev.Membership})
	}
	rm.tips = []matrix.EventID{b.ev.ID}
	rm.depth = b.ev.Depth
	rm.applied++
	return nil
}

// change builds events on a room and commits them; build runs with the room
// locked, and again when the room has moved.
func (r *Rooms) change(ctx context.Context, id matrix.RoomID, build func(*room) ([]*built, error)) ([]*events.Event, error) {
	for attempt := 0; ; attempt++ {
		rm, err := r.locked(ctx, id)
		if err != nil {
			return nil, err
		}
		if p := rm.policy(); p != nil {
			return r.changeApproved(ctx, rm, p, build)
		}
		evs, err := r.changeOnce(ctx, rm, build)
		if !errors.Is(err, errRoomMoved) || attempt == maxAttempts {
			return evs, err
		}
	}
}

// changeOnce is one attempt; it unlocks the room.
func (r *Rooms) changeOnce(ctx context.Context, rm *room, build func(*room) ([]*built, error)) ([]*events.Event, error) {
	before := rm.applied
	var list []*built
	err := rm.guarded(func() (err error) {
		list, err = build(rm)
		return err
	})
	if err != nil || len(list) == 0 {
		if rm.applied != before {
			rm.loaded = false // a part has been applied
		}
		rm.mu.Unlock()
		return nil, err
	}
	if err := r.commit(ctx, rm, list); err != nil {
		return nil, err
	}
	evs := make([]*events.Event, len(list))
	for i, b := range list {
		evs[i] = b.placed
	}
	return evs, nil
}

// guarded runs fn with the room locked. Should it panic, the room is unlocked
// and read anew: one failure must not shut a room for good.
func (rm *room) guarded(fn func() error) error {
	done := false
	defer func() {
		if !done {
			rm.loaded = false
			rm.mu.Unlock()
		}
	}()
	err := fn()
	done = true
	return err
}

// commit hands events to the log, unlocks the room, waits, and brings the room's
// memory in line.
func (r *Rooms) commit(ctx context.Context, rm *room, list []*built) error {
	gen := rm.gen
	w, err := r.start(ctx, rm, list, nil)
	rm.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = w.Wait()
	rm.mu.Lock()
	r.settle(rm, list, gen, err)
	rm.mu.Unlock()
	if err == nil {
		r.recheckSticky(ctx, list)
	}
	return err
}

// settle brings the room's memory in line with what became of an append.
func (r *Rooms) settle(rm *room, list []*built, gen uint64, err error) {
	rm.flying--
	if err != nil {
		for _, b := range list {
			if again, ok := rm.txns[txn{b.ev.Sender, b.ev.Txn}]; ok && again.id == b.ev.ID {
				delete(rm.txns, txn{b.ev.Sender, b.ev.Txn})
			}
		}
	}
	if rm.gen != gen {
		return // it has been read from the database since, after this commit; see load
	}
	if err != nil {
		rm.loaded = false
		return
	}
	for _, b := range list {
		if b.placed.Target != nil && b.placed.Target.StateKey != nil || b.sets != nil {
			rm.loaded = false // the state changed by more than the event itself
			return
		}
		if b.ev.StateKey == nil || b.noState {
			continue
		}
		if e := rm.state[b.key]; e != nil && e.pend == b.pend {
			e.nid, e.pend, e.ev = b.placed.NID, nil, b.placed
			if b.key.Type == spec.MRoomMember {
				e.ev = nil // members are many; read again when needed
			}
		}
	}
}

// start hands the events to the log. The room is locked, so that appends of one
// room reach the log in the order in which they were built.
func (r *Rooms) start(ctx context.Context, rm *room, list []*built, extra func(tx *sqldb.Tx, first stream.Pos) error) (*stream.Pending, error) {
	before := rm.seq
	rm.seq++
	after, tips, depth := rm.seq, encodeTips(rm.tips), rm.depth
	id, version := rm.id, string(rm.version)
	free := apart(list)
	w, err := r.log.Start(ctx, len(list)+int(free), func(tx *sqldb.Tx, first stream.Pos) ([]stream.Change, error) {
		first += free
		if before == 0 {
			if _, err := tx.Exec(qInsertRoom, string(id), version, after, tips, depth); err != nil {
				return nil, err
			}
		} else if n, err := tx.Exec(qMoveRoom, string(id), before, after, tips, depth); err != nil {
			return nil, err
		} else if n == 0 {
			return nil, errRoomMoved
		}
		changes := make([]stream.Change, 0, len(list))
		for i, b := range list {
			pos := first + stream.Pos(i)
			if err := r.store(tx, b, pos); err != nil {
				return nil, err
			}
			changes = append(changes, stream.Change{Pos: pos, Kind: stream.KindEvent, Room: id, User: b.ev.Sender, Payload: b.placed})
		}
		if extra != nil {
			return changes, extra(tx, first)
		}
		return changes, nil
	})
	if err != nil {
		rm.loaded = false
		return nil, err
	}
	rm.flying++
	rm.last = w
	for _, b := range list {
		if b.ev.Txn != "" {
			rm.note(txn{b.ev.Sender, b.ev.Txn}, repeat{b.ev.ID, w})
		}
	}
	return w, nil
}

// store writes one event at its position, with all that hangs on it.
func (r *Rooms) store(tx *sqldb.Tx, b *built, pos stream.Pos) error {
	replaces := b.prevNID
	if b.prev != nil {
		replaces = b.prev.nid
	}
	nid := int64(pos)
	if b.ev.NID != 0 { // it was known as an outlier
		nid = b.ev.NID
	}
	b.pend.nid = nid
	p := b.ev.Placed(nid, pos, replaces)
	p.Flags &^= events.FlagOutlier
	if b.prevEv != nil {
		p.Replaced = b.prevEv
	}
	b.placed = p
	if b.ev.NID != 0 {
		if err := r.events.Promote(tx, p); err != nil {
			return err
		}
	} else if err := r.events.Insert(tx, p); err != nil {
		return err
	}
	if b.view != nil || b.ev.Gap() {
		if err := r.noteBuilt(tx, p); err != nil {
			return err
		}
	}
	if err := r.redaction(tx, b); err != nil {
		return err
	}
	if err := r.sticky.Put(tx, b.placed, r.o.Now()); err != nil {
		return err
	}
	if b.view != nil {
		if err := state.SaveView(tx, nid, *b.view); err != nil {
			return err
		}
	}
	return r.storeState(tx, b, pos)
}

func (r *Rooms) storeState(tx *sqldb.Tx, b *built, pos stream.Pos) error {
	p := b.placed
	if b.sets != nil {
		return r.storeResolved(tx, b, pos)
	}
	if p.StateKey == nil || b.noState {
		return nil
	}
	if err := state.Set(tx, p.Room, pos, b.key, p.NID, p.Membership); err != nil {
		return err
	}
	if p.Type == spec.MRoomMember && !p.Hidden() && r.isLocal(matrix.UserID(*p.StateKey)) {
		return r.storeMember(tx, p, pos, b.stripped)
	}
	return nil
}

// storeResolved writes what state resolution has changed.
func (r *Rooms) storeResolved(tx *sqldb.Tx, b *built, pos stream.Pos) error {
	p := b.placed
	p.Resolved = &events.Resolved{Moves: map[matrix.UserID]string{}}
	for _, s := range b.sets {
		member := s.key.Type == spec.MRoomMember
		if member {
			p.Resolved.Moves[matrix.UserID(s.key.StateKey)] = s.membership
		}
		holder := p
		switch s.nid {
		case 0:
			if err := state.Unset(tx, p.Room, pos, s.key); err != nil {
				return err
			}
		case selfNID:
			s.nid = p.NID
			fallthrough
		default:
			if err := state.Set(tx, p.Room, pos, s.key, s.nid, s.membership); err != nil {
				return err
			}
		}
		if !member || !r.isLocal(matrix.UserID(s.key.StateKey)) {
			continue
		}
		if s.nid != p.NID && s.nid != 0 {
			evs, err := r.events.ByNID(tx, []int64{s.nid})
			if err != nil {
				return err
			}
			if holder = evs[s.nid]; holder == nil {
				return fmt.Errorf("state event of row %d is missing", s.nid)
			}
		}
		if err := r.storeStanding(tx, p.Room, matrix.UserID(s.key.StateKey), s.membership, holder, pos); err != nil {
			return err
		}
	}
	return nil
}

// storeStanding notes a local user's membership that came by state resolution;
// one without an event has ended.
func (r *Rooms) storeStanding(tx *sqldb.Tx, room matrix.RoomID, user matrix.UserID, membership string, holder *events.Event, pos stream.Pos) error {
	if membership == "" {
		membership = spec.Leave
	}
	_, err := tx.Exec(qMember, string(user), string(room), membership, string(holder.Sender), string(holder.ID), int64(pos), "", membership == spec.Join)
	return err
}

func (r *Rooms) storeMember(tx *sqldb.Tx, p *events.Event, pos stream.Pos, stripped string) error {
	_, err := tx.Exec(qMember, *p.StateKey, string(p.Room), p.Membership, string(p.Sender), string(p.ID), int64(pos), stripped, p.Membership == spec.Join)
	return err
}

// redaction applies a redaction to its target, or to the event itself where the
// redaction came first.
// Spec: client-server-api#redactions, rooms/v3#handling-redactions
func (r *Rooms) redaction(tx *sqldb.Tx, b *built) error {
	p := b.placed
	if p.Hidden() {
		return nil
	}
	if p.Type == spec.MRoomRedaction && p.Redacts != "" {
		target, err := r.events.Get(tx, p.Redacts)
		if err != nil || target == nil || !b.redacts || !redactable(target, p) {
			return err
		}
		return r.redact(tx, target, p, &p.Target)
	}
	if r.isLocal(b.ev.Sender) {
		return nil // nobody can have redacted what did not exist
	}
	early, err := r.events.RedactionOf(tx, p.ID)
	if err != nil || early == nil || !redactable(p, early) || early.Sender.Server() != p.Sender.Server() {
		return err
	}
	return r.redact(tx, p, early, &b.placed)
}

func (r *Rooms) redact(tx *sqldb.Tx, target, by *events.Event, out **events.Event) error {
	red, err := target.Redact(by)
	if err != nil {
		return err
	}
	*out = red
	return r.events.StoreRedacted(tx, red)
}

func redactable(target, by *events.Event) bool {
	return target.Room == by.Room && !target.Redacted() && target.Type != spec.MRoomCreate
}

// mayRedact reports whether the sender of a redaction may make it: it is his
// own event, or one of his server's as far as other servers are concerned, or
// his level suffices. A target that is not known here is nobody's.
// Spec: rooms/v3#handling-redactions
func (r *Rooms) mayRedact(ctx context.Context, rm *room, ev *events.Event, sender matrix.UserID) (bool, error) {
	l, err := rm.powerLevels(func(e *entry) (*events.Event, error) { return r.event(ctx, e) })
	if err != nil {
		return false, err
	}
	if l.user(sender) >= l.c.Redact {
		return true, nil
	}
	target, err := r.events.ByID(ctx, ev.Redacts)
	if err != nil {
		return false, err
	}
	if target == nil {
		return !r.isLocal(sender), nil
	}
	if r.isLocal(sender) {
		return target.Sender == sender, nil
	}
	return target.Sender.Server() == sender.Server(), nil
}

// stripped is the room as somebody invited, or somebody who knocks, may see it.
// Spec: client-server-api#stripped-state
func (r *Rooms) stripped(rm *room, invite *events.Event) string {
	b := []byte{'['}
	for _, typ := range []string{
		spec.MRoomCreate, spec.MRoomJoinRules, "m.room.canonical_alias", "m.room.avatar", "m.room.encryption", "m.room.name", "m.room.topic",
	} {
		if e := rm.current(typ, ""); e != nil {
			b = append(e.AppendStripped(b), ',')
		}
	}
	if e := rm.state[memberKey(invite.Sender)]; e != nil && e.ev != nil {
		b = append(e.ev.AppendStripped(b), ',')
	}
	b = invite.AppendStripped(b)
	return string(append(b, ']'))
}
