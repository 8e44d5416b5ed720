package slidingsync

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"

	"github.com/carillon-chat/carillon/homeserver/clientsync"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// piece is what an answer tells of a room.
type piece struct {
	from, to stream.Pos
	fresh    bool // everything is told
	expanded bool // the timeline reaches back beyond what the client has

	timeline bool // there is one
	list     []*events.Event
	limited  bool
	bundles  map[matrix.EventID]json.RawMessage
	erased   map[matrix.EventID]*events.Event // what of the list is redacted for this reader
	sight    *rooms.Sight                     // nil: the reader was in the room all the time

	delta []state.Row // all state that changed
	gone  []state.Key
	rows  []state.Row // the state that is told
	state []*events.Event
	met   []matrix.UserID // members told of because they speak
}

// touched reports whether the state of a type may have changed.
func (p *piece) touched(typ string) bool {
	return p.fresh || slices.ContainsFunc(p.delta, func(r state.Row) bool { return r.Type == typ }) ||
		slices.ContainsFunc(p.gone, func(k state.Key) bool { return k.Type == typ })
}

// room writes a room, if there is anything to tell of it.
func (w *work) room(tx *sqldb.Tx, e *entry) (bool, error) {
	if e.joined() {
		return w.joinedRoom(tx, e)
	}
	m := e.member
	stripped := m.Membership == "invite" || m.Membership == "knock"
	dm := stripped && w.c.personal.directs[e.id]
	if !stripped && m.WasJoined {
		return w.leftRoom(tx, e)
	}
	if e.told() {
		if dm == e.st.dm {
			return false, nil
		}
		w.open(e, false)
		w.raw("is_dm", strconv.AppendBool(nil, dm))
		w.b = append(w.b, '}')
		w.edit(e).dm = dm
		return true, nil
	}
	var err error
	if stripped {
		w.strippedRoom(e, dm)
	} else {
		err = w.refusedRoom(tx, e)
	}
	st := w.edit(e)
	*st = sent{membership: m.Membership, upTo: m.Pos, data: st.data, dm: dm}
	return true, err
}

func (w *work) joinedRoom(tx *sqldb.Tx, e *entry) (bool, error) {
	p := &piece{to: w.to, fresh: e.fresh()}
	added := e.wants
	if !p.fresh {
		p.from = e.st.upTo
		p.expanded = e.limit > e.st.known && !e.st.whole
		added = lacks(e.wants, e.st.wants)
	}
	var err error
	if p.fresh || p.expanded || e.room.LastEvent > p.from {
		if err = w.timeline(tx, e, p, e.limit); err != nil {
			return false, err
		}
	}
	if err = w.stateOf(tx, e, p, added, p.fresh || e.room.LastState > p.from); err != nil {
		return false, err
	}
	dm := w.c.personal.directs[e.id]
	if !p.fresh && len(p.list)+len(p.state)+len(p.delta)+len(p.gone) == 0 && !p.limited && e.unread == e.st.unread && dm == e.st.dm {
		if len(added)+len(lacks(e.st.wants, e.wants)) > 0 { // what is not wanted any more will not be kept up
			w.edit(e).wants = e.wants
		}
		return false, nil
	}
	if err = w.writeJoined(tx, e, p, dm); err != nil {
		return false, err
	}
	w.remember(e, p, dm)
	return true, nil
}

// remember notes what the client will know of a room.
func (w *work) remember(e *entry, p *piece, dm bool) {
	st := w.edit(e)
	if p.fresh {
		*st = sent{membership: "join"}
		e.shown = make(map[matrix.EventID]bool, len(p.list))
		for _, ev := range p.list {
			e.shown[ev.ID] = true
		}
	}
	st.upTo, st.wants, st.unread, st.dm, st.met = p.to, e.wants, e.unread, dm, p.met
	switch {
	case p.fresh || p.expanded:
		st.known, st.whole = e.limit, !p.limited
	case p.limited:
		st.known, st.whole, st.forget = e.limit, false, true
	default:
		st.known += len(p.list)
	}
}

// sees reports whether the reader is to get an event.
func (w *work) sees(p *piece, e *events.Event) bool {
	if e.Hidden() || e.StateKey == nil && w.q.ignored.Has(e.Sender) {
		return false
	}
	return p.sight == nil || p.sight.Sees(w.q.user, e)
}

// timeline reads the newest events of a room: those since the client was told, or
// as many as it wants where it has less.
func (w *work) timeline(tx *sqldb.Tx, e *entry, p *piece, limit int) error {
	p.timeline = true
	all := p.fresh || p.expanded
	if !all && e.joined() {
		list, complete := w.s.Hub.Recent(e.id, p.from, p.to)
		if complete {
			for _, ev := range list {
				if w.sees(p, ev) {
					p.list = append(p.list, ev)
				}
			}
			if p.limited = len(p.list) > limit; p.limited {
				p.list = p.list[len(p.list)-limit:]
				return w.bundle(tx, p)
			}
			return nil
		}
	}
	if tx == nil {
		return errNeedsDB
	}
	from := p.from
	if all {
		from = 0
	}
	var err error
	if all || !e.joined() {
		if p.sight, err = w.sight(tx, e); err != nil {
			return err
		}
	}
	p.list, p.limited, err = w.s.Newest(tx, e.id, from, p.to, limit, func(ev *events.Event) bool { return w.sees(p, ev) })
	if err != nil {
		return err
	}
	if err := w.bundle(tx, p); err != nil {
		return err
	}
	if err := w.s.Events.Complete(tx, p.list); err != nil {
		return err
	}
	p.erased, err = w.s.Rooms.Erased(tx, w.q.user, p.list)
	return err
}

// sight reads what the reader may see of a room, and with it that of all other rooms
// that he will need it of: a window has many.
func (w *work) sight(tx *sqldb.Tx, e *entry) (*rooms.Sight, error) {
	if s := w.sights[e.id]; s != nil {
		return s, nil
	}
	ids := []matrix.RoomID{e.id}
	for _, o := range w.wanted {
		if o != e && o.joined() && o.fresh() && w.sights[o.id] == nil && len(ids) < facePage {
			ids = append(ids, o.id)
		}
	}
	all, err := w.s.Rooms.Sights(tx, w.q.user, ids)
	if err != nil {
		return nil, err
	}
	if w.sights == nil {
		w.sights = all
	} else {
		maps.Copy(w.sights, all)
	}
	return all[e.id], nil
}

func (w *work) bundle(tx *sqldb.Tx, p *piece) (err error) {
	if w.s.Bundler == nil || len(p.list) == 0 {
		return nil
	}
	if tx == nil {
		return errNeedsDB
	}
	p.bundles, err = w.s.Bundler.Bundle(w.ctx, tx, w.q.user, p.list)
	return err
}

// stateOf reads the state to be told: by all wants where the room is new, else
// what has changed and what is wanted now and was not.
func (w *work) stateOf(tx *sqldb.Tx, e *entry, p *piece, added []*want, changed bool) error {
	have := map[state.Key]bool{}
	keep := func(rows []state.Row, ok func(state.Row) bool) {
		for _, r := range rows {
			if !have[r.Key] && ok(r) {
				have[r.Key] = true
				p.rows = append(p.rows, r)
			}
		}
	}
	lazy := slices.ContainsFunc(e.wants, func(w *want) bool { return w.lazy })
	if !p.fresh && changed {
		if tx == nil {
			return errNeedsDB
		}
		var err error
		if p.delta, err = state.Delta(tx, e.id, p.from, p.to); err != nil {
			return err
		}
		if p.gone, err = state.Gone(tx, e.id, p.from, p.to, p.delta); err != nil {
			return err
		}
		keep(p.delta, func(r state.Row) bool {
			if anyMatches(e.wants, r.Type, r.StateKey) {
				return true
			}
			if !lazy || r.Type != "m.room.member" {
				return false
			}
			u := matrix.UserID(r.StateKey)
			if _, known := e.st.lazy[u]; p.limited && !known {
				return false
			}
			p.met = append(p.met, u)
			return true
		})
	}
	if len(added) > 0 {
		rows, err := w.wantedRows(tx, e.id, added, p.to)
		if err != nil {
			return err
		}
		keep(rows, func(r state.Row) bool {
			return anyMatches(added, r.Type, r.StateKey) && (p.fresh || !anyMatches(e.st.wants, r.Type, r.StateKey))
		})
	}
	if lazy {
		rows, err := w.speakers(tx, e, p, have)
		if err != nil {
			return err
		}
		keep(rows, func(state.Row) bool { return true })
	}
	if len(p.rows) == 0 {
		return nil
	}
	var err error
	if p.state, err = w.s.Rooms.EventsOf(tx, p.rows); err != nil {
		return err
	}
	if err := w.s.Events.Complete(tx, p.state); err != nil {
		return err
	}
	erased, err := w.s.Rooms.Erased(tx, w.q.user, p.state)
	if p.erased == nil {
		p.erased = erased
	} else {
		maps.Copy(p.erased, erased)
	}
	return err
}

// speakers reads the members who speak in the timeline or are spoken of there, as
// far as the client has not been told of them.
func (w *work) speakers(tx *sqldb.Tx, e *entry, p *piece, have map[state.Key]bool) ([]state.Row, error) {
	var need []string
	seen := map[string]bool{}
	note := func(user string) {
		if seen[user] || have[state.Key{Type: "m.room.member", StateKey: user}] {
			return
		}
		seen[user] = true
		if e.st != nil && !p.fresh && !p.limited {
			if _, told := e.st.lazy[matrix.UserID(user)]; told {
				return
			}
		}
		need = append(need, user)
	}
	for _, ev := range p.list {
		note(string(ev.Sender))
		if ev.Type == "m.room.member" && ev.StateKey != nil {
			note(*ev.StateKey)
		}
	}
	if len(need) == 0 {
		return nil, nil
	}
	for _, u := range need {
		p.met = append(p.met, matrix.UserID(u))
	}
	if tx == nil {
		return nil, errNeedsDB
	}
	return state.KeysAt(tx, e.id, "m.room.member", need, p.to)
}

// wantedRows reads at least the state that the wants name; members, who may be
// many, only where they are meant.
func (w *work) wantedRows(tx *sqldb.Tx, id matrix.RoomID, wants []*want, at stream.Pos) ([]state.Row, error) {
	var types, members []string
	everything, everybody := false, false
	for _, wt := range wants {
		for _, p := range wt.include {
			switch {
			case p.typ == nil:
				everything = true
				everybody = everybody || p.key == nil && !wt.lazy
				if p.key != nil {
					members = append(members, *p.key)
				}
			case *p.typ != "m.room.member":
				types = append(types, *p.typ)
			case p.key == nil:
				everybody = true
			default:
				members = append(members, *p.key)
			}
		}
	}
	if !everything && !everybody && len(types)+len(members) == 0 {
		return nil, nil
	}
	if tx == nil {
		return nil, errNeedsDB
	}
	var rows []state.Row
	var err error
	switch {
	case everything && everybody:
		return state.At(tx, id, at)
	case everything:
		rows, err = state.ButAt(tx, id, "m.room.member", at)
	default:
		if everybody {
			types = append(types, "m.room.member")
		}
		if len(types) > 0 {
			rows, err = state.TypesAt(tx, id, types, at)
		}
	}
	if err != nil || everybody || len(members) == 0 {
		return rows, err
	}
	more, err := state.KeysAt(tx, id, "m.room.member", members, at)
	return append(rows, more...), err
}

// expanded says that a timeline holds what the client may have.
func (w *work) expanded() {
	w.raw(w.name("unstable_expanded_timeline", "expanded_timeline"), []byte("true"))
}

func (w *work) writeJoined(tx *sqldb.Tx, e *entry, p *piece, dm bool) error {
	bump, err := w.bumpStamp(tx, e)
	if err != nil {
		return err
	}
	w.open(e, p.fresh)
	if p.expanded {
		w.expanded()
	}
	if err := w.look(tx, e, p, &bump); err != nil {
		return err
	}
	if p.touched("m.room.member") {
		w.int("joined_count", int64(e.members.Joined))
		w.int("invited_count", int64(e.members.Invited))
	}
	if p.fresh && dm || !p.fresh && dm != e.st.dm {
		w.raw("is_dm", strconv.AppendBool(nil, dm))
	}
	if w.q.unstable { // the proposal has left them out since
		w.unread(e.unread)
	}
	if p.timeline {
		w.writeTimeline(p)
	}
	w.b = append(w.b, '}')
	return nil
}

func (w *work) unread(c push.Count) {
	w.int("notification_count", int64(c.Notify))
	w.int("highlight_count", int64(c.Highlight))
}

// look writes name, picture, heroes, state and stamp.
func (w *work) look(tx *sqldb.Tx, e *entry, p *piece, bump *stream.Pos) error {
	if p.touched("m.room.name") || p.touched("m.room.avatar") || p.touched("m.room.member") {
		f, err := w.face(tx, e)
		if err != nil {
			return err
		}
		str := func(key, typ, val string) {
			switch {
			case val != "" && p.touched(typ):
				w.raw(key, matrix.AppendJSONString(nil, val))
			case !p.fresh && p.touched(typ):
				w.raw(key, []byte("null"))
			}
		}
		str("name", "m.room.name", f.name)
		str("avatar", "m.room.avatar", f.avatar)
		if f.name == "" && (p.touched("m.room.name") || p.touched("m.room.member")) {
			if err := w.heroes(tx, e, p.to); err != nil {
				return err
			}
		}
	}
	if len(p.state)+len(p.gone) > 0 {
		var stubs []state.Key
		if !w.q.unstable {
			for _, k := range p.gone {
				if anyMatches(e.wants, k.Type, k.StateKey) {
					stubs = append(stubs, k)
				}
			}
		}
		w.events("required_state", p, p.state, stubs)
	}
	w.int("bump_stamp", int64(*bump))
	return nil
}

// heroes writes those who stand for a room without a name.
func (w *work) heroes(tx *sqldb.Tx, e *entry, at stream.Pos) error {
	if tx == nil {
		return errNeedsDB
	}
	users, err := clientsync.Heroes(tx, e.id, w.q.user, at)
	if err != nil {
		return err
	}
	type hero struct {
		User   matrix.UserID `json:"user_id"`
		Name   string        `json:"displayname,omitempty"`
		Avatar string        `json:"avatar_url,omitempty"`
	}
	list := make([]hero, len(users))
	keys := make([]string, len(users))
	for i, u := range users {
		list[i].User, keys[i] = u, string(u)
	}
	if len(users) > 0 {
		rows, err := state.KeysAt(tx, e.id, "m.room.member", keys, at)
		if err != nil {
			return err
		}
		evs, err := w.s.Rooms.EventsOf(tx, rows)
		if err != nil {
			return err
		}
		for _, ev := range evs {
			if i := slices.Index(keys, ev.Key()); i >= 0 {
				list[i].Name, list[i].Avatar = ev.ContentString("displayname"), ev.ContentString("avatar_url")
			}
		}
	}
	b, err := json.Marshal(list)
	w.raw("heroes", b)
	return err
}

func (w *work) writeTimeline(p *piece) {
	live := 0
	if w.q.ext.sticky != nil && w.shown == nil {
		w.shown = map[matrix.EventID]bool{}
	}
	for _, e := range p.list {
		if w.shown != nil && e.Sticky > 0 {
			w.shown[e.ID] = true
		}
		if w.base.token.Pos > 0 && e.Pos > w.base.token.Pos {
			live++
		}
	}
	w.events(w.name("timeline", "timeline_events"), p, p.list, nil)
	w.int("num_live", int64(live))
	if p.limited {
		w.raw("limited", []byte("true"))
	}
	start := p.to
	if len(p.list) > 0 {
		start = p.list[0].Pos - 1
	}
	w.raw("prev_batch", matrix.AppendJSONString(nil, clientsync.Token{Pos: max(start, 0)}.String()))
}

// name picks the name of a member by the form of the answer.
func (w *work) name(unstable, stable string) string {
	if w.q.unstable {
		return unstable
	}
	return stable
}

// open begins a room.
func (w *work) open(e *entry, initial bool) {
	w.b = append(append(w.b, `{"membership":"`...), e.membership...)
	w.b = append(w.b, '"')
	if initial {
		w.raw("initial", []byte("true"))
	}
	if !w.q.unstable && len(e.lists) > 0 {
		w.b = append(w.b, `,"lists":[`...)
		for i, l := range e.lists {
			if i > 0 {
				w.b = append(w.b, ',')
			}
			w.b = matrix.AppendJSONString(w.b, l)
		}
		w.b = append(w.b, ']')
	}
}

func (w *work) raw(key string, val []byte) {
	w.b = append(append(append(w.b, `,"`...), key...), `":`...)
	w.b = append(w.b, val...)
}

func (w *work) int(key string, n int64) { w.raw(key, strconv.AppendInt(nil, n, 10)) }

func (w *work) events(key string, p *piece, list []*events.Event, stubs []state.Key) {
	w.raw(key, nil)
	w.list(p, list, stubs)
}

// list writes events as clients get them.
func (w *work) list(p *piece, list []*events.Event, stubs []state.Key) {
	w.b = append(w.b, '[')
	now := w.s.Now()
	for i, e := range list {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		if redacted := p.erased[e.ID]; redacted != nil {
			e = redacted
		}
		f := events.ClientFormat{User: w.q.user, Device: w.q.device, NoRoomID: true, Now: now, Relations: p.bundles[e.ID], ReaderMembership: "join"}
		if p.sight != nil {
			f.ReaderMembership = p.sight.Membership(e.Pos)
		}
		w.b = e.AppendClient(w.b, f)
	}
	for i, k := range stubs {
		if i+len(list) > 0 {
			w.b = append(w.b, ',')
		}
		w.b = matrix.AppendJSONString(append(w.b, `{"type":`...), k.Type)
		w.b = matrix.AppendJSONString(append(w.b, `,"state_key":`...), k.StateKey)
		w.b = append(w.b, '}')
	}
	w.b = append(w.b, ']')
}
