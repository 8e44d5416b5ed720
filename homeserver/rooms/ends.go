package rooms

import (
	"cmp"
	"context"
	"encoding/json"
	"hash/fnv"
	"slices"
	"time"

	"github.com/matrix-org/gomatrixserverlib/spec"
	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const (
	// DefaultQuiet is for how long a room is to be quiet before its ends are brought
	// together, and each server's turn, see endsTurn.
	DefaultQuiet = 2 * time.Second
	// fewTips is how many ends a room may have for good: each costs every event that
	// comes beside them a part of a resolution. manyTips is how many it may have while
	// it is not quiet.
	fewTips  = 4
	manyTips = 8
	// mostCrowded is how many rooms wait for being looked at; those beyond are noted
	// with their next event.
	mostCrowded = 1000
	// mostTurns bounds how long a server waits for others, in parts of Quiet.
	mostTurns   = 60
	turnsAQuiet = 8

	dummy = events.FlagSoftFailed | events.FlagDummy
)

// ends brings the ends of rooms together in which many servers have spoken at once, and
// now nobody does: a message of anybody does the same.
//
// Each server of a room waits for its turn, so that they do not all make a new end at
// once; who is there before it spares it the trouble.
type ends struct{ crowded chan matrix.RoomID }

// note has a room looked at that has more ends than it should.
func (e *ends) note(room matrix.RoomID) {
	select {
	case e.crowded <- room:
	default:
	}
}

// RunEnds brings the ends of rooms together until ctx ends.
func (r *Rooms) RunEnds(ctx context.Context) error {
	due := map[matrix.RoomID]time.Time{}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case room := <-r.ends.crowded:
			if _, ok := due[room]; !ok && len(due) < mostCrowded {
				due[room] = time.Now().Add(r.o.Quiet + r.turn(room))
			}
		case <-timer.C:
			now := time.Now()
			for room, at := range due {
				if at.After(now) {
					continue
				}
				if delete(due, room); r.busy(ctx, room) {
					due[room] = now.Add(r.o.Quiet)
					continue
				}
				if err := r.joinEnds(ctx, room); err != nil && ctx.Err() == nil {
					log.WithError(err).WithField("room_id", room).Warn("the ends of a room could not be brought together")
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		next := time.Hour
		for _, at := range due {
			next = min(next, max(time.Until(at), 0))
		}
		timer.Reset(next)
	}
}

// turn is how long this server waits for the others of a room. Their order differs
// between rooms.
func (r *Rooms) turn(room matrix.RoomID) time.Duration {
	place := func(s matrix.ServerName) uint64 {
		h := fnv.New64a()
		h.Write([]byte(string(room) + " " + string(s)))
		return h.Sum64()
	}
	mine, before := place(r.o.Signer.Server), 0
	for _, s := range r.hub.Servers(room) {
		if place(s) < mine {
			before++
		}
	}
	return r.o.Quiet / turnsAQuiet * time.Duration(min(before, mostTurns))
}

// busy reports whether a room may be left to those who are speaking in it.
func (r *Rooms) busy(ctx context.Context, id matrix.RoomID) bool {
	rm, err := r.locked(ctx, id)
	if err != nil {
		return false
	}
	defer rm.mu.Unlock()
	return len(rm.tips) > fewTips && len(rm.tips) <= manyTips && r.o.Now().Sub(rm.moved) < r.o.Quiet
}

// joinEnds sends an event that is built on all ends of a room, if there are still many
// and a local user may send it.
func (r *Rooms) joinEnds(ctx context.Context, id matrix.RoomID) error {
	rm, err := r.locked(ctx, id)
	if err != nil {
		if matrix.IsCode(err, "M_NOT_FOUND") {
			return nil
		}
		return err
	}
	many := len(rm.tips) > fewTips
	var sender matrix.UserID
	if many {
		sender, err = r.speaker(ctx, rm)
	}
	rm.mu.Unlock()
	if err != nil || !many || sender == "" {
		return err
	}
	_, err = r.Send(ctx, Draft{Room: id, Sender: sender, Type: events.Dummy, Content: json.RawMessage("{}")})
	if matrix.IsCode(err, "M_FORBIDDEN") {
		return nil // he has just left
	}
	return err
}

// speaker finds a local user who may speak in a room, "" if there is none.
func (r *Rooms) speaker(ctx context.Context, rm *room) (matrix.UserID, error) {
	l, err := rm.powerLevels(func(e *entry) (*events.Event, error) { return r.event(ctx, e) })
	if err != nil {
		return "", err
	}
	need := l.c.EventLevel(events.Dummy, false)
	able := slices.Clone(l.creators)
	for u, level := range l.c.Users {
		if level >= need {
			able = append(able, matrix.UserID(u))
		}
	}
	if l.c.UsersDefault >= need {
		able = append(able, r.hub.LocalMembers(rm.id)...)
	}
	able = slices.DeleteFunc(able, func(u matrix.UserID) bool {
		return !r.isLocal(u) || rm.membership(u) != spec.Join || l.user(u) < need || r.isGuest(u)
	})
	if len(able) == 0 {
		return "", nil
	}
	return slices.MaxFunc(able, func(a, b matrix.UserID) int { return cmp.Or(cmp.Compare(l.user(a), l.user(b)), cmp.Compare(b, a)) }), nil
}
