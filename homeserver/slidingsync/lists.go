package slidingsync

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// entry is a room of the user's, as the lists see it.
type entry struct {
	id         matrix.RoomID
	membership string
	active     stream.Pos     // newest event, or change of membership where he is not joined
	room       *hub.RoomState // joined
	member     *rooms.Member  // not joined
	st         *sent          // what the client knows

	// What the rules that it matches ask for; there are none if config.want is nil.
	matched    bool
	listed     bool // a list is of it, whatever its window
	limit      int
	wants      []*want
	lists      []string
	subscribed bool

	unread      push.Count
	members     rooms.Members
	receipts    [][]byte            // contents for a client that was told of the others
	allReceipts []*receipts.Receipt // for one that was not

	shown map[matrix.EventID]bool // events in the answer, where the room is new to the client
}

func (e *entry) joined() bool { return e.membership == "join" }

// fresh reports whether the client has yet to hear of the room in this form.
func (e *entry) fresh() bool {
	if e.st == nil {
		return true
	}
	if e.joined() {
		return e.st.membership != "join" || e.room.Joined > e.st.upTo
	}
	return e.membership != "leave" && e.membership != "ban" && e.st.membership != e.membership
}

// told reports whether the client knows all of a room that the user is not joined to.
func (e *entry) told() bool {
	return e.st != nil && e.st.membership == e.member.Membership && e.member.Pos <= e.st.upTo
}

func (e *entry) match(c config, list string) {
	e.matched = true
	e.limit = max(e.limit, c.limit)
	if !slices.ContainsFunc(e.wants, func(w *want) bool { return w.text == c.want.text }) {
		e.wants = append(e.wants, c.want)
	}
	if list == "" {
		e.subscribed = true
	} else {
		e.lists = append(e.lists, list)
	}
}

// personal is what of a user's account data the lists need.
type personal struct {
	upTo    stream.Pos
	directs map[matrix.RoomID]bool
	tags    map[matrix.RoomID][]string
	changed map[matrix.RoomID]stream.Pos // newest account data of each room
}

// survey finds the rooms that the request matches.
func (w *work) survey(tx *sqldb.Tx) error {
	w.entries, w.wanted = nil, nil
	if len(w.q.lists) == 0 && len(w.q.subs) == 0 {
		return nil
	}
	if err := w.refreshStandings(tx); err != nil {
		return err
	}
	if err := w.refreshPersonal(tx); err != nil {
		return err
	}
	all := w.allEntries()
	for _, l := range w.q.lists {
		if err := w.window(tx, l, all); err != nil {
			return err
		}
	}
	for _, e := range all {
		if e.matched {
			w.wanted = append(w.wanted, e)
		}
	}
	w.concerned = w.concerned[:0]
	if w.q.ext.sticky != nil {
		for _, e := range all {
			if _, named := w.q.subs[e.id]; e.joined() && (named || e.listed) {
				w.concerned = append(w.concerned, e)
			}
		}
	}
	for id, c := range w.q.subs {
		if e := w.entries[id]; e != nil {
			if !e.matched {
				w.wanted = append(w.wanted, e)
			}
			e.match(c, "")
		}
	}
	return nil
}

// refreshStandings reads which rooms the user was invited to, knocked on or left.
func (w *work) refreshStandings(tx *sqldb.Tx) error {
	c := w.c
	if w.snap.Last[stream.KindForgotten] > c.standAt {
		c.standings = nil // rare, and the rows carry the time of leaving
	}
	if c.standings != nil && w.snap.Member <= c.standAt {
		return nil
	}
	if tx == nil {
		return errNeedsDB
	}
	var list []rooms.Member
	var err error
	if c.standings == nil {
		list, err = w.s.Rooms.Memberships(tx, w.q.user)
	} else {
		list, err = w.s.Rooms.MembershipsSince(tx, w.q.user, c.standAt, w.to)
	}
	if err != nil {
		return err
	}
	if c.standings == nil {
		c.standings = map[matrix.RoomID]*rooms.Member{}
	}
	for i := range list {
		if m := &list[i]; m.Membership == "join" {
			delete(c.standings, m.Room)
		} else {
			c.standings[m.Room] = m
		}
	}
	c.standAt = w.to
	return nil
}

// refreshPersonal reads tags and direct rooms.
func (w *work) refreshPersonal(tx *sqldb.Tx) error {
	p := w.c.personal
	if p != nil && w.snap.Last[stream.KindAccountData] <= p.upTo {
		return nil
	}
	if tx == nil {
		return errNeedsDB
	}
	var (
		global  []accountdata.Entry
		byRooms map[matrix.RoomID][]accountdata.Entry
		err     error
	)
	if p == nil {
		p = &personal{tags: map[matrix.RoomID][]string{}, changed: map[matrix.RoomID]stream.Pos{}}
		global, byRooms, err = w.s.Data.All(w.ctx, tx, w.q.user)
	} else {
		global, byRooms, err = w.s.Data.Since(w.ctx, tx, w.q.user, p.upTo, w.to)
	}
	if err != nil {
		return err
	}
	for _, e := range global {
		if e.Type == accountdata.TypeDirect {
			p.directs = directs(e.Content)
		}
	}
	for id, list := range byRooms {
		for _, e := range list {
			p.changed[id] = max(p.changed[id], e.Pos)
			if e.Type == accountdata.TypeTag {
				p.tags[id] = tags(e.Content)
			}
		}
	}
	p.upTo = w.to
	w.c.personal = p
	return nil
}

// directs reads m.direct, where a user may have put anything.
func directs(content json.RawMessage) map[matrix.RoomID]bool {
	out := map[matrix.RoomID]bool{}
	gjson.ParseBytes(content).ForEach(func(_, list gjson.Result) bool {
		if list.IsArray() {
			for _, id := range list.Array() {
				out[matrix.RoomID(id.Str)] = true
			}
		}
		return true
	})
	return out
}

func tags(content json.RawMessage) (out []string) {
	gjson.GetBytes(content, "tags").ForEach(func(tag, _ gjson.Result) bool {
		out = append(out, tag.Str)
		return true
	})
	return out
}

// allEntries lists the user's rooms, the most active first: those that he is
// joined to, invited to or knocks on, those that he was taken out of, and those
// that he left while the client knew of them. Others that he has left are found in
// entries: a client may ask for them by name.
func (w *work) allEntries() []*entry {
	joined := make([]entry, len(w.snap.Rooms)) // in one piece: there may be many
	all := make([]*entry, 0, len(joined)+4)
	for i := range w.snap.Rooms {
		r := &w.snap.Rooms[i]
		joined[i] = entry{id: r.ID, membership: "join", active: r.LastEvent, room: r, st: w.base.sent[r.ID]}
		all = append(all, &joined[i])
	}
	var left []*entry
	for id, m := range w.c.standings {
		e := entry{id: id, membership: m.Membership, active: m.Pos, member: m, st: w.base.sent[id]}
		if m.Pos > w.to || m.Forgotten && (e.st == nil || e.told()) { // the client must hear that he left
			continue
		}
		if w.shows(&e) {
			all = append(all, &e)
		} else if _, ok := w.q.subs[id]; ok && m.WasJoined {
			left = append(left, &e)
		}
	}
	w.entries = nil
	if len(w.q.subs) > 0 || slices.ContainsFunc(w.q.lists, func(l *roomList) bool { return l.filters != nil && l.filters.Spaces != nil }) {
		w.entries = make(map[matrix.RoomID]*entry, len(all))
		for _, e := range slices.Concat(left, all) {
			w.entries[e.id] = e
		}
	}
	slices.SortFunc(all, func(a, b *entry) int {
		if a.active != b.active {
			return cmp.Compare(b.active, a.active)
		}
		return cmp.Compare(a.id, b.id)
	})
	return all
}

// shows reports whether a room that the user is not joined to belongs in the list.
func (w *work) shows(e *entry) bool {
	m := e.member
	switch m.Membership {
	case "invite":
		if w.s.InviteBlocked != nil && w.s.InviteBlocked(m.Sender, w.q.user) {
			return false
		}
		return !w.q.ignored.Has(m.Sender)
	case "knock":
		return true
	case "leave", "ban":
		return e.st != nil || m.WasJoined && m.Sender != w.q.user
	}
	return false
}

// window picks the rooms of a list.
func (w *work) window(tx *sqldb.Tx, l *roomList, all []*entry) error {
	l.count = 0
	if l.filters != nil && l.filters.bySort() {
		if err := w.sortFaces(tx, all); err != nil {
			return err
		}
	}
	for _, e := range all {
		ok, err := w.passes(tx, l.filters, e)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		i := l.count
		l.count++
		e.listed = true
		if l.ranges == nil || slices.ContainsFunc(l.ranges, func(r [2]int) bool { return r[0] <= i && i <= r[1] }) {
			e.match(l.config, l.name)
		}
	}
	return nil
}

// passes applies a list's filters to a room.
func (w *work) passes(tx *sqldb.Tx, f *filters, e *entry) (bool, error) {
	if f == nil {
		return true, nil
	}
	is := func(want *bool, have bool) bool { return want == nil || *want == have }
	tagged := func(list []string) bool {
		return slices.ContainsFunc(w.c.personal.tags[e.id], func(t string) bool { return slices.Contains(list, t) })
	}
	invited := e.membership == "invite"
	if !is(f.DM, w.c.personal.directs[e.id]) || !is(f.Invite, invited) || !is(f.Invited, invited) ||
		f.Tags != nil && !tagged(f.Tags) || tagged(f.NotTags) {
		return false, nil
	}
	if f.Spaces != nil {
		if ok, err := w.inSpace(tx, f.Spaces, e.id); !ok || err != nil {
			return false, err
		}
	}
	if !f.bySort() && f.Name == "" {
		return true, nil
	}
	look := w.sort
	if f.Name != "" {
		look = w.face
	}
	face, err := look(tx, e)
	if err != nil {
		return false, err
	}
	listed := func(list []*string) bool {
		return slices.ContainsFunc(list, func(t *string) bool {
			return t == nil && face.kind == "" || t != nil && *t == face.kind
		})
	}
	if f.Name != "" && !strings.Contains(strings.ToLower(face.name), strings.ToLower(f.Name)) {
		return false, nil
	}
	return is(f.Encrypted, face.encrypted) && (f.RoomTypes == nil || listed(f.RoomTypes)) && !listed(f.NotRoomTypes), nil
}

// bySort reports whether kind or encryption of a room matter.
func (f *filters) bySort() bool {
	return f.Encrypted != nil || f.RoomTypes != nil || f.NotRoomTypes != nil
}

// inSpace reports whether a room is directly in one of the spaces that the user is
// joined to.
func (w *work) inSpace(tx *sqldb.Tx, spaces []string, id matrix.RoomID) (bool, error) {
	for _, s := range spaces {
		e := w.entries[matrix.RoomID(s)]
		if e == nil || !e.joined() {
			continue
		}
		f, err := w.face(tx, e)
		if err != nil {
			return false, err
		}
		if f.children[id] {
			return true, nil
		}
	}
	return false, nil
}

// gather asks other features for what they know of the rooms. It is done outside
// a transaction: a feature may have to read the database, and who holds a
// connection must not wait for a second one.
func (w *work) gather() error {
	if err := w.gatherMembers(); err != nil {
		return err
	}
	for _, e := range w.wanted {
		if !e.joined() {
			continue
		}
		fresh := e.fresh()
		var err error
		if fresh || e.room.LastEvent > e.st.upTo || e.room.LastReceipt > e.st.upTo {
			u, err := w.s.Push.Counts(w.ctx, e.id, w.q.user)
			if err != nil {
				return err
			}
			e.unread = u.Main
			if w.q.unstable {
				e.unread = u.Total()
			}
		} else {
			e.unread = e.st.unread
		}
		if err = w.gatherReceipts(e); err != nil {
			return err
		}
	}
	return nil
}

// gatherMembers counts the members of rooms that are new to the client or changed.
func (w *work) gatherMembers() error {
	var list []matrix.RoomID
	for _, e := range w.wanted {
		if e.joined() && (e.fresh() || e.room.LastState > e.st.upTo) {
			list = append(list, e.id)
		}
	}
	if len(list) == 0 {
		return nil
	}
	counts, err := w.s.Rooms.Members(w.ctx, list)
	if err != nil {
		return err
	}
	for _, e := range w.wanted {
		e.members = counts[e.id]
	}
	return nil
}

func (w *work) gatherReceipts(e *entry) (err error) {
	from := e.receiptsFrom()
	switch {
	case w.q.ext.receipts == nil || !w.q.ext.receipts.concerns(e) || e.room.LastReceipt <= from:
	case from == 0:
		e.allReceipts, err = w.s.Receipts.Since(w.ctx, w.q.user, e.id, 0, w.to)
	default:
		e.receipts, err = w.s.Receipts.Content(w.ctx, w.q.user, e.id, from, w.to)
	}
	return err
}
