package receipts

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// maxParked is how many receipts of other servers wait for their events: what
// everybody of a large company says of one message, and more.
const maxParked = 50_000

// maxArrived is how many receipts whose event has come wait to be stored; more
// are dropped, as newer ones follow.
const maxArrived = 50_000

// Receive takes the content of an m.receipt EDU. Receipts of users that do not
// belong to the origin, or are not in the room, are dropped; receipts for events
// that have not arrived wait for them.
//
// Spec: server-server-api#receipts
func (r *Receipts) Receive(ctx context.Context, origin matrix.ServerName, edu json.RawMessage) error {
	var content map[matrix.RoomID]map[string]map[matrix.UserID]struct {
		Events []matrix.EventID `json:"event_ids"`
		Data   struct {
			TS     int64  `json:"ts"`
			Thread string `json:"thread_id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(edu, &content); err != nil {
		return matrix.BadJSON("the receipts are malformed")
	}
	now := matrix.Millis(r.now())
	var list []*Receipt
	for room, types := range content {
		for user, x := range types[Read] {
			if user.Server() != origin || len(x.Events) == 0 || !r.hub.Joined(user, room) {
				continue
			}
			list = append(list, &Receipt{
				Room: room, User: user, Type: Read, Event: x.Events[0], Thread: x.Data.Thread, TS: min(x.Data.TS, now), far: true,
			})
		}
	}
	return r.place(ctx, list)
}

// place finds the events of receipts and stores those that are found.
func (r *Receipts) place(ctx context.Context, list []*Receipt) error {
	var known []*Receipt
	for _, x := range list {
		p, err := r.places.Of(ctx, x.Room, x.Event)
		if isNotFound(err) {
			r.park(x)
			continue
		} else if err != nil {
			return err
		}
		c := *x
		c.EventPos = p.Pos
		known = append(known, &c)
	}
	if len(known) == 0 {
		return nil
	}
	return r.store(ctx, known)
}

func isNotFound(err error) bool {
	var e *matrix.Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

func (r *Receipts) park(x *Receipt) {
	r.parkedMu.Lock()
	if r.parkedCount >= maxParked {
		clear(r.parked) // they are old: receipts move on
		r.parkedCount = 0
		log.Debug("dropped receipts of other servers for events that never arrived")
	}
	r.parked[x.Event] = append(r.parked[x.Event], x)
	r.parkedCount++
	r.parkedMu.Unlock()
	if _, ok := r.places.kept(x.Event); ok { // it has come since it was looked for
		r.arrivedEvent(x.Event)
	}
}

// arrivedEvent lets the receipts that wait for an event be stored.
func (r *Receipts) arrivedEvent(id matrix.EventID) {
	r.parkedMu.Lock()
	list := r.parked[id]
	delete(r.parked, id)
	r.parkedCount -= len(list)
	if list != nil && len(r.arrived) < maxArrived {
		r.arrived = append(r.arrived, list...)
	}
	r.parkedMu.Unlock()
	if list == nil {
		return
	}
	select {
	case r.bell <- struct{}{}:
	default:
	}
}
