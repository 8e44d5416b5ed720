package search

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	// mostHits is how many results are counted and ordered: the newest. By recency
	// one can go on to the oldest all the same. mostLooked is how many documents are
	// looked at for them.
	mostHits   = 1000
	mostLooked = 20_000
	// mostRooms is up to how many rooms, and mostSenders up to how many senders,
	// the index itself is asked for; with more, what it finds is sorted out here.
	mostRooms   = 1000
	mostSenders = 100
	// With more than fewRooms, to ask for them costs more than to sort out a few
	// results of other rooms: so it is done only where less than one in strangers
	// of what was found is the reader's.
	fewRooms, strangers = 8, 4
)

const hitColumns = `d.doc, d.nid, d.room_id, d.sender, d.field, d.terms`

// wanted is what the index is asked for: all clauses, and of each scope one.
type wanted struct {
	clauses []clause
	scopes  [][]string
}

// hit is a document that was found.
type hit struct {
	doc    stream.Pos
	nid    int64
	room   matrix.RoomID
	sender matrix.UserID
	field  field
	terms  int
}

func scanHit(r *sqldb.Rows) (h hit, err error) {
	err = r.Scan(&h.doc, &h.nid, &h.room, &h.sender, &h.field, &h.terms)
	return h, err
}

// search is one search under way, in one snapshot.
type search struct {
	*Search
	tx     *sqldb.Tx
	q      *question
	rooms  map[matrix.RoomID]rooms.Member // those that may be searched
	sights map[matrix.RoomID]*sight
	erased map[matrix.EventID]*events.Event // what around the results is redacted for this reader
}

// sight is what the reader may see of a room.
type sight struct {
	*rooms.Sight
	all       bool
	encrypted bool
}

// openRooms finds the rooms to search: those that the user is or was in, as far as
// the filter wants them; of those that the filter names, their predecessors too.
func (s *search) openRooms() error {
	list, err := s.Rooms.Memberships(s.tx, s.q.user)
	if err != nil {
		return err
	}
	all := make(map[matrix.RoomID]rooms.Member, len(list))
	for _, m := range list {
		if m.WasJoined && !m.Forgotten {
			all[m.Room] = m
		}
	}
	s.rooms = map[matrix.RoomID]rooms.Member{}
	next := s.q.filter.rooms
	if next == nil {
		for r := range all {
			next = append(next, r)
		}
	}
	for len(next) > 0 {
		r := next[0]
		next = next[1:]
		m, ok := all[r]
		if _, dup := s.rooms[r]; !ok || dup || !s.q.filter.MatchRoom(r) {
			continue
		}
		s.rooms[r] = m
		if s.q.filter.rooms == nil {
			continue // the predecessors are among all rooms
		}
		before, err := s.predecessor(r)
		if err != nil {
			return err
		}
		if before != "" {
			next = append(slices.Clip(next), before)
		}
	}
	return nil
}

func (s *search) predecessor(room matrix.RoomID) (matrix.RoomID, error) {
	create, err := s.current(room, state.Key{Type: "m.room.create"})
	if err != nil || create == nil {
		return "", err
	}
	return matrix.RoomID(create.ContentString("predecessor.room_id")), nil
}

// current is a state event as it is now; nil if there is none.
func (s *search) current(room matrix.RoomID, key state.Key) (*events.Event, error) {
	return s.stateAt(room, key, state.Open-1)
}

func (s *search) stateAt(room matrix.RoomID, key state.Key, pos stream.Pos) (*events.Event, error) {
	row, ok, err := state.KeyAt(s.tx, room, key, pos)
	if err != nil || !ok {
		return nil, err
	}
	m, err := s.Events.ByNID(s.tx, []int64{row.NID})
	return m[row.NID], err
}

// query is what the index is asked; inRooms is whether it is to look in the
// reader's rooms alone.
func (s *search) query(inRooms bool) wanted {
	w := wanted{clauses: s.q.clauses}
	if inRooms {
		var any []string
		for r := range s.rooms {
			any = append(any, roomScope(r))
		}
		slices.Sort(any)
		w.scopes = append(w.scopes, any)
	}
	if len(s.q.fields) < len(typesOf) {
		var any []string
		for _, f := range s.q.fields {
			any = append(any, fieldScope(f))
		}
		w.scopes = append(w.scopes, any)
	}
	if n := len(s.q.filter.senders); n > 0 && n <= mostSenders {
		var any []string
		for _, u := range s.q.filter.senders {
			any = append(any, senderScope(u))
		}
		w.scopes = append(w.scopes, any)
	}
	return w
}

// hits finds the results, in the order that was asked for.
func (s *search) hits() ([]hit, error) {
	if err := s.openRooms(); err != nil || len(s.rooms) == 0 || len(s.q.clauses) == 0 || len(s.q.fields) == 0 {
		return nil, err
	}
	inRooms := len(s.rooms) <= fewRooms
	w := s.query(inRooms)
	var out []hit
	before, most := int64(math.MaxInt64), mostHits
	if c := s.q.cursor; c != nil && c.seen > 0 {
		before = int64(c.doc)
		if len(s.q.groups) == 0 { // else what follows says which groups go on
			most = s.q.limit + 1
		}
	}
	chunk := max(most, 100)
	for looked := 0; looked < mostLooked && len(out) < most; {
		list, err := s.terms.find(s.tx, w, before, chunk)
		if err != nil {
			return nil, err
		}
		if err := s.lookAt(list); err != nil {
			return nil, err
		}
		for _, h := range list {
			ok, err := s.shows(h)
			if err != nil {
				return nil, err
			}
			if ok && len(out) < most {
				out = append(out, h)
			}
		}
		if len(list) < chunk {
			break
		}
		looked += len(list)
		before = int64(list[len(list)-1].doc)
		if !inRooms && len(s.rooms) <= mostRooms && len(out) < looked/strangers {
			inRooms = true
			w = s.query(true)
		}
	}
	if s.q.byRank {
		slices.SortStableFunc(out, func(a, b hit) int { return cmp.Compare(a.terms, b.terms) })
	}
	return out, nil
}

// shows reports whether a document may be shown to the reader and is wanted.
func (s *search) shows(h hit) (bool, error) {
	if _, ok := s.rooms[h.room]; !ok || !slices.Contains(s.q.fields, h.field) || !s.q.filter.MatchSender(h.sender) ||
		h.field == bodyField && s.q.ignored.Has(h.sender) {
		return false, nil
	}
	v, err := s.sight(h.room)
	if err != nil || v.encrypted {
		return false, err
	}
	if !v.all && !v.Sees(s.q.user, &events.Event{Pos: h.doc, Type: typesOf[h.field], Room: h.room, Sender: h.sender}) {
		return false, nil
	}
	if s.q.filter.NeedsContent() {
		m, err := s.Events.ByNID(s.tx, []int64{h.nid})
		if err != nil || m[h.nid] == nil {
			return false, err
		}
		return s.q.filter.MatchContent(m[h.nid].Content()), nil
	}
	return true, nil
}

func (s *search) sight(room matrix.RoomID) (*sight, error) {
	if s.sights[room] == nil {
		if err := s.openSights([]matrix.RoomID{room}); err != nil {
			return nil, err
		}
	}
	return s.sights[room], nil
}

// lookAt reads the sights of all rooms that results are of.
func (s *search) lookAt(list []hit) error {
	var lacking []matrix.RoomID
	seen := map[matrix.RoomID]bool{}
	for _, h := range list {
		if _, wanted := s.rooms[h.room]; wanted && !seen[h.room] && s.sights[h.room] == nil {
			seen[h.room] = true
			lacking = append(lacking, h.room)
		}
	}
	return s.openSights(lacking)
}

func (s *search) openSights(list []matrix.RoomID) error {
	if len(list) == 0 {
		return nil
	}
	all, err := s.Rooms.Sights(s.tx, s.q.user, list)
	if err != nil {
		return err
	}
	names := make([]string, len(list))
	for i, r := range list {
		names[i] = string(r)
		s.sights[r] = &sight{Sight: all[r], all: all[r].Everything()}
	}
	rows, err := state.RoomsAt(s.tx, names, []string{"m.room.encryption"}, state.Open-1)
	if err != nil {
		return err
	}
	for _, row := range rows {
		s.sights[row.Room].encrypted = true
	}
	return nil
}

// sees reports whether an event around a result may be shown.
func (s *search) sees(v *sight, e *events.Event) bool {
	return (v.all && !e.Hidden() || v.Sees(s.q.user, e)) && (e.IsState() || !s.q.ignored.Has(e.Sender))
}

// found is a result with its event.
type found struct {
	hit
	event *events.Event
}

// page is the results from the cursor on, without those that have gone meanwhile.
func (s *search) page(list []hit) (out []found, rest []hit, err error) {
	for len(list) > 0 && len(out) < s.q.limit {
		n := min(len(list), s.q.limit-len(out))
		nids := make([]int64, n)
		for i, h := range list[:n] {
			nids[i] = h.nid
		}
		m, err := s.Events.ByNID(s.tx, nids)
		if err != nil {
			return nil, nil, err
		}
		read := make([]*events.Event, 0, len(m))
		for _, e := range m {
			read = append(read, e)
		}
		erased, err := s.Rooms.Erased(s.tx, s.q.user, read)
		if err != nil {
			return nil, nil, err
		}
		for _, h := range list[:n] {
			if e := m[h.nid]; e != nil && !e.Redacted() && !e.Hidden() && erased[e.ID] == nil {
				out = append(out, found{h, e})
			}
		}
		list = list[n:]
	}
	return out, list, nil
}

// mostAround bounds the events before or after a result, and mostScanned those
// that are read for them.
const (
	mostAround  = 50
	mostScanned = 500
)

// around reads what stands before or after an event.
func (s *search) around(e *events.Event, n int, forward bool) (out []*events.Event, err error) {
	v, err := s.sight(e.Room)
	if err != nil {
		return nil, err
	}
	lo, hi := stream.Pos(math.MinInt64+1), e.Pos-1
	if forward {
		lo, hi = e.Pos, stream.Pos(math.MaxInt64-1)
	}
	for scanned := 0; len(out) < n && scanned < mostScanned; {
		want := n - len(out)
		rows, err := s.Events.Timeline(s.tx, e.Room, lo, hi, want, forward)
		if err != nil {
			return nil, err
		}
		for _, x := range rows {
			if forward {
				lo = x.Pos
			} else {
				hi = x.Pos - 1
			}
			if s.sees(v, x) {
				out = append(out, x)
			}
		}
		if scanned += len(rows); len(rows) < want {
			break
		}
	}
	return out, nil
}

// profiles are the names and pictures of senders at the time of a result.
func (s *search) profiles(e *events.Event, around ...*events.Event) (map[matrix.UserID]profile, error) {
	out := map[matrix.UserID]profile{}
	for _, x := range append([]*events.Event{e}, around...) {
		if _, ok := out[x.Sender]; ok {
			continue
		}
		key := state.Key{Type: "m.room.member", StateKey: string(x.Sender)}
		m, err := s.stateAt(e.Room, key, e.Pos)
		if err == nil && m == nil { // before this server knew the room, or came later
			m, err = s.current(e.Room, key)
		}
		if err != nil {
			return nil, err
		}
		var p profile
		if m != nil {
			p = profile{str(m, "displayname"), str(m, "avatar_url")}
		}
		out[x.Sender] = p
	}
	return out, nil
}

func str(e *events.Event, key string) *string {
	if v := gjson.GetBytes(e.Content(), key); v.Type == gjson.String {
		return &v.Str
	}
	return nil
}

// roomState is the state of a room as the reader may know it; with lazy loading,
// of the members only the senders.
func (s *search) roomState(room matrix.RoomID, senders map[matrix.UserID]bool) ([]*events.Event, error) {
	pos := state.Open - 1
	if m := s.rooms[room]; m.Membership != "join" {
		pos = m.Pos
	}
	rows, err := state.At(s.tx, room, pos)
	if err != nil {
		return nil, err
	}
	if s.q.filter.EventFilter != nil && s.q.filter.LazyLoadMembers {
		rows = slices.DeleteFunc(rows, func(r state.Row) bool {
			return r.Type == "m.room.member" && !senders[matrix.UserID(r.StateKey)]
		})
	}
	return s.Rooms.EventsOf(s.tx, rows)
}

// complete loads what the client form of events needs.
func (s *search) complete(ctx context.Context, list []*events.Event) (bundles, error) {
	if err := s.Events.Complete(s.tx, list); err != nil {
		return nil, err
	}
	erased, err := s.Rooms.Erased(s.tx, s.q.user, list)
	if err != nil {
		return nil, err
	}
	if s.erased == nil {
		s.erased = erased
	} else {
		maps.Copy(s.erased, erased)
	}
	if s.Bundler == nil {
		return nil, nil
	}
	return s.Bundler.Bundle(ctx, s.tx, s.q.user, list)
}
