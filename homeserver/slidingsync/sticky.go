package slidingsync

import (
	"cmp"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/clientsync"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sticky"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// stuck is a sticky event of a room.
type stuck struct {
	sticky.Entry
	room matrix.RoomID
}

// stickyEvents tells of the sticky events since the client's place in them, the
// oldest first, of all rooms that a list or a subscription is of, but for those
// that stand in a timeline of this answer. Of a room that the user has joined
// since it tells all.
//
// Spec: MSC4480
func (w *work) stickyEvents(tx *sqldb.Tx) error {
	x := w.q.ext.sticky
	if x == nil {
		return nil
	}
	list, upTo := w.stuck(x)
	if len(list) == 0 {
		return nil
	}
	var nids []int64
	for _, e := range list {
		if !w.shown[e.ID] {
			nids = append(nids, e.NID)
		}
	}
	var found map[int64]*events.Event
	if len(nids) > 0 {
		if tx == nil {
			return errNeedsDB
		}
		var err error
		if found, err = w.s.Events.ByNID(tx, nids); err != nil {
			return err
		}
		all := make([]*events.Event, 0, len(found))
		for _, e := range found {
			all = append(all, e)
		}
		if err := w.s.Events.Complete(tx, all); err != nil {
			return err
		}
	}
	w.some = true
	w.b = append(matrix.AppendJSONString(w.b, x.name), `:{"next_batch":"`...)
	w.b = append(append(w.b, clientsync.Token{Pos: upTo}.String()...), `","rooms":{`...)
	slices.SortStableFunc(list, func(a, b stuck) int { return cmp.Compare(a.room, b.room) })
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].room == list[0].room {
			n++
		}
		p := &piece{}
		for _, e := range list[:n] {
			if ev := found[e.NID]; ev != nil && ev.Sticky > 0 {
				p.list = append(p.list, ev)
			}
		}
		if len(p.list) > 0 {
			w.roomKey(list[0].room)
			w.b = append(w.b, `{"events":`...)
			w.list(p, p.list, nil)
			w.b = append(w.b, '}')
		}
		list = list[n:]
	}
	w.b = append(w.b, `}}`...)
	return nil
}

// stuck lists what is to be told, and up to where the client has all then.
func (w *work) stuck(x *paged) (list []stuck, upTo stream.Pos) {
	var old []stuck // of rooms that the user is new in: told without a limit
	for _, e := range w.concerned {
		for _, s := range w.s.Rooms.Sticky().In(e.id, 0, w.to) {
			switch {
			case w.q.ignored.Has(s.Sender):
			case s.Pos > x.since:
				list = append(list, stuck{s, e.id})
			case e.room.Joined > x.since:
				old = append(old, stuck{s, e.id})
			}
		}
	}
	slices.SortFunc(list, func(a, b stuck) int { return cmp.Compare(a.Pos, b.Pos) })
	switch {
	case len(list) > x.limit:
		list = list[:x.limit]
		upTo = list[len(list)-1].Pos
	case len(list)+len(old) > 0:
		upTo = w.to
	default:
		upTo = x.since
	}
	return slices.Concat(old, list), upTo
}
