package slidingsync

import (
	"encoding/json"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// strippedRoom writes a room that the user is invited to or knocks on.
func (w *work) strippedRoom(e *entry, dm bool) {
	st := e.member.Stripped
	if len(st) == 0 {
		st = json.RawMessage("[]")
	}
	w.open(e, true)
	w.raw(w.name("invite_state", "stripped_state"), st)
	w.int("bump_stamp", int64(e.member.Pos))
	if dm {
		w.raw("is_dm", []byte("true"))
	}
	w.b = append(w.b, '}')
}

// refusedRoom writes the end of an invitation or a knock.
func (w *work) refusedRoom(tx *sqldb.Tx, e *entry) error {
	if tx == nil {
		return errNeedsDB
	}
	ev, err := w.s.Events.Get(tx, e.member.Event)
	if err != nil {
		return err
	}
	w.open(e, false)
	if ev != nil {
		p := &piece{list: []*events.Event{ev}}
		if !w.q.unstable {
			w.raw("stripped_state", append(ev.AppendStripped([]byte{'['}), ']'))
		}
		w.events("required_state", p, p.list, nil)
		w.events(w.name("timeline", "timeline_events"), p, p.list, nil)
	}
	w.int("bump_stamp", int64(e.member.Pos))
	w.b = append(w.b, '}')
	return nil
}

// leftRoom writes a room that the user has left, up to then, if there is anything
// to tell of it.
func (w *work) leftRoom(tx *sqldb.Tx, e *entry) (bool, error) {
	told := e.told()
	p := &piece{to: e.member.Pos, fresh: !told && (e.st == nil || e.st.membership != "join")}
	added := e.wants
	if !p.fresh {
		p.from = e.st.upTo
		p.expanded = e.limit > e.st.known && !e.st.whole
		added = lacks(e.wants, e.st.wants)
	}
	if told && !p.expanded && len(added) == 0 {
		return false, nil
	}
	if tx == nil {
		return false, errNeedsDB
	}
	if !told || p.expanded {
		if err := w.timeline(tx, e, p, e.limit); err != nil {
			return false, err
		}
	}
	if err := w.stateOf(tx, e, p, added, !told); err != nil {
		return false, err
	}
	if told && !p.timeline && len(p.state) == 0 {
		w.edit(e).wants = e.wants
		return false, nil
	}
	if !told {
		if err := w.ownState(tx, e, p); err != nil {
			return false, err
		}
	}
	w.open(e, p.fresh)
	if p.expanded {
		w.expanded()
	}
	if err := w.look(tx, e, p, &e.member.Pos); err != nil {
		return false, err
	}
	if p.timeline {
		w.writeTimeline(p)
	}
	w.b = append(w.b, '}')
	w.remember(e, p, false)
	w.edit(e).membership = e.membership
	return true, nil
}

// ownState adds the user's membership, which says what has become of him.
func (w *work) ownState(tx *sqldb.Tx, e *entry, p *piece) error {
	own := func(ev *events.Event) bool { return ev.Type == "m.room.member" && ev.Key() == string(w.q.user) }
	if slices.ContainsFunc(p.state, own) {
		return nil
	}
	ev, err := w.s.Events.Get(tx, e.member.Event)
	if ev != nil {
		p.state = append(p.state, ev)
	}
	return err
}
