package readlist

import (
	"context"
	"encoding/json"
	"fmt"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// content is the part of an event's content that matters here.
type content struct {
	Membership string   `json:"membership"`
	MsgType    string   `json:"msgtype"`
	Body       string   `json:"body"`
	Redacts    string   `json:"redacts"`
	RelatesTo  relation `json:"m.relates_to"`
}

type relation struct {
	RelType   string `json:"rel_type"`
	EventID   string `json:"event_id"`
	Key       string `json:"key"`
	InReplyTo struct {
		EventID string `json:"event_id"`
	} `json:"m.in_reply_to"`
}

// isMessage reports whether an event of this type counts as a message that people read.
func isMessage(ev *mxclient.Event, c *content) bool {
	if ev.StateKey != nil || c.RelatesTo.RelType == "m.replace" || c.RelatesTo.RelType == "m.annotation" {
		return false
	}
	switch ev.Type {
	case "m.room.message", "m.room.encrypted", "m.sticker", "m.poll.start", "org.matrix.msc3381.poll.start":
		return true
	}
	return false
}

// OnEvent takes in one event; see OnEvents.
func (l *Lists) OnEvent(ctx context.Context, ev *mxclient.Event) error {
	return l.OnEvents(ctx, []*mxclient.Event{ev})
}

// OnEvents takes in the events of one transaction in their order, then answers the questions among them. When it
// returns nil they are stored. Events seen before change nothing, so a transaction may be repeated.
func (l *Lists) OnEvents(ctx context.Context, evs []*mxclient.Event) error {
	if err := l.takeEvents(ctx, evs); err != nil {
		return err
	}
	for _, ev := range evs {
		if err := l.answer(ctx, ev); err != nil {
			return fmt.Errorf("answering a question about readers: %w", err)
		}
	}
	return nil
}

func (l *Lists) takeEvents(ctx context.Context, evs []*mxclient.Event) error {
	l.feed.Lock()
	defer l.feed.Unlock()
	known, err := l.known(ctx, evs)
	if err != nil {
		return err
	}
	b := newBatch()
	for _, ev := range evs {
		if ev.ID == "" || ev.Room == "" || known[ev.ID] {
			continue
		}
		known[ev.ID] = true
		if err := l.takeEvent(ctx, b, ev); err != nil {
			l.drop(b.touched)
			return err
		}
	}
	return l.finish(ctx, b)
}

// finish stores a batch; if that fails, the memory of its rooms is thrown away.
func (l *Lists) finish(ctx context.Context, b *batch) error {
	if err := l.store(ctx, b); err != nil {
		l.drop(b.touched)
		return fmt.Errorf("storing read lists: %w", err)
	}
	l.reweigh(b.touched)
	return nil
}

// known are the events that have been taken in before.
func (l *Lists) known(ctx context.Context, evs []*mxclient.Event) (map[string]bool, error) {
	ids := make([]string, len(evs))
	for i, ev := range evs {
		ids[i] = ev.ID
	}
	known := map[string]bool{}
	err := l.db.Read(ctx, func(tx *sqldb.Tx) error {
		return each(tx, func(rows *sqldb.Rows) error {
			var id string
			err := rows.Scan(&id)
			known[id] = true
			return err
		}, qKnown, ids)
	})
	if err != nil {
		return nil, fmt.Errorf("looking for known events: %w", err)
	}
	return known, nil
}

func (l *Lists) takeEvent(ctx context.Context, b *batch, ev *mxclient.Event) error {
	var c content
	_ = json.Unmarshal(ev.Content, &c) // of a wrong shape: an event like any other
	r, err := l.room(ctx, ev.Room)
	if err == nil && r == nil {
		if ev.Type == "m.room.member" && ev.StateKey != nil && c.Membership != "join" {
			return nil // an invitation to a room of other servers, or its end: nobody is in it yet
		}
		r, err = l.firstSight(ctx, ev.Room, ev, ev.Sender)
	}
	if err != nil {
		return err
	}
	b.touched[r] = true
	target, err := l.target(ctx, b, r, ev, &c)
	if err != nil {
		return err
	}
	waiting, err := l.waiting(ctx, b, r, ev.ID)
	if err != nil {
		return err
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	e := &event{id: ev.ID, pos: r.next, thread: mainThread, ts: ev.TS, sender: ev.Sender}
	r.next++
	switch {
	case isMessage(ev, &c):
		e.kind = kindMessage
		if c.RelatesTo.RelType == "m.thread" && mxclient.Identifier(c.RelatesTo.EventID) {
			e.thread = b.thread(r, c.RelatesTo.EventID)
		}
	case target != nil:
		e.thread = target.thread
	}
	r.remember(e)
	b.byID[e.id] = e
	b.events = append(b.events, eventRow{r, e})
	l.effects(b, r, ev, &c, e, target)
	for _, p := range waiting {
		l.takeReceipt(b, r, p.user, p.thread, p.ts, e)
	}
	return nil
}

// effects is what an event changes besides standing in the order.
func (l *Lists) effects(b *batch, r *room, ev *mxclient.Event, c *content, e, target *event) {
	switch {
	case ev.Type == "m.room.member" && ev.StateKey != nil && mxclient.Identifier(*ev.StateKey):
		l.membership(b, r, *ev.StateKey, c.Membership, ev.Unsigned, e.pos)
	case ev.Type == "m.room.power_levels" && ev.StateKey != nil:
		r.power = nil
	case ev.Type == "m.room.create" && ev.StateKey != nil:
		r.creators, r.power = creators(ev), nil
		b.created = append(b.created, r)
	case e.kind == kindMessage:
		if idx, ok := r.index[ev.Sender]; ok {
			b.step(r, idx, move{pos: e.pos, thread: e.thread, ts: min(ev.TS, matrix.Millis(l.opts.Now())), implied: true})
		}
	case target == nil || target.kind != kindMessage || target.redacted != 0:
	case ev.Type == "m.room.redaction":
		target.frozen, target.redacted = r.readers(target), e.pos
		b.change(r, target)
	case c.RelatesTo.RelType == "m.replace" && target.sender == ev.Sender:
		target.editedAt, target.editedTS = e.pos, ev.TS
		b.change(r, target)
	}
}

// target is the event that a redaction, an edit or a reaction is about, if it is known in this room.
func (l *Lists) target(ctx context.Context, b *batch, r *room, ev *mxclient.Event, c *content) (*event, error) {
	id := ""
	switch {
	case ev.Type == "m.room.redaction":
		if id = ev.Redacts; id == "" {
			id = c.Redacts
		}
	case c.RelatesTo.RelType == "m.replace", c.RelatesTo.RelType == "m.annotation":
		id = c.RelatesTo.EventID
	}
	if !mxclient.Identifier(id) {
		return nil, nil
	}
	if e := b.byID[id]; e != nil {
		c := *e
		return &c, nil
	}
	found, err := l.find(ctx, r, id)
	return found[id], err
}

func (b *batch) change(r *room, e *event) {
	b.changed[e] = r
	b.byID[e.id] = e
	if r.recent[e.id] != nil {
		r.recent[e.id] = e
	}
}

func (b *batch) step(r *room, idx int32, m move) bool {
	if !r.step(idx, m) {
		return false
	}
	b.marks[markKey{r, idx, m.thread}] = true
	b.moves = append(b.moves, moveRow{memberKey{r, idx}, m})
	return true
}

// thread is the number of a thread, new ones are given one.
func (b *batch) thread(r *room, root string) int32 {
	if n, ok := r.threads[root]; ok {
		return n
	}
	n := int32(len(r.threads)) + 2
	r.nameThread(root, n)
	b.threads = append(b.threads, threadRow{r, n, root})
	return n
}

func (r *room) nameThread(root string, n int32) {
	if r.threads == nil {
		r.threads = map[string]int32{}
	}
	r.threads[root] = n
}

func (r *room) park(event string) {
	if r.parked == nil {
		r.parked = map[string]bool{}
	}
	r.parked[event] = true
}

func (r *room) keepSpan(idx int32, s span) {
	if r.older == nil {
		r.older = map[int32][]span{}
	}
	r.older[idx] = append(r.older[idx], s)
}

// membership applies a member event. The members asked for at first sight may be ahead of the events that are still
// to come; the membership before each event, which the homeserver adds to it, says what is true.
func (l *Lists) membership(b *batch, r *room, user, membership string, unsigned json.RawMessage, pos int32) {
	var u struct {
		Prev struct {
			Membership string `json:"membership"`
		} `json:"prev_content"`
	}
	_ = json.Unmarshal(unsigned, &u)
	before := u.Prev.Membership
	idx, ok := r.index[user]
	switch {
	case membership == "join" && !ok:
		idx = r.add(user, span{from: pos}, l.bots[user], 0)
	case membership == "join" && !r.isIn(idx):
		if old := r.spans[idx]; old.from != never {
			r.keepSpan(idx, old)
			b.spans = append(b.spans, spanRow{memberKey{r, idx}, old})
		}
		r.spans[idx] = span{from: pos}
	case membership == "join" && r.spans[idx].from == 0 && before != "" && before != "join":
		r.spans[idx] = span{from: pos}
	case membership != "join" && !ok && before == "join":
		idx = r.add(user, span{from: 0, to: pos}, l.bots[user], 0)
	case membership != "join" && ok && r.isIn(idx):
		r.spans[idx].to = pos
	default:
		return
	}
	b.members[memberKey{r, idx}] = true
}

// OnReceipt takes in one receipt; see OnReceipts.
func (l *Lists) OnReceipt(ctx context.Context, room, user, event, thread string, ts int64, kind string) error {
	return l.OnReceipts(ctx, []mxclient.Receipt{{Room: room, User: user, Event: event, Thread: thread, TS: ts, Kind: kind}})
}

// OnReceipts takes in receipts. When it returns nil they are stored.
func (l *Lists) OnReceipts(ctx context.Context, receipts []mxclient.Receipt) error {
	l.feed.Lock()
	defer l.feed.Unlock()
	rooms := map[string][]*mxclient.Receipt{}
	var order []string
	for i := range receipts {
		rc := &receipts[i]
		private := rc.Kind == "m.read.private"
		if !mxclient.Identifier(rc.Event) || !mxclient.Identifier(rc.User) || rc.Thread != "" && !mxclient.Identifier(rc.Thread) {
			continue // none that anybody could have meant
		}
		if rc.Kind != "m.read" && !private || private && !l.opts.CountPrivate || l.bots[rc.User] {
			continue
		}
		if rooms[rc.Room] == nil {
			order = append(order, rc.Room)
		}
		rooms[rc.Room] = append(rooms[rc.Room], rc)
	}
	b := newBatch()
	for _, roomID := range order {
		if err := l.takeReceipts(ctx, b, roomID, rooms[roomID]); err != nil {
			l.drop(b.touched)
			return err
		}
	}
	return l.finish(ctx, b)
}

func (l *Lists) takeReceipts(ctx context.Context, b *batch, roomID string, receipts []*mxclient.Receipt) error {
	r, err := l.room(ctx, roomID)
	if err == nil && r == nil {
		r, err = l.firstSight(ctx, roomID, nil, receipts[0].User)
	}
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	var ids []string
	for _, rc := range receipts {
		if !seen[rc.Event] {
			seen[rc.Event] = true
			ids = append(ids, rc.Event)
		}
	}
	events, err := l.find(ctx, r, ids...)
	if err != nil {
		return err
	}
	now := matrix.Millis(l.opts.Now())
	b.touched[r] = true
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rc := range receipts {
		if e := events[rc.Event]; e != nil {
			l.takeReceipt(b, r, rc.User, rc.Thread, rc.TS, e)
			continue
		}
		if _, ok := r.index[rc.User]; ok { // it has come before its event
			r.park(rc.Event)
			b.parked = append(b.parked, parkedRow{r: r, event: rc.Event, user: rc.User, thread: rc.Thread, ts: rc.TS, arrived: now})
		}
	}
	return nil
}

// takeReceipt moves a mark. The reader's clock is not trusted beyond the time between sending and now.
func (l *Lists) takeReceipt(b *batch, r *room, user, thread string, ts int64, e *event) {
	idx, ok := r.index[user]
	if !ok || r.bot[idx] {
		return
	}
	n := unthreaded
	switch thread {
	case "":
	case "main":
		n = mainThread
	default:
		if n, ok = r.threads[thread]; !ok {
			return // a thread nobody has written in
		}
	}
	now := matrix.Millis(l.opts.Now())
	if !b.step(r, idx, move{pos: e.pos, thread: n, ts: min(max(ts, e.ts), now)}) {
		log.WithFields(log.Fields{"room_id": r.id, "user_id": user, "event_id": e.id}).Debug("Receipt behind the current one")
	}
}

// waiting are the receipts parked for an event.
func (l *Lists) waiting(ctx context.Context, b *batch, r *room, eventID string) ([]parkedRow, error) {
	r.mu.Lock()
	parked := r.parked[eventID]
	delete(r.parked, eventID)
	r.mu.Unlock()
	if !parked {
		return nil, nil
	}
	var out []parkedRow
	err := l.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		out, err = sqldb.Select(tx, func(rows *sqldb.Rows) (p parkedRow, err error) {
			err = rows.Scan(&p.user, &p.thread, &p.ts)
			return p, err
		}, qParked, r.nid, eventID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading parked receipts: %w", err)
	}
	b.unpark = append(b.unpark, parkedRow{r: r, event: eventID})
	return out, nil
}
