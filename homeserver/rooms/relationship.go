package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// checkRelationship refuses to relate to what is not known here, or is of another room.
// Spec: MSC2836
func (r *Rooms) checkRelationship(ctx context.Context, d Draft) error {
	rel := gjson.GetBytes(d.Content, "m\\.relationship")
	if !rel.IsObject() {
		return nil
	}
	target, err := r.known(ctx, matrix.EventID(rel.Get("event_id").Str))
	switch {
	case err != nil:
		return err
	case target == nil:
		return matrix.InvalidParam("the event of m.relationship is not known here")
	case target.Room != d.Room:
		return matrix.InvalidParam("the event of m.relationship is of another room")
	}
	return nil
}

// Keep checks and stores events of a room that came with no place in its history, with
// what authorises them. It gives their IDs; "" of those that are no good.
func (r *Rooms) Keep(ctx context.Context, room matrix.RoomID, chain, pdus []json.RawMessage) ([]matrix.EventID, error) {
	version, err := r.Version(ctx, room)
	if err != nil {
		return nil, err
	}
	all, _, err := r.storeOutliers(ctx, version, room, slices.Concat(chain, pdus))
	if err != nil {
		return nil, fmt.Errorf("keeping events: %w", err)
	}
	ids := make([]matrix.EventID, len(pdus))
	for i, raw := range pdus {
		if e, err := events.Parse(raw, gomatrixserverlib.RoomVersion(version)); err == nil && all[e.ID] != nil {
			ids[i] = e.ID
		}
	}
	return ids, nil
}

// AuthChains is all that authorises some events, as PDUs.
func (r *Rooms) AuthChains(ctx context.Context, list []*events.Event) (out []json.RawMessage, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		chain, err := r.authChain(tx, list)
		out = nil
		for _, e := range chain {
			out = append(out, e.JSON)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading auth chains: %w", err)
	}
	return out, nil
}
