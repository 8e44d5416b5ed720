package clientsync

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

func appendInt(b []byte, n int) []byte { return strconv.AppendInt(b, int64(n), 10) }

// section collects the rooms of one kind: join, invite, knock or leave.
type section struct {
	name  string
	b     []byte
	count int
}

func (s *section) add(id matrix.RoomID) {
	if s.count == 0 {
		s.b = buffer()
	} else {
		s.b = append(s.b, ',')
	}
	s.count++
	s.b = matrix.AppendJSONString(s.b, string(id))
	s.b = append(s.b, ':')
}

func (w *work) rooms(tx *sqldb.Tx, out *[]byte) error {
	join := section{name: "join"}
	others := [3]section{{name: "invite"}, {name: "knock"}, {name: "leave"}}
	seen := map[matrix.RoomID]bool{}
	for i := range w.snap.Rooms {
		r := &w.snap.Rooms[i]
		if w.data != nil {
			seen[r.ID] = true
		}
		if !w.q.filter.MatchRoom(r.ID) {
			continue
		}
		if err := w.joined(tx, &join, r); err != nil {
			return err
		}
	}
	// Rooms in which nothing happened but a change of account data.
	for id := range w.data {
		if !seen[id] && w.q.filter.MatchRoom(id) && w.s.Hub.Joined(w.q.user, id) {
			r := hub.RoomState{ID: id}
			if err := w.joined(tx, &join, &r); err != nil {
				return err
			}
		}
	}
	if err := w.notJoined(tx, &others); err != nil {
		return err
	}
	if join.count+others[0].count+others[1].count+others[2].count == 0 {
		return nil
	}
	w.some = true
	*out = append(*out, `,"rooms":{`...)
	first := true
	for _, s := range []*section{&join, &others[0], &others[1], &others[2]} {
		if s.count == 0 {
			continue
		}
		if !first {
			*out = append(*out, ',')
		}
		first = false
		*out = append(append(append(*out, '"'), s.name...), `":{`...)
		*out = append(append(*out, s.b...), '}')
		bodies.Put(&s.b)
	}
	*out = append(*out, '}')
	return nil
}

// joined writes one joined room, if there is anything to tell of it.
func (w *work) joined(tx *sqldb.Tx, sec *section, r *hub.RoomState) error {
	q := w.q
	fresh := w.fresh(r)
	mark, count := len(sec.b), sec.count
	sec.add(r.ID)
	open := len(sec.b)
	sec.b = append(sec.b, '{')
	some := false
	if fresh || q.full || r.LastEvent > q.since.Pos {
		piece, err := w.events(tx, r, fresh)
		if err != nil {
			return err
		}
		sec.b = append(sec.b, piece...)
		some = len(piece) > 0
	}
	if fresh || r.LastEvent > q.since.Pos || r.LastReceipt > q.since.Pos {
		var err error
		if sec.b, err = w.appendUnread(sec.b, r.ID); err != nil {
			return err
		}
	}
	if eph := w.ephemeral(r, fresh); len(eph) > 0 || fresh {
		some = true
		sec.b = append(w.comma(sec.b), `"ephemeral":`...)
		sec.b = appendEvents(sec.b, eph)
	}
	if list := w.roomData(tx, r.ID, fresh); len(list) > 0 || fresh {
		some = true
		sec.b = append(w.comma(sec.b), `"account_data":`...)
		sec.b = appendEvents(sec.b, list)
	}
	if !some && !fresh && !q.full {
		if open > 0 && count == 0 {
			sec.b = sec.b[:0]
		} else {
			sec.b = sec.b[:mark]
		}
		sec.count = count
		return nil
	}
	sec.b = append(sec.b, '}')
	return nil
}

func (w *work) comma(b []byte) []byte {
	if b[len(b)-1] != '{' {
		return append(b, ',')
	}
	return b
}

// appendUnread writes the counts; those of the main timeline and all threads
// together unless the client asked for threads.
func (w *work) appendUnread(b []byte, id matrix.RoomID) ([]byte, error) {
	f := w.facts[id]
	if f == nil {
		return b, nil
	}
	u := f.unread
	c := u.Main
	threads := w.q.filter.Timeline() != nil && w.q.filter.Timeline().UnreadThreads
	if !threads {
		c = u.Total()
	}
	b = append(w.comma(b), `"unread_notifications":{"highlight_count":`...)
	b = appendInt(b, c.Highlight)
	b = append(b, `,"notification_count":`...)
	b = appendInt(b, c.Notify)
	b = append(b, '}')
	if threads && len(u.Threads) > 0 {
		j, err := json.Marshal(u.Threads)
		if err != nil {
			return b, err
		}
		b = append(append(b, `,"unread_thread_notifications":`...), j...)
	}
	return b, nil
}

func (w *work) ephemeral(r *hub.RoomState, fresh bool) [][]byte {
	filter, f := w.q.filter.Ephemeral(), w.facts[r.ID]
	var list [][]byte
	if f == nil || filter.MatchesNothing() || !filter.MatchRoom(r.ID) {
		return nil
	}
	from, eph := w.q.since.Pos, w.q.since.Eph
	if fresh {
		from, eph = 0, 0
	}
	if (fresh || r.LastReceipt > from) && filter.MatchType("m.receipt") {
		for _, c := range f.receipts {
			list = append(list, PlainEvent("m.receipt", c))
		}
	}
	if (fresh || r.Typing > eph) && filter.MatchType("m.typing") {
		if c := w.s.Typing.Since(r.ID, eph); c != nil {
			list = append(list, PlainEvent("m.typing", c))
		}
	}
	return list
}

func (w *work) roomData(tx *sqldb.Tx, id matrix.RoomID, fresh bool) [][]byte {
	entries := w.data[id]
	if fresh && !w.q.initial && tx != nil { // a room joined anew: all that the user keeps for it
		if _, all, err := w.s.Data.All(w.ctx, tx, w.q.user); err == nil {
			entries = all[id]
		}
	}
	f := w.q.filter.RoomAccountData()
	var list [][]byte
	for _, e := range entries {
		if f.Match(e.Type, w.q.user) && f.MatchRoom(id) {
			list = append(list, PlainEvent(e.Type, e.Content))
		}
	}
	return list
}

// notJoined writes invitations, knocks and rooms left.
func (w *work) notJoined(tx *sqldb.Tx, out *[3]section) error {
	q := w.q
	if tx == nil || !q.initial && q.since.Pos >= w.snap.Start && w.snap.Member <= q.since.Pos {
		return nil
	}
	var list []standing
	var err error
	if q.initial {
		list, err = w.s.Rooms.Memberships(tx, q.user)
	} else {
		list, err = w.s.Rooms.MembershipsSince(tx, q.user, q.since.Pos, w.to)
	}
	if err != nil {
		return err
	}
	for _, m := range list {
		if !q.filter.MatchRoom(m.Room) || m.Pos > w.to {
			continue
		}
		switch m.Membership {
		case "invite":
			blocked := w.s.InviteBlocked != nil && w.s.InviteBlocked(m.Sender, q.user)
			if !blocked && !q.ignored.Has(m.Sender) {
				out[0].stripped(m, "invite_state")
			}
		case "knock":
			out[1].stripped(m, "knock_state")
		case "leave", "ban":
			own := m.Membership == "leave" && (m.Sender == q.user || !m.WasJoined)
			if q.initial && (m.Forgotten || own && !q.filter.IncludeLeave()) {
				continue // who was sent away hears of it in any case
			}
			if err := w.left(tx, &out[2], m); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *section) stripped(m standing, field string) {
	s.add(m.Room)
	st := m.Stripped
	if len(st) == 0 {
		st = []byte("[]")
	}
	s.b = append(append(append(s.b, `{"`...), field...), `":{"events":`...)
	s.b = append(append(s.b, st...), `}}`...)
}

// left writes a room that the user has left: its history up to then.
func (w *work) left(tx *sqldb.Tx, sec *section, m standing) error {
	from := w.q.since.Pos
	if w.q.initial {
		from = 0
	}
	if !m.WasJoined { // an invitation that was declined or taken back
		e, err := w.s.Events.Get(tx, m.Event)
		if err != nil || e == nil {
			return err
		}
		sec.add(m.Room)
		sec.b = append(sec.b, `{"state":{"events":[]},"timeline":{"limited":false,"prev_batch":"`...)
		sec.b = append(sec.b, Token{Pos: m.Pos - 1}.String()...)
		sec.b = append(sec.b, `","events":[`...)
		sec.b = w.appendEvent(sec.b, e)
		sec.b = append(sec.b, `]}}`...)
		return nil
	}
	t, err := w.timeline(tx, m.Room, from, m.Pos, true)
	if err != nil {
		return err
	}
	sec.add(m.Room)
	sec.b = append(sec.b, '{')
	if err := w.stateOf(tx, t, m.Room, from, m.Pos, w.q.initial || w.q.full); err != nil {
		return err
	}
	sec.b = w.appendTimeline(sec.b, t)
	sec.b = append(sec.b, '}')
	return nil
}

// timeline is the part of a room's history that an answer holds.
type timeline struct {
	list    []*events.Event
	limited bool
	start   stream.Pos // before the first event
	state   []*events.Event
	after   string // the name of the state after the timeline, "" if state is that before it
	forked  bool   // state resolution may have changed the state
	hides   bool   // a state event is left out that the user may not see, or does not want there
}

// cut sets the start of a timeline that does not reach back to where the client
// was; one without events starts at its end.
func (t *timeline) cut(to stream.Pos) {
	switch {
	case !t.limited:
	case len(t.list) == 0:
		t.start = to
	default:
		t.start = t.list[0].Pos - 1
	}
}

// timeline reads the newest events in (from, to] that the user may and wants to
// see. check asks for history visibility to be looked at.
func (w *work) timeline(tx *sqldb.Tx, id matrix.RoomID, from, to stream.Pos, check bool) (*timeline, error) {
	f := w.q.filter.Timeline()
	limit := f.Limit(defaultLimit, maxLimit)
	t := &timeline{start: from}
	w.sight = nil
	if check {
		sight, err := w.s.Rooms.Sight(tx, w.q.user, id)
		if err != nil {
			return nil, err
		}
		w.sight = sight
	}
	var err error
	t.list, t.limited, err = w.s.Newest(tx, id, from, to, limit, func(e *events.Event) bool {
		yes := (w.sight == nil || w.sight.Sees(w.q.user, e)) && w.wanted(e)
		t.hides = t.hides || !yes && e.StateKey != nil
		return yes
	})
	if err != nil {
		return nil, err
	}
	t.cut(to)
	if w.s.Bundler != nil && len(t.list) > 0 {
		if w.bundles, err = w.s.Bundler.Bundle(w.ctx, tx, w.q.user, t.list); err != nil {
			return nil, err
		}
	}
	if err := w.s.Events.Complete(tx, t.list); err != nil {
		return nil, err
	}
	w.erased, err = w.s.Rooms.Erased(tx, w.q.user, t.list)
	return t, err
}

// Newest reads the newest events of a room in (from, to] that are wanted, the
// oldest first and at most limit, and whether there are more. It looks at
// mostScanned events at most: a filter, or what the reader may see, can turn all
// of them away. Without a lower bound there are more, unless the list begins with
// the room.
func (s *Sync) Newest(tx *sqldb.Tx, id matrix.RoomID, from, to stream.Pos, limit int, wanted func(*events.Event) bool) (list []*events.Event, limited bool, err error) {
	scanned, size := 0, limit+1
	for at := to; len(list) <= limit; size = max(limit+1, 100) {
		if scanned >= mostScanned {
			limited = true
			break
		}
		page, err := s.Events.Timeline(tx, id, from, at, size, false)
		if err != nil {
			return nil, false, err
		}
		scanned += len(page)
		if len(page) > 0 {
			at = page[len(page)-1].Pos - 1
		}
		for _, e := range page {
			if wanted(e) {
				list = append(list, e)
			}
		}
		if len(page) < size {
			break
		}
	}
	if len(list) > limit {
		list, limited = list[:limit], true
	}
	slices.Reverse(list)
	if from == 0 && (len(list) == 0 || list[0].Type != "m.room.create") {
		limited = true // there is more, though this reader may not see it
	}
	return list, limited, nil
}

// wanted applies the filter and the list of ignored users.
func (w *work) wanted(e *events.Event) bool {
	if e.Hidden() || e.StateKey == nil && w.q.ignored.Has(e.Sender) {
		return false
	}
	f := w.q.filter.Timeline()
	if f.MatchesAll() {
		return true
	}
	return f.MatchEvent(e.Room, e.Type, e.Sender, contentFor(f, e))
}

// hides reports whether the filter leaves state events out of the timeline.
func (w *work) hides(list []*events.Event) bool {
	return !w.q.filter.Timeline().MatchesAll() && slices.ContainsFunc(list, func(e *events.Event) bool {
		return e.StateKey != nil && !w.wanted(e)
	})
}

func contentFor(f interface{ NeedsContent() bool }, e *events.Event) []byte {
	if f.NeedsContent() {
		return e.Content()
	}
	return nil
}

// events writes timeline, state and summary of a joined room, without braces.
func (w *work) events(tx *sqldb.Tx, r *hub.RoomState, fresh bool) ([]byte, error) {
	q := w.q
	if !fresh && !q.full {
		if f := w.facts[r.ID]; f != nil && f.at {
			return w.recent(tx, r, f)
		}
	}
	from := q.since.Pos
	if fresh {
		from = 0
	}
	t, err := w.timeline(tx, r.ID, from, w.to, fresh)
	if err != nil {
		return nil, err
	}
	t.forked = r.LastState > from // whether it has is not known here
	if err := w.stateOf(tx, t, r.ID, from, w.to, fresh || q.full); err != nil {
		return nil, err
	}
	sticky, err := w.sticky(tx, r.ID, from, t, nil)
	if err != nil {
		return nil, err
	}
	if !fresh && !q.full && len(t.list) == 0 && len(t.state) == 0 && len(sticky) == 0 {
		return nil, nil
	}
	b := w.appendSticky(w.appendTimeline(nil, t), sticky)
	return w.appendSummary(tx, b, r.ID, fresh || q.full || r.LastState > from)
}

// recent writes a room whose new events are all at hand.
func (w *work) recent(tx *sqldb.Tx, r *hub.RoomState, f *facts) ([]byte, error) {
	if f.piece != nil && !f.mine {
		return f.piece.b, nil
	}
	b, err := w.encodeRecent(tx, r, f)
	if err == nil && f.mine {
		w.s.shared.finish(w.sharedKey(r.ID), f.piece, b, true)
		f.mine = false
	}
	return b, err
}

func (w *work) encodeRecent(tx *sqldb.Tx, r *hub.RoomState, f *facts) ([]byte, error) {
	list := f.recent
	w.sight, w.bundles, w.erased = nil, nil, nil
	limit := w.q.filter.Timeline().Limit(defaultLimit, maxLimit)
	t := &timeline{start: w.q.since.Pos, hides: w.hides(list)}
	members := false
	for _, e := range list {
		if e.Type == "m.room.member" {
			members = true
		}
		t.forked = t.forked || e.Resolved != nil
		if e.Gap() {
			t.list, t.limited = t.list[:0], true
		}
		if w.wanted(e) {
			t.list = append(t.list, e)
		}
	}
	if len(t.list) > limit {
		t.list, t.limited = t.list[len(t.list)-limit:], true
	}
	t.cut(w.to)
	switch {
	case f.have:
		t.after, t.state = w.q.stateAfter, f.members
	case tx != nil:
		if err := w.stateOf(tx, t, r.ID, w.q.since.Pos, w.to, false); err != nil {
			return nil, err
		}
		if f.lean && len(w.erased) == 0 {
			w.s.speakers.keep(r, t.state)
		}
	}
	sticky, err := w.sticky(tx, r.ID, w.q.since.Pos, t, list)
	if err != nil {
		return nil, err
	}
	if len(t.list) == 0 && len(t.state) == 0 && len(sticky) == 0 {
		return nil, nil
	}
	return w.appendSummary(tx, w.appendSticky(w.appendTimeline(nil, t), sticky), r.ID, members)
}

func (w *work) appendTimeline(b []byte, t *timeline) []byte {
	if len(b) > 0 && b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = append(b, '"')
	b = append(b, cmp.Or(t.after, "state")...)
	b = append(b, `":{"events":[`...)
	for i, e := range t.state {
		if i > 0 {
			b = append(b, ',')
		}
		b = w.appendEvent(b, e)
	}
	b = append(b, `]},"timeline":{"events":[`...)
	for i, e := range t.list {
		if i > 0 {
			b = append(b, ',')
		}
		b = w.appendEvent(b, e)
	}
	b = append(b, `],"limited":`...)
	b = strconv.AppendBool(b, t.limited)
	start := t.start
	if len(t.list) > 0 {
		start = t.list[0].Pos - 1
	}
	b = append(b, `,"prev_batch":"`...)
	b = append(b, Token{Pos: max(start, 0)}.String()...)
	return append(b, `"}`...)
}
