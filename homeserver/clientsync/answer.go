package clientsync

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// work is an answer being made.
type work struct {
	s    *Sync
	q    *request
	ctx  context.Context //nolint:containedctx // lives as long as the request
	snap hub.Snapshot
	to   stream.Pos
	eph  int64

	b    []byte
	some bool // something happened

	data  map[matrix.RoomID][]accountdata.Entry
	facts map[matrix.RoomID]*facts

	bundles map[matrix.EventID]json.RawMessage // of the timeline being written
	erased  map[matrix.EventID]*events.Event   // what of it is redacted for this reader

	sight *rooms.Sight    // of the timeline being written; nil: the reader was in the room all the time
	met   []matrix.UserID // whom the user shares a room with since the token

	claimed int // shared encodings that this work makes
}

var snapshots = sync.Pool{New: func() any { return &hub.Snapshot{} }}

// answer makes the body of an answer; some says whether anything happened.
func (s *Sync) answer(ctx context.Context, q *request) (body []byte, some bool, err error) {
	w := &work{s: s, q: q, ctx: ctx, eph: s.Hub.Ephemeral()}
	snap := snapshots.Get().(*hub.Snapshot)
	defer snapshots.Put(snap)
	since, eph := q.since.Pos, q.since.Eph
	if q.initial || q.full {
		since, eph = -1, -1
	}
	s.Hub.Snapshot(q.user, since, eph, snap)
	w.snap, w.to = *snap, snap.Head
	token := Token{Pos: w.to, Eph: w.eph, ToDevice: w.to}
	if !q.initial && !q.full && w.quiet() {
		q.since = token
		return nil, false, nil
	}
	token, err = w.make(token)
	*snap = w.snap // its slice may have grown
	if err == nil && !w.some {
		q.since = token // nothing up to there concerns this client
	}
	return w.b, w.some, err
}

// quiet reports, from memory alone, that nothing can have happened.
func (w *work) quiet() bool {
	from := w.q.since.Pos
	if len(w.snap.Rooms) > 0 || from < w.snap.Start || w.snap.Member > from || w.snap.Presence > w.q.since.Eph {
		return false
	}
	for _, last := range w.snap.Last {
		if last > from {
			return false
		}
	}
	return w.q.device == "" || !w.s.Keys.HasToDevice(w.q.user, w.q.device, w.q.since.ToDevice)
}

// changed reports whether a kind may have changed for the user since the token.
func (w *work) changed(k stream.Kind) bool {
	return w.q.initial || w.q.since.Pos < w.snap.Start || w.snap.Last[k] > w.q.since.Pos
}

// make writes the answer and returns its token.
func (w *work) make(token Token) (Token, error) {
	w.b = append(buffer(), `{"next_batch":"`...)
	mark := len(w.b) // the token is put in at the end
	var tail []byte
	defer w.release()
	if err := w.gather(); err != nil {
		return token, err
	}
	if w.needsDB() {
		err := w.s.DB.Read(w.ctx, func(tx *sqldb.Tx) error {
			w.b, tail, w.some = w.b[:mark], buffer(), false
			return w.sections(tx, &tail, &token)
		})
		if err != nil {
			return token, err
		}
	} else {
		tail = buffer()
		if err := w.sections(nil, &tail, &token); err != nil {
			return token, err
		}
	}
	w.b = append(w.b, token.String()...)
	w.b = append(w.b, '"')
	w.b = w.s.AppendKeyCounts(w.b, w.q.user, w.q.device)
	w.b = append(w.b, tail...)
	w.b = append(w.b, '}')
	bodies.Put(&tail)
	return token, nil
}

// facts are what other features know of a room. They are asked for before the
// answer's own snapshot is opened: a feature may have to read the database, and
// who holds a connection must not wait for a second one.
type facts struct {
	unread   push.Unread
	receipts [][]byte
	summary  rooms.Summary
	recent   []*events.Event // new events, where all of them are at hand
	at       bool            // recent is complete
	piece    *shared         // the encoding of recent that serves others too
	mine     bool            // this work makes it
	lean     bool            // the state that goes with recent is the members who sent it,
	members  []*events.Event // these,
	have     bool            // which are at hand
}

func (w *work) gather() error {
	w.facts = make(map[matrix.RoomID]*facts, len(w.snap.Rooms))
	for i := range w.snap.Rooms {
		r := &w.snap.Rooms[i]
		if !w.q.filter.MatchRoom(r.ID) {
			continue
		}
		f := facts{}
		w.facts[r.ID] = &f
		var err error
		from := w.q.since.Pos
		fresh := w.fresh(r)
		if fresh {
			from = 0
		}
		if fresh || r.LastEvent > from || r.LastReceipt > from {
			if f.unread, err = w.s.Push.Counts(w.ctx, r.ID, w.q.user); err != nil {
				return err
			}
		}
		if fresh || r.LastReceipt > from {
			if f.receipts, err = w.s.Receipts.Content(w.ctx, w.q.user, r.ID, from, w.to); err != nil {
				return err
			}
		}
		if fresh || w.q.full || r.LastState > from {
			if f.summary, err = w.s.Rooms.Summary(w.ctx, r.ID); err != nil {
				return err
			}
		}
		if !fresh && !w.q.full && r.LastEvent > from {
			f.recent, f.at = w.s.Hub.Recent(r.ID, from, w.to)
			if f.at && w.shareable(&f) {
				if err := w.claim(r.ID, &f); err != nil {
					return err
				}
			}
			if f.lean = f.at && (f.piece == nil || f.mine) && w.lean(r, f.recent); f.lean {
				f.members, f.have = w.s.speakers.of(r, f.recent)
			}
		}
	}
	return nil
}

// shareable reports whether the encoding of a room's new events is the same for
// everybody.
func (w *work) shareable(f *facts) bool {
	if len(w.q.ignored) > 0 {
		return false
	}
	for _, e := range f.recent {
		if e.SentBy(w.q.user) || e.Type == "m.room.member" && !f.summary.Named {
			return false // a transaction ID, or heroes that leave the reader out
		}
	}
	return true
}

// claim finds the shared encoding, waits for whoever is making it, or takes it
// upon itself. Who makes one waits for no other, so that nobody waits in a
// circle.
func (w *work) claim(id matrix.RoomID, f *facts) error {
	piece, mine := w.s.shared.claim(w.sharedKey(id), w.claimed == 0)
	switch {
	case piece == nil:
	case mine:
		f.piece, f.mine = piece, true
		w.claimed++
	default:
		select {
		case <-piece.done:
		case <-w.ctx.Done():
			return w.ctx.Err()
		}
		if piece.ok {
			f.piece = piece
		}
	}
	return nil
}

// release lets go of claims that were not made good.
func (w *work) release() {
	for id, f := range w.facts {
		if f.mine {
			w.s.shared.finish(w.sharedKey(id), f.piece, nil, false)
		}
	}
}

// fresh reports whether the client has yet to hear of a room.
func (w *work) fresh(r *hub.RoomState) bool { return w.q.initial || r.Joined > w.q.since.Pos }

// needsDB reports whether anything beside rooms whose events are at hand must be
// looked at.
func (w *work) needsDB() bool {
	q := w.q
	if q.initial || q.full || q.since.Pos < w.snap.Start || w.snap.Member > q.since.Pos {
		return true
	}
	if w.changed(stream.KindAccountData) || w.changed(stream.KindDeviceList) {
		return true
	}
	if q.device != "" && w.s.Keys.HasToDevice(q.user, q.device, q.since.ToDevice) {
		return true
	}
	for i := range w.snap.Rooms {
		r := &w.snap.Rooms[i]
		if r.Joined > q.since.Pos {
			return true
		}
		f := w.facts[r.ID]
		if f == nil || r.LastEvent <= q.since.Pos || f.piece != nil && !f.mine {
			continue
		}
		if !f.at || len(f.recent) > q.filter.Timeline().Limit(defaultLimit, maxLimit) || q.stateAfter != "" && r.LastState > q.since.Pos ||
			q.filter.LazyMembers() && !f.have || w.hides(f.recent) || slices.ContainsFunc(f.recent, func(e *events.Event) bool { return e.Gap() || e.Resolved != nil }) {
			return true
		}
	}
	return false
}

// sections writes everything after the token. tx is nil when all is at hand.
func (w *work) sections(tx *sqldb.Tx, out *[]byte, token *Token) error {
	if err := w.accountData(tx, out); err != nil {
		return err
	}
	if err := w.rooms(tx, out); err != nil {
		return err
	}
	if err := w.toDevice(tx, out, token); err != nil {
		return err
	}
	if err := w.deviceLists(tx, out); err != nil {
		return err
	}
	w.presence(out)
	return nil
}

func (w *work) accountData(tx *sqldb.Tx, out *[]byte) error {
	w.data = nil
	if !w.changed(stream.KindAccountData) {
		return nil
	}
	var global []accountdata.Entry
	var err error
	if w.q.initial {
		global, w.data, err = w.s.Data.All(w.ctx, tx, w.q.user)
	} else {
		global, w.data, err = w.s.Data.Since(w.ctx, tx, w.q.user, w.q.since.Pos, w.to)
	}
	if err != nil {
		return err
	}
	rules := w.s.Push.RulesSince(w.q.user, w.q.since.Pos, w.to)
	if w.q.initial {
		rules = w.s.Push.Rules(w.q.user)
	}
	if rules != nil {
		global = append(global, accountdata.Entry{Type: accountdata.TypePushRules, Content: rules})
	}
	f := w.q.filter.GlobalAccountData()
	list := make([][]byte, 0, len(global))
	for _, e := range global {
		if f.Match(e.Type, w.q.user) {
			list = append(list, PlainEvent(e.Type, e.Content))
		}
	}
	if len(list) > 0 {
		w.some = true
		*out = append(*out, `,"account_data":`...)
		*out = appendEvents(*out, list)
	}
	return nil
}

// PlainEvent is an event of nothing but type and content.
func PlainEvent(typ string, content []byte) []byte {
	b := make([]byte, 0, len(typ)+len(content)+24)
	b = append(append(b, `{"content":`...), content...)
	b = append(b, `,"type":`...)
	return append(matrix.AppendJSONString(b, typ), '}')
}

func appendEvents(dst []byte, list [][]byte) []byte {
	dst = append(dst, `{"events":[`...)
	for i, e := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, e...)
	}
	return append(dst, `]}`...)
}

func (w *work) appendEvent(b []byte, e *events.Event) []byte {
	if redacted := w.erased[e.ID]; redacted != nil {
		e = redacted
	}
	f := events.ClientFormat{User: w.q.user, Device: w.q.device, NoRoomID: true, Now: w.s.Now(), Relations: w.bundles[e.ID], ReaderMembership: "join"}
	if w.sight != nil {
		f.ReaderMembership = w.sight.Membership(e.Pos)
	}
	switch {
	case w.q.filter.Federation():
		return append(b, e.JSON...)
	case w.q.filter.HasFields():
		return append(b, w.q.filter.Project(e.AppendClient(nil, f))...)
	}
	return e.AppendClient(b, f)
}

func (w *work) toDevice(tx *sqldb.Tx, out *[]byte, token *Token) error {
	q := w.q
	if q.device == "" || tx == nil {
		return nil
	}
	msgs, upTo, err := w.s.Keys.ToDevice(w.ctx, tx, q.user, q.device, q.since.ToDevice, w.to, maxToDevice)
	if err != nil {
		return err
	}
	token.ToDevice = upTo
	if len(msgs) == 0 {
		return nil
	}
	w.some = true
	list := make([][]byte, len(msgs))
	for i, m := range msgs {
		list[i] = m
	}
	*out = append(*out, `,"to_device":`...)
	*out = appendEvents(*out, list)
	return nil
}

// AppendKeyCounts writes the members of an answer that tell a device of its keys,
// each after a comma. They are in every answer: clients take what is missing for
// zero.
func (s *Sync) AppendKeyCounts(b []byte, user matrix.UserID, device matrix.DeviceID) []byte {
	if device == "" {
		return b
	}
	counts, unused := s.Keys.KeyCounts(user, device)
	b = append(b, `,"device_one_time_keys_count":{`...)
	first := true
	for _, alg := range slices.Sorted(maps.Keys(counts)) {
		if !first {
			b = append(b, ',')
		}
		first = false
		b = matrix.AppendJSONString(b, alg)
		b = append(b, ':')
		b = appendInt(b, counts[alg])
	}
	b = append(b, `},"device_unused_fallback_key_types":[`...)
	for i, alg := range unused {
		if i > 0 {
			b = append(b, ',')
		}
		b = matrix.AppendJSONString(b, alg)
	}
	return append(b, ']')
}

// deviceLists tells whose keys to read again and whose to forget.
// Spec: client-server-api#tracking-the-device-list-for-a-user
func (w *work) deviceLists(tx *sqldb.Tx, out *[]byte) error {
	if w.q.initial {
		return nil
	}
	changed, left := map[matrix.UserID]bool{}, map[matrix.UserID]bool{}
	if err := w.listChanges(tx, changed, left); err != nil {
		return err
	}
	for u := range changed {
		delete(left, u)
	}
	if len(changed)+len(left) == 0 {
		return nil
	}
	w.some = true
	b, err := json.Marshal(map[string][]matrix.UserID{"changed": keys(changed), "left": keys(left)})
	if err != nil {
		return err
	}
	*out = append(append(*out, `,"device_lists":`...), b...)
	return nil
}

func keys(m map[matrix.UserID]bool) []matrix.UserID {
	out := make([]matrix.UserID, 0, len(m))
	for u := range m {
		out = append(out, u)
	}
	return out
}

func (w *work) listChanges(tx *sqldb.Tx, changed, left map[matrix.UserID]bool) error {
	q, h := w.q, w.s.Hub
	if w.changed(stream.KindDeviceList) {
		list, err := w.s.Keys.DeviceListChanges(w.ctx, tx, q.user, q.since.Pos, w.to)
		if err != nil {
			return err
		}
		for _, u := range list {
			if h.SharesRoom(q.user, u) {
				changed[u] = true
			}
		}
	}
	for i := range w.snap.Rooms {
		r := &w.snap.Rooms[i]
		if r.Joined > q.since.Pos {
			for _, u := range h.Members(r.ID) { // the user too: his other devices read along
				changed[u] = true
				w.met = append(w.met, u)
			}
			continue
		}
		if r.LastState > q.since.Pos {
			if err := w.memberChanges(tx, r.ID, changed, left); err != nil {
				return err
			}
		}
	}
	if w.snap.Member <= q.since.Pos && q.since.Pos >= w.snap.Start {
		return nil
	}
	gone, err := w.s.Rooms.MembershipsSince(tx, q.user, q.since.Pos, w.to)
	if err != nil {
		return err
	}
	for _, m := range gone {
		if m.Membership == "join" || !m.WasJoined {
			continue
		}
		for _, u := range h.Members(m.Room) {
			if !h.SharesRoom(q.user, u) {
				left[u] = true
			}
		}
	}
	return nil
}

// memberChanges looks at who came to and left a room that the user stays in.
func (w *work) memberChanges(tx *sqldb.Tx, id matrix.RoomID, changed, left map[matrix.UserID]bool) error {
	see := func(u matrix.UserID, membership string) {
		switch {
		case u == w.q.user:
		case membership == "join":
			changed[u] = true
			w.met = append(w.met, u)
		case !w.s.Hub.SharesRoom(w.q.user, u):
			left[u] = true
		}
	}
	list, complete := w.s.Hub.Recent(id, w.q.since.Pos, w.to)
	if complete || tx == nil {
		for _, e := range list {
			if e.Type == "m.room.member" && e.StateKey != nil && !e.Hidden() {
				if e.Membership == "join" && e.Replaced != nil && e.Replaced.Membership == "join" {
					continue // a new name or picture
				}
				see(matrix.UserID(*e.StateKey), e.Membership)
			}
		}
		return nil
	}
	rows, err := state.Delta(tx, id, w.q.since.Pos, w.to)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.Type == "m.room.member" {
			see(matrix.UserID(row.StateKey), row.Membership)
		}
	}
	return nil
}

// Changes answers /keys/changes between two tokens.
func (s *Sync) Changes(ctx context.Context, user matrix.UserID, from, to string) (changed, left []matrix.UserID, err error) {
	t, err := ParseToken(from)
	if err != nil {
		return nil, nil, err
	}
	if _, err := ParseToken(to); err != nil {
		return nil, nil, err
	}
	var snap hub.Snapshot
	s.Hub.Snapshot(user, t.Pos, t.Eph, &snap)
	err = s.DB.Read(ctx, func(tx *sqldb.Tx) error {
		changed, left, err = s.DeviceLists(ctx, tx, user, t.Pos, &snap)
		return err
	})
	return changed, left, err
}

// DeviceLists is who is in the device_lists of an answer that begins after since;
// snap was taken with since, or before it.
func (s *Sync) DeviceLists(ctx context.Context, tx *sqldb.Tx, user matrix.UserID, since stream.Pos, snap *hub.Snapshot) (changed, left []matrix.UserID, err error) {
	w := &work{s: s, ctx: ctx, q: &request{user: user, since: Token{Pos: since}}, snap: *snap, to: snap.Head}
	c, l := map[matrix.UserID]bool{}, map[matrix.UserID]bool{}
	err = w.listChanges(tx, c, l)
	for u := range c {
		delete(l, u)
	}
	return keys(c), keys(l), err
}

func (w *work) presence(out *[]byte) {
	if !w.s.Presence.Enabled() || w.q.filter.PresenceFilter().MatchesNothing() {
		return
	}
	since := w.q.since.Eph
	if w.q.initial {
		since = 0
	}
	var states []presence.State
	if w.q.initial || w.snap.Presence > since {
		states = w.s.Presence.Since(w.q.user, since)
	}
	for _, u := range w.met { // whose presence the client has not heard of yet
		if st, ok := w.s.Presence.Of(u); ok && !slices.ContainsFunc(states, func(o presence.State) bool { return o.User == u }) {
			states = append(states, st)
		}
	}
	f := w.q.filter.PresenceFilter()
	var list [][]byte
	for _, st := range states {
		if f.Match("m.presence", st.User) && !w.q.ignored.Has(st.User) {
			list = append(list, st.Event(w.s.Now()))
		}
	}
	if len(list) > 0 {
		w.some = true
		*out = append(*out, `,"presence":`...)
		*out = appendEvents(*out, list)
	}
}

// standing is a room that the user is not joined to.
type standing = rooms.Member
