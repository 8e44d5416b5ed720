package rooms

import (
	"context"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qBuiltOn    = `SELECT 1 FROM built_on WHERE room_id = $1 AND event_id = $2`
	qBuildOn    = `INSERT INTO built_on (room_id, event_id) VALUES ($1, $2) ON CONFLICT (room_id, event_id) DO NOTHING`
	qNotBuiltOn = `DELETE FROM built_on WHERE room_id = $1 AND event_id = $2`
)

// maxHidden is how many steps are taken through events on which nothing is built, to
// find what lies behind an event that is built on them all the same.
const maxHidden = 10

// placeTips decides what the room's next event is to be built on after one more event,
// and what that makes of the current state, that at head. An event that comes after
// its descendants is no tip, and neither is what lies behind it.
//
// Spec: server-server-api#pdus (prev_events), server-server-api#soft-failure
func (r *Rooms) placeTips(ctx context.Context, tx *sqldb.Tx, rm *room, head stream.Pos, b *built, foreign bool) ([]matrix.EventID, error) {
	ev := b.ev
	builtOn, err := r.isBuiltOn(tx, ev)
	if err != nil || ev.Dead() && !builtOn {
		return rm.tips, err
	}
	behind, err := r.behind(tx, ev)
	if err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(slices.Clone(rm.tips), func(id matrix.EventID) bool { return slices.Contains(behind, id) })
	switch {
	case len(others) == 0 && ev.Dead(): // nobody can be behind what he is built on
		return rm.tips, nil
	case builtOn && len(others) == len(rm.tips):
		if !ev.Dead() {
			b.sets = []resolvedEntry{} // the state is that of the tips already: the event sets none
		}
		return rm.tips, nil
	case builtOn && len(others) > 0:
		b.sets, err = r.between(ctx, tx, rm, head, ev, nil, others)
		return others, err
	}
	tips := append([]matrix.EventID{ev.ID}, others[:min(len(others), maxTips-1)]...)
	if prev := ev.PrevEvents(); !foreign && ev.StateKey == nil && len(prev) == 1 && slices.Contains(rm.tips, prev[0]) {
		return tips, nil // the tip that it follows had this very state
	}
	b.sets, err = r.between(ctx, tx, rm, head, ev, b.view, tips[1:])
	return tips, err
}

// isBuiltOn reports whether an event comes after its descendants.
func (r *Rooms) isBuiltOn(tx *sqldb.Tx, ev *events.Event) (bool, error) {
	list, err := sqldb.Select(tx, func(rows *sqldb.Rows) (n int, err error) {
		err = rows.Scan(&n)
		return n, err
	}, qBuiltOn, string(ev.Room), string(ev.ID))
	return len(list) > 0, err
}

// behind lists what an event is built on, and through events that are rejected or
// soft-failed what these are built on.
func (r *Rooms) behind(tx *sqldb.Tx, ev *events.Event) ([]matrix.EventID, error) {
	out := ev.PrevEvents()
	next := out
	for range maxHidden {
		got, err := r.events.GetMany(tx, next)
		if err != nil {
			return nil, err
		}
		next = nil
		for _, e := range got {
			if !e.Dead() {
				continue
			}
			for _, id := range e.PrevEvents() {
				if !slices.Contains(out, id) {
					out, next = append(out, id), append(next, id)
				}
			}
		}
		if len(next) == 0 {
			break
		}
	}
	return out, nil
}

// noteBuilt remembers what an event is built on that has no place here, and forgets
// it of the event itself.
func (r *Rooms) noteBuilt(tx *sqldb.Tx, ev *events.Event) error {
	if _, err := tx.Exec(qNotBuiltOn, string(ev.Room), string(ev.ID)); err != nil {
		return err
	}
	if !ev.Gap() || ev.Dead() {
		return nil
	}
	prev := ev.PrevEvents()
	have, err := r.events.GetMany(tx, prev)
	if err != nil {
		return err
	}
	for _, id := range prev {
		if e := have[id]; e != nil && e.Flags&events.FlagOutlier == 0 {
			continue
		}
		if _, err := tx.Exec(qBuildOn, string(ev.Room), string(id)); err != nil {
			return err
		}
	}
	return nil
}
