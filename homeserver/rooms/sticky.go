package rooms

import (
	"context"
	"fmt"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// recheckSticky looks again at sticky events that were soft-failed, when the
// membership of their sender has changed: all servers must come to agree on what
// is sticky, in whatever order they have heard of it.
// Spec: MSC4354
func (r *Rooms) recheckSticky(ctx context.Context, list []*built) {
	for _, b := range list {
		if b.placed == nil {
			continue
		}
		for user := range b.placed.Moves {
			soft := r.sticky.Soft(b.placed.Room, user)
			if len(soft) == 0 {
				continue
			}
			nids := make([]int64, len(soft))
			for i, e := range soft {
				nids[i] = e.NID
			}
			if err := r.revive(context.WithoutCancel(ctx), b.placed.Room, nids); err != nil {
				log.WithError(err).WithField("room_id", b.placed.Room).Warn("sticky events could not be checked again")
			}
		}
	}
}

// revive shows soft-failed message events that the current state allows by now:
// they come into the timeline again, at its end.
func (r *Rooms) revive(ctx context.Context, id matrix.RoomID, nids []int64) error {
	var evs map[int64]*events.Event
	err := r.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		evs, err = r.events.ByNID(tx, nids)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading soft-failed events: %w", err)
	}
	rm, err := r.settled(ctx, id)
	if err != nil {
		return err
	}
	var list []*events.Event
	for _, nid := range nids {
		e := evs[nid]
		if e == nil || e.StateKey != nil || e.Flags&events.FlagSoftFailed == 0 || e.Redacted() || r.authorise(ctx, rm, e) != nil {
			continue
		}
		list = append(list, e)
	}
	rm.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	_, err = r.log.Append(ctx, len(list), func(tx *sqldb.Tx, first stream.Pos) ([]stream.Change, error) {
		changes := make([]stream.Change, len(list))
		for i, e := range list {
			p := e.Placed(e.NID, first+stream.Pos(i), e.Replaces)
			p.Flags &^= events.FlagSoftFailed
			if err := r.events.Promote(tx, p); err != nil {
				return nil, err
			}
			changes[i] = stream.Change{Pos: p.Pos, Kind: stream.KindEvent, Room: id, User: p.Sender, Payload: p}
		}
		return changes, nil
	})
	if err != nil {
		return fmt.Errorf("showing sticky events: %w", err)
	}
	return nil
}
