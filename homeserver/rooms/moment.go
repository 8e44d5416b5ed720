package rooms

import (
	"context"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const (
	// mostAsked is how many servers are asked for an event next to a time.
	mostAsked = 3
	// fetchedAtOnce is how many older events are asked for at once on the way to
	// one, and mostFetches how often.
	fetchedAtOnce = 100
	mostFetches   = 20
)

// Reach fetches history until it holds the event next to a time, where another
// server knows one that is nearer than found. It reports whether anything came:
// then look again.
//
// History comes from its near end on and without holes, so that its order stays.
// Spec: get_matrixfederationv1timestamp_to_eventroomid
func (r *Rooms) Reach(ctx context.Context, id matrix.RoomID, ts int64, forward bool, found *events.Event) (bool, error) {
	if r.o.Remote == nil || !r.participates(id) {
		return false, nil
	}
	edge, _, err := r.edge(ctx, id)
	if err != nil || len(edge) == 0 {
		return false, err
	}
	asked := 0
	for _, s := range r.hub.Servers(id) {
		if s == r.o.Signer.Server || asked == mostAsked {
			continue
		}
		asked++
		target, at, err := r.o.Remote.Nearest(ctx, s, id, ts, forward)
		if err != nil || found != nil && distance(at, ts) >= distance(found.TS, ts) {
			continue
		}
		return r.fetchTo(ctx, id, target)
	}
	return false, ctx.Err()
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

func (r *Rooms) fetchTo(ctx context.Context, id matrix.RoomID, target matrix.EventID) (some bool, err error) {
	for range mostFetches {
		missing, _, err := r.missing(ctx, id, []matrix.EventID{target})
		if err != nil || len(missing) == 0 {
			return some, err
		}
		more, err := r.Fetch(ctx, id, fetchedAtOnce)
		if err != nil || !more {
			return some, err
		}
		some = true
	}
	return some, nil
}
