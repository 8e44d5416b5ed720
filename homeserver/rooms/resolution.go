package rooms

import (
	"container/heap"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// resolver is one run of state resolution 2, or of 2.1.
//
// Spec: rooms/v2#state-resolution, rooms/v12#state-resolution
type resolver struct {
	version gomatrixserverlib.RoomVersion
	newer   bool // 2.1
	agreed  *agreed
	known   map[matrix.EventID]*events.Event // the conflicted events and all that authorise them
	full    map[matrix.EventID]*events.Event // the full conflicted set
	levels  map[matrix.EventID]*levels       // of power level events, parsed
	pdus    pdus
	result  map[state.Key]*events.Event
}

func newResolver(version gomatrixserverlib.RoomVersion, newer bool, a *agreed, chain map[matrix.EventID]*events.Event) *resolver {
	return &resolver{
		version: version, newer: newer, agreed: a, known: chain,
		levels: map[matrix.EventID]*levels{}, pdus: pdus{}, result: map[state.Key]*events.Event{},
	}
}

// resolve finds the winners. Each set holds those events of one state that are
// not the same in all of them.
func (r *resolver) resolve(sets [][]*events.Event) (map[state.Key]matrix.EventID, error) {
	conflicted := map[matrix.EventID]*events.Event{}
	for _, set := range sets {
		for _, e := range set {
			r.known[e.ID], conflicted[e.ID] = e, e
		}
	}
	var err error
	if r.full, err = r.fullConflicted(sets, conflicted); err != nil {
		return nil, err
	}
	power := r.powerEvents()
	if err := r.apply(r.byPower(power)); err != nil {
		return nil, err
	}
	var rest []*events.Event
	for id, e := range r.full {
		if power[id] == nil {
			rest = append(rest, e)
		}
	}
	if err := r.byMainline(rest); err != nil {
		return nil, err
	}
	if err := r.apply(rest); err != nil {
		return nil, err
	}
	out := make(map[state.Key]matrix.EventID, len(r.result))
	for k, e := range r.result {
		out[k] = e.ID
	}
	return out, nil
}

func keyOf(e *events.Event) state.Key { return state.Key{Type: e.Type, StateKey: e.Key()} }

// at is the state so far: the checks of 2.1 begin with the empty one, those of 2
// with what all states agree on.
func (r *resolver) at(key state.Key) (*events.Event, error) {
	if e := r.result[key]; e != nil || r.newer {
		return e, nil
	}
	return r.agreed.at(key)
}

// ancestors collects all events that authorise those given, directly or not.
func (r *resolver) ancestors(list []*events.Event) map[matrix.EventID]bool {
	seen := map[matrix.EventID]bool{}
	for len(list) > 0 {
		e := list[len(list)-1]
		list = list[:len(list)-1]
		for _, id := range e.AuthEvents() {
			if a := r.known[id]; a != nil && !seen[id] {
				seen[id] = true
				list = append(list, a)
			}
		}
	}
	return seen
}

// fullConflicted is the conflicted events, the difference of the auth chains, and in 2.1 the events on the paths
// between conflicted ones.
func (r *resolver) fullConflicted(sets [][]*events.Event, conflicted map[matrix.EventID]*events.Event) (map[matrix.EventID]*events.Event, error) {
	full := maps.Clone(conflicted)
	count := map[matrix.EventID]int{}
	for _, set := range sets {
		for id := range r.ancestors(set) {
			count[id]++
		}
	}
	var differ []*events.Event
	for id, n := range count {
		if n < len(sets) && full[id] == nil {
			differ = append(differ, r.known[id])
		}
	}
	differ, err := r.agreed.without(differ)
	if err != nil {
		return nil, err
	}
	for _, e := range differ {
		full[e.ID] = e
	}
	if !r.newer {
		return full, nil
	}
	// On a path: authorises a conflicted event, and is authorised by one.
	reaches := map[matrix.EventID]bool{}
	for id := range r.ancestors(slices.Collect(maps.Values(conflicted))) {
		if full[id] == nil && r.reaches(id, conflicted, reaches) {
			full[id] = r.known[id]
		}
	}
	return full, nil
}

// reaches reports whether a conflicted event is among those that authorise id.
func (r *resolver) reaches(id matrix.EventID, conflicted map[matrix.EventID]*events.Event, memo map[matrix.EventID]bool) bool {
	if v, ok := memo[id]; ok {
		return v
	}
	memo[id] = false // auth chains have no cycles; this guards against forged ones
	for _, a := range r.known[id].AuthEvents() {
		if r.known[a] == nil {
			continue
		}
		if conflicted[a] != nil || r.reaches(a, conflicted, memo) {
			memo[id] = true
			break
		}
	}
	return memo[id]
}

// powerEvents picks the events that decide over others, with those of their auth chains that are conflicted.
func (r *resolver) powerEvents() map[matrix.EventID]*events.Event {
	out := map[matrix.EventID]*events.Event{}
	for _, e := range r.full {
		if !isPowerEvent(e) {
			continue
		}
		out[e.ID] = e
		for id := range r.ancestors([]*events.Event{e}) {
			if a := r.full[id]; a != nil {
				out[id] = a
			}
		}
	}
	return out
}

func isPowerEvent(e *events.Event) bool {
	switch e.Type {
	case spec.MRoomPowerLevels, spec.MRoomJoinRules, spec.MRoomCreate:
		return e.Key() == ""
	case spec.MRoomMember:
		return (e.Membership == spec.Leave || e.Membership == spec.Ban) && e.Key() != string(e.Sender)
	}
	return false
}

// senderLevel is the power that an event's sender had by its own auth events.
func (r *resolver) senderLevel(e *events.Event) int64 {
	var pl, create *events.Event
	for _, id := range e.AuthEvents() {
		switch a := r.known[id]; {
		case a == nil:
		case a.Type == spec.MRoomPowerLevels:
			pl = a
		case a.Type == spec.MRoomCreate:
			create = a
		}
	}
	if create == nil {
		if e.Type != spec.MRoomCreate {
			return 0
		}
		create = e
	}
	if r.newer && slices.Contains(creatorsOf(create), e.Sender) {
		return math.MaxInt64
	}
	if pl == nil {
		if create.Sender == e.Sender {
			return 100
		}
		return 0
	}
	return r.parsed(pl).user(e.Sender)
}

func (r *resolver) parsed(pl *events.Event) *levels {
	if l := r.levels[pl.ID]; l != nil {
		return l
	}
	l := &levels{}
	l.c.Defaults()
	if v, err := events.RoomVersion(r.version); err == nil {
		if err := v.ParsePowerLevels(pl.Content(), &l.c); err != nil {
			l.c.Defaults()
		}
	}
	r.levels[pl.ID] = l
	return l
}

// ready is a heap of events whose authorising events have been taken: the most powerful sender first.
type ready []rated

type rated struct {
	e     *events.Event
	level int64
}

func (h ready) Len() int      { return len(h) }
func (h ready) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h ready) Less(i, j int) bool {
	if h[i].level != h[j].level {
		return h[i].level > h[j].level
	}
	return older(h[i].e, h[j].e) < 0
}
func (h *ready) Push(x any) { *h = append(*h, x.(rated)) }

// Pop implements heap.Interface.
func (h *ready) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func older(a, b *events.Event) int {
	if a.TS != b.TS {
		if a.TS < b.TS {
			return -1
		}
		return 1
	}
	return strings.Compare(string(a.ID), string(b.ID))
}

// byPower is the reverse topological power ordering.
func (r *resolver) byPower(set map[matrix.EventID]*events.Event) []*events.Event {
	waits := make(map[matrix.EventID]int, len(set))
	frees := map[matrix.EventID][]*events.Event{}
	var h ready
	for _, e := range set {
		for _, a := range unique(e.AuthEvents()) {
			if set[a] != nil && a != e.ID {
				waits[e.ID]++
				frees[a] = append(frees[a], e)
			}
		}
		if waits[e.ID] == 0 {
			h = append(h, rated{e, r.senderLevel(e)})
		}
	}
	heap.Init(&h)
	out := make([]*events.Event, 0, len(set))
	for h.Len() > 0 {
		e := heap.Pop(&h).(rated).e
		out = append(out, e)
		for _, f := range frees[e.ID] {
			if waits[f.ID]--; waits[f.ID] == 0 {
				heap.Push(&h, rated{f, r.senderLevel(f)})
			}
		}
	}
	return out
}

// powerOf is the power levels event that an event names as authorising it.
func (r *resolver) powerOf(e *events.Event) *events.Event {
	for _, id := range e.AuthEvents() {
		if a := r.known[id]; a != nil && a.Type == spec.MRoomPowerLevels && a.Key() == "" {
			return a
		}
	}
	return nil
}

// byMainline sorts events by the place in the history of the power levels that they refer to, the oldest first.
func (r *resolver) byMainline(list []*events.Event) error {
	line := map[matrix.EventID]int{}
	levels, err := r.at(state.Key{Type: spec.MRoomPowerLevels})
	if err != nil {
		return err
	}
	for p := levels; p != nil; p = r.powerOf(p) {
		if _, ok := line[p.ID]; ok {
			break
		}
		line[p.ID] = len(line)
	}
	place := make(map[matrix.EventID]int, len(list))
	for _, e := range list {
		place[e.ID] = math.MaxInt
		for p, hops := e, 0; p != nil && hops < maxChain; p, hops = r.powerOf(p), hops+1 {
			if at, ok := line[p.ID]; ok {
				place[e.ID] = at
				break
			}
		}
	}
	slices.SortFunc(list, func(a, b *events.Event) int {
		if pa, pb := place[a.ID], place[b.ID]; pa != pb {
			if pa > pb {
				return -1
			}
			return 1
		}
		return older(a, b)
	})
	return nil
}

// pdus are events as gomatrixserverlib reads them.
type pdus map[matrix.EventID]gomatrixserverlib.PDU

// of parses an event once.
func (p pdus) of(e *events.Event) (gomatrixserverlib.PDU, error) {
	if known := p[e.ID]; known != nil {
		return known, nil
	}
	pdu, err := e.PDU()
	if err == nil {
		p[e.ID] = pdu
	}
	return pdu, err
}

// apply is the iterative auth checks: each event is judged by the state so far, and where that has no entry, by the
// event's own auth events.
func (r *resolver) apply(list []*events.Event) error {
	for _, e := range list {
		if e.StateKey == nil || e.Rejected() {
			continue
		}
		pdu, err := r.pdus.of(e)
		if err != nil {
			return err
		}
		var auth []*events.Event
		for _, t := range gomatrixserverlib.StateNeededForAuth([]gomatrixserverlib.PDU{pdu}).Tuples() {
			key := state.Key{Type: t.EventType, StateKey: t.StateKey}
			held, err := r.at(key)
			if err != nil {
				return err
			}
			if held != nil {
				auth = append(auth, held)
				continue
			}
			for _, id := range e.AuthEvents() {
				if a := r.known[id]; a != nil && !a.Rejected() && a.StateKey != nil && keyOf(a) == key {
					auth = append(auth, a)
					break
				}
			}
		}
		switch err := allowedByParsed(e, auth, r.pdus.of); {
		case err == nil:
			r.result[keyOf(e)] = e
		case !matrix.IsCode(err, "M_FORBIDDEN"):
			return err
		}
	}
	return nil
}
