package clientsync

import (
	"slices"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// sticky lists the events after from that are sticky and not in the timeline:
// too many others have followed, the filter keeps them out of it, or they are
// from before the user was in the room. at are the room's new events, where they
// are at hand; tx may be nil then. Where nothing is sticky it reads nothing.
// Spec: MSC4354
func (w *work) sticky(tx *sqldb.Tx, id matrix.RoomID, from stream.Pos, t *timeline, at []*events.Event) ([]*events.Event, error) {
	var list []*events.Event
	var nids []int64
	for _, e := range w.s.Rooms.Sticky().In(id, from, w.to) {
		same := func(o *events.Event) bool { return o.ID == e.ID }
		if w.q.ignored.Has(e.Sender) || slices.ContainsFunc(t.list, same) {
			continue
		}
		if i := slices.IndexFunc(at, same); i >= 0 {
			list = append(list, at[i])
		} else if tx != nil {
			nids = append(nids, e.NID)
		}
	}
	if len(nids) == 0 {
		return list, nil
	}
	more, err := w.s.Events.ByNID(tx, nids)
	if err != nil {
		return nil, err
	}
	for _, nid := range nids {
		if e := more[nid]; e != nil && e.Sticky > 0 {
			list = append(list, e)
		}
	}
	return list, w.s.Events.Complete(tx, list)
}

// appendSticky writes the section of a room that sticky has listed.
func (w *work) appendSticky(b []byte, list []*events.Event) []byte {
	if len(list) == 0 {
		return b
	}
	b = append(w.comma(b), `"msc4354_sticky":{"events":[`...)
	for i, e := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = w.appendEvent(b, e)
	}
	return append(b, `]}`...)
}
