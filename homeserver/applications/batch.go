package applications

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Bounds of one transaction.
const (
	maxEvents   = 100
	maxReceipts = 2000
	maxScanned  = 4000
	dbPage      = 500
)

// batch is what one transaction carries.
type batch struct {
	upTo      stream.Pos
	more      bool
	events    [][]byte
	ephemeral [][]byte
	receipts  []*receipts.Receipt
	volatile  int // how many of ephemeral are typing and presence
}

func (b *batch) any() bool { return len(b.events)+len(b.ephemeral) > 0 }

// durable reports whether the batch holds anything that must not be lost.
func (b *batch) durable() bool { return len(b.events)+len(b.ephemeral)-b.volatile > 0 }

// body encodes the transaction. Spec: application-service-api#pushing-events
func (b *batch) body() []byte {
	var out bytes.Buffer
	list := func(name string, items [][]byte) {
		out.WriteString(`"` + name + `":[`)
		out.Write(bytes.Join(items, []byte{','}))
		out.WriteByte(']')
	}
	out.WriteByte('{')
	list("events", b.events)
	if len(b.ephemeral) > 0 {
		out.WriteByte(',')
		list("ephemeral", b.ephemeral)
		out.WriteByte(',')
		list("de.sorunome.msc2409.ephemeral", b.ephemeral) // compat: services from before version 1.13
	}
	out.WriteByte('}')
	return out.Bytes()
}

// gather reads the log from the service's position on and picks what interests it.
func (s *service) gather(ctx context.Context) (*batch, error) {
	top := s.a.tail.top()
	if s.pending > 0 { // exactly what was begun before a restart
		top = s.pending
	}
	b := &batch{upTo: s.pos}
	scanned := 0
	for b.upTo < top {
		if s.pending == 0 && (scanned >= maxScanned || len(b.events) >= maxEvents || len(b.receipts) >= maxReceipts) {
			break
		}
		list, upTo, err := s.read(ctx, b.upTo, top)
		if err != nil {
			return nil, err
		}
		scanned += len(list)
		if err := s.pick(ctx, b, list, upTo); err != nil {
			return nil, err
		}
	}
	b.more = b.upTo < top || s.pending > 0
	b.ephemeral = appendReceipts(b.ephemeral, b.receipts)
	return b, s.addVolatile(ctx, b)
}

// pick takes the items of interest; when the batch is full it ends there.
func (s *service) pick(ctx context.Context, b *batch, list []item, upTo stream.Pos) error {
	now := s.a.opts.Now()
	for _, it := range list {
		if s.pending == 0 && (len(b.events) == maxEvents || len(b.receipts) == maxReceipts) {
			return nil
		}
		switch {
		case it.event != nil:
			ok, err := s.want.event(ctx, it.event)
			if err != nil {
				return err
			}
			if ok {
				b.events = append(b.events, it.event.AppendClient(nil, events.ClientFormat{Now: now}))
			}
		case it.receipt != nil && s.reg.ReceiveEphemeral:
			ok, err := s.wantReceipt(ctx, it.receipt)
			if err != nil {
				return err
			}
			if ok {
				b.receipts = append(b.receipts, it.receipt)
			}
		}
		b.upTo = it.pos
	}
	b.upTo = upTo
	return nil
}

// wantReceipt reports whether the service hears of a receipt: private ones only of its own users.
//
// Spec: application-service-api#pushing-ephemeral-data
func (s *service) wantReceipt(ctx context.Context, r *receipts.Receipt) (bool, error) {
	if s.want.user(r.User) {
		return true, nil
	}
	if r.Type == receipts.ReadPrivate {
		return false, nil
	}
	return s.want.room(ctx, r.Room, r.Pos)
}

// read gives the items of a stretch that begins after from, from memory or from the database.
func (s *service) read(ctx context.Context, from, to stream.Pos) ([]item, stream.Pos, error) {
	if list, upTo, ok := s.a.tail.read(from, to, dbPage); ok {
		return list, upTo, nil
	}
	changes, err := s.a.log.Changes(ctx, from, to, dbPage)
	if err != nil {
		return nil, 0, err
	}
	if len(changes) == dbPage {
		to = changes[dbPage-1].Pos
	}
	var reads map[stream.Pos]*receipts.Receipt
	for _, c := range changes {
		if c.Kind != stream.KindReceipt {
			continue
		}
		list, err := s.a.src.Receipts.Between(ctx, from, to)
		if err != nil {
			return nil, 0, err
		}
		reads = make(map[stream.Pos]*receipts.Receipt, len(list))
		for _, r := range list {
			reads[r.Pos] = r
		}
		break
	}
	byPos, err := s.eventsAt(ctx, changes)
	if err != nil {
		return nil, 0, err
	}
	var list []item
	for _, c := range changes {
		if e := byPos[c.Pos]; e != nil && c.Kind == stream.KindEvent && !e.Hidden() {
			list = append(list, item{pos: c.Pos, event: e})
		} else if r := reads[c.Pos]; r != nil && c.Kind == stream.KindReceipt {
			list = append(list, item{pos: c.Pos, receipt: r})
		}
	}
	return list, to, nil
}

// eventsAt reads the events of changes. Most have their position as row number.
func (s *service) eventsAt(ctx context.Context, changes []stream.Change) (map[stream.Pos]*events.Event, error) {
	store := s.a.src.Events
	out := map[stream.Pos]*events.Event{}
	err := s.a.db.Read(ctx, func(tx *sqldb.Tx) error {
		clear(out)
		var nids []int64
		for _, c := range changes {
			if c.Kind == stream.KindEvent {
				nids = append(nids, int64(c.Pos))
			}
		}
		if len(nids) == 0 {
			return nil
		}
		byNID, err := store.ByNID(tx, nids)
		if err != nil {
			return err
		}
		var all []*events.Event
		for _, c := range changes {
			if c.Kind != stream.KindEvent {
				continue
			}
			e := byNID[int64(c.Pos)]
			if e == nil || e.Pos != c.Pos && !outside(e) {
				list, err := store.Timeline(tx, c.Room, c.Pos-1, c.Pos, 1, true)
				if err != nil {
					return err
				}
				if len(list) == 0 {
					continue
				}
				e = list[0]
			}
			out[c.Pos] = e
			all = append(all, e)
		}
		return store.Complete(tx, all)
	})
	if err != nil {
		return nil, fmt.Errorf("reading events for an application service: %w", err)
	}
	return out, nil
}

// appendReceipts encodes receipts as one m.receipt event a room, or more where a user has read several threads.
func appendReceipts(dst [][]byte, list []*receipts.Receipt) [][]byte {
	type data struct {
		TS     int64  `json:"ts"`
		Thread string `json:"thread_id,omitempty"`
	}
	type content map[matrix.EventID]map[string]map[matrix.UserID]data
	type doc struct {
		Type    string        `json:"type"`
		Room    matrix.RoomID `json:"room_id"`
		Content content       `json:"content"`
	}
	var docs []*doc
	last := map[matrix.RoomID]*doc{}
	for _, r := range list {
		d := last[r.Room]
		if d != nil {
			if _, there := d.Content[r.Event][r.Type][r.User]; there {
				d = nil
			}
		}
		if d == nil {
			d = &doc{"m.receipt", r.Room, content{}}
			docs, last[r.Room] = append(docs, d), d
		}
		if d.Content[r.Event] == nil {
			d.Content[r.Event] = map[string]map[matrix.UserID]data{}
		}
		if d.Content[r.Event][r.Type] == nil {
			d.Content[r.Event][r.Type] = map[matrix.UserID]data{}
		}
		d.Content[r.Event][r.Type][r.User] = data{r.TS, r.Thread}
	}
	for _, d := range docs {
		raw, _ := json.Marshal(d) // maps of strings always encode
		dst = append(dst, raw)
	}
	return dst
}

// addVolatile adds typing and presence.
func (s *service) addVolatile(ctx context.Context, b *batch) error {
	s.mu.Lock()
	if len(s.typing)+len(s.presence) == 0 {
		s.mu.Unlock()
		return nil
	}
	rooms, users := s.typing, s.presence
	s.typing, s.presence = map[matrix.RoomID]struct{}{}, map[matrix.UserID]presence.State{}
	s.mu.Unlock()
	for room := range rooms {
		ok, err := s.want.room(ctx, room, s.a.log.Head())
		if err != nil {
			return err
		}
		if ok {
			b.addVolatile(map[string]any{
				"type": "m.typing", "room_id": room, "content": map[string]any{"user_ids": append([]matrix.UserID{}, s.a.src.Typing.Users(room)...)},
			})
		}
	}
	for user, p := range users {
		ok, err := s.wantPresence(ctx, user)
		if err != nil {
			return err
		}
		if ok {
			b.addVolatileRaw(p.Event(s.a.opts.Now()))
		}
	}
	return nil
}

func (b *batch) addVolatile(v any) {
	raw, _ := json.Marshal(v) // maps of strings always encode
	b.addVolatileRaw(raw)
}

func (b *batch) addVolatileRaw(raw []byte) {
	b.ephemeral = append(b.ephemeral, raw)
	b.volatile++
}

// wantPresence reports whether a user is the service's or in a room that interests it.
func (s *service) wantPresence(ctx context.Context, user matrix.UserID) (bool, error) {
	if s.want.user(user) {
		return true, nil
	}
	for _, room := range s.a.src.Hub.RoomsOf(user) {
		ok, err := s.want.room(ctx, room, s.a.log.Head())
		if ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}
