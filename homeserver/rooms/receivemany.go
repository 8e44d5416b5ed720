package rooms

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const acl = "m.room.server_acl"

// Received is what became of one event of another server. ID is empty if the
// event is too malformed to have one; Err as of Receive.
type Received struct {
	ID  matrix.EventID
	Err error
}

// ReceiveMany takes in events of one room that a server sends together, in their
// order. Where each follows the one before it, as it does unless the room forks,
// they are built on each other in memory, like our own, and share a commit.
// Others go the way of Receive.
func (r *Rooms) ReceiveMany(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, raws []json.RawMessage) []Received {
	out := make([]Received, len(raws))
	single := func(i int) { out[i].ID, out[i].Err = r.Receive(ctx, origin, raws[i]) }
	list, _ := r.inspect(ctx, origin, room, raws)
	for i := 0; i < len(raws); {
		if list == nil || list[i] == nil {
			single(i)
			i++
			continue
		}
		n, err := r.acceptRun(ctx, room, list[i:])
		for j := i; j < i+n; j++ {
			if err != nil { // the room has moved, or an event is known already
				single(j)
				continue
			}
			out[j].ID = list[j].ID
		}
		if n > 0 && list[i+n-1].Type == acl { // what comes after it may be shut out
			list = nil
		}
		if i += n; n == 0 {
			_, err := r.accept(ctx, origin, list[i], sent)
			out[i] = Received{list[i].ID, err}
			i++
		}
	}
	return out
}

// inspect parses events and verifies their signatures, all at once; nil for those
// that Receive shall look at. unjudged are those of them whose signers' keys cannot be
// had.
func (r *Rooms) inspect(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, raws []json.RawMessage) (list []*events.Event, unjudged []matrix.EventID) {
	if !r.participates(room) {
		return nil, nil
	}
	version, err := r.Version(ctx, room)
	if err != nil {
		return nil, nil
	}
	if ok, err := r.ACLAllows(ctx, room, origin); err != nil || !ok {
		return nil, nil
	}
	list = make([]*events.Event, len(raws))
	pdus := make([]json.RawMessage, len(raws))
	for i, raw := range raws {
		ev, err := events.Parse(raw, gomatrixserverlib.RoomVersion(version))
		if err != nil || ev.Room != room {
			pdus[i] = raw
			continue
		}
		list[i], pdus[i] = ev, ev.JSON
	}
	for i, err := range r.o.Remote.Verify(ctx, version, pdus) {
		if err == nil {
			continue
		}
		if key := (*matrix.KeyError)(nil); list[i] != nil && errors.As(err, &key) {
			unjudged = append(unjudged, list[i].ID)
		}
		list[i] = nil
	}
	return list, unjudged
}

// acceptRun places as many of the events as follow each other on the room's tips,
// and nothing but the room's state has to be looked at for them: n may be 0.
func (r *Rooms) acceptRun(ctx context.Context, id matrix.RoomID, list []*events.Event) (n int, err error) {
	rm, err := r.locked(ctx, id)
	if err != nil {
		return 0, nil //nolint:nilerr // accept will meet it again
	}
	var run []*built
	err = rm.guarded(func() error {
		for _, ev := range list {
			if ev == nil || !r.follows(ctx, rm, ev) {
				break
			}
			b := &built{ev: ev.Placed(0, 0, 0)}
			if err := r.remember(ctx, rm, b); err != nil {
				return err
			}
			run = append(run, b)
			if ev.Type == acl {
				break
			}
		}
		return nil
	})
	if err != nil {
		rm.loaded = false
		rm.mu.Unlock()
		return 0, nil //nolint:nilerr // accept will meet it again
	}
	if len(run) == 0 {
		rm.mu.Unlock()
		return 0, nil
	}
	return len(run), r.commit(ctx, rm, run)
}

// follows reports whether an event is allowed and can be placed on the room's tips
// by what is in memory: it builds on all of them, and names as its authorisation
// just the events that the room's state has, so that one check serves for both.
func (r *Rooms) follows(ctx context.Context, rm *room, ev *events.Event) bool {
	if ev.Redacts != "" || ev.Type == spec.MRoomCreate || rm.policy() != nil || !sameSet(ev.PrevEvents(), rm.tips) {
		return false
	}
	if r.silences.due(rm.id, r.o.Now()) {
		return false
	}
	want, err := r.authEventIDs(ctx, rm, &events.Proto{Version: rm.version, Sender: ev.Sender, Type: ev.Type, StateKey: ev.StateKey, Content: ev.Content()})
	return err == nil && sameSet(ev.AuthEvents(), want) && r.authorise(ctx, rm, ev) == nil
}
