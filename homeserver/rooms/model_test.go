package rooms

import (
	"crypto/sha1"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// stateMap is a whole state.
type stateMap map[state.Key]matrix.EventID

func (s stateMap) with(k state.Key, id matrix.EventID) stateMap {
	c := make(stateMap, len(s)+1)
	for k, v := range s {
		c[k] = v
	}
	c[k] = id
	return c
}

// model is a room as the specification defines it, with whole states and the
// algorithms word for word: what the room's real keepers must agree with. Only the
// rules of authorisation are theirs.
type model struct {
	version  gomatrixserverlib.RoomVersion
	algo     gomatrixserverlib.StateResAlgorithm
	events   map[matrix.EventID]*events.Event
	order    []matrix.EventID
	rejected map[matrix.EventID]bool
	before   map[matrix.EventID]stateMap
	chains   map[matrix.EventID]map[matrix.EventID]bool
	// forks are the resolutions that took place, for the comparison with other ways.
	forks  [][]stateMap
	merged map[string]stateMap // their results
	// odd is what of the last resolution the library is known to do otherwise.
	odd  map[string]bool
	pdus map[matrix.EventID]gomatrixserverlib.PDU
}

func newModel(version gomatrixserverlib.RoomVersion, algo gomatrixserverlib.StateResAlgorithm) *model {
	return &model{
		version: version, algo: algo, events: map[matrix.EventID]*events.Event{}, rejected: map[matrix.EventID]bool{},
		before: map[matrix.EventID]stateMap{}, chains: map[matrix.EventID]map[matrix.EventID]bool{}, pdus: map[matrix.EventID]gomatrixserverlib.PDU{},
		merged: map[string]stateMap{}, odd: map[string]bool{},
	}
}

func (m *model) pdu(e *events.Event) (gomatrixserverlib.PDU, error) {
	if p := m.pdus[e.ID]; p != nil {
		return p, nil
	}
	p, err := e.PDU()
	if err == nil {
		m.pdus[e.ID] = p
	}
	return p, err
}

func (m *model) allowed(e *events.Event, auth []*events.Event) bool {
	return allowedByParsed(e, auth, m.pdu) == nil
}

// needed lists the entries that decide over an event.
func (m *model) needed(e *events.Event) []state.Key {
	p, err := m.pdu(e)
	if err != nil {
		return nil
	}
	var out []state.Key
	for _, t := range gomatrixserverlib.StateNeededForAuth([]gomatrixserverlib.PDU{p}).Tuples() {
		out = append(out, state.Key{Type: t.EventType, StateKey: t.StateKey})
	}
	return out
}

// allowedIn judges an event by a state.
func (m *model) allowedIn(e *events.Event, s stateMap) bool {
	var auth []*events.Event
	for _, k := range m.needed(e) {
		if id := s[k]; id != "" {
			auth = append(auth, m.events[id])
		}
	}
	return m.allowed(e, auth)
}

// verdict judges an event that has its place: false if it is rejected.
func (m *model) verdict(e *events.Event, before stateMap) bool {
	var auth []*events.Event
	seen := map[state.Key]bool{}
	for _, id := range e.AuthEvents() {
		a := m.events[id]
		if m.rejected[id] || seen[keyOf(a)] || !slices.Contains(m.needed(e), keyOf(a)) {
			return false
		}
		seen[keyOf(a)] = true
		auth = append(auth, a)
	}
	return m.allowed(e, auth) && m.allowedIn(e, before)
}

// add places an event whose ancestors are all there.
func (m *model) add(e *events.Event) {
	var before stateMap
	if len(e.PrevEvents()) > 0 {
		before = m.stateAt(e.PrevEvents())
	}
	m.events[e.ID], m.before[e.ID] = e, before
	m.order = append(m.order, e.ID)
	chain := map[matrix.EventID]bool{}
	for _, a := range e.AuthEvents() {
		chain[a] = true
		for b := range m.chains[a] {
			chain[b] = true
		}
	}
	m.chains[e.ID] = chain
	if !m.verdict(e, before) {
		m.rejected[e.ID] = true
		e.Flags |= events.FlagRejected
	}
}

func (m *model) after(id matrix.EventID) stateMap {
	e := m.events[id]
	if e.StateKey == nil || m.rejected[id] {
		return m.before[id]
	}
	return m.before[id].with(keyOf(e), id)
}

// stateAt is the state between events: what an event built on them begins with.
func (m *model) stateAt(ids []matrix.EventID) stateMap {
	ids = unique(ids)
	if len(ids) == 1 {
		return m.after(ids[0])
	}
	key := fmt.Sprint(ids)
	if s, ok := m.merged[key]; ok {
		return s
	}
	var sets []stateMap
	for _, id := range ids {
		sets = append(sets, m.after(id))
	}
	m.forks = append(m.forks, sets)
	m.merged[key] = m.resolve(sets)
	return m.merged[key]
}

// split gives what all states agree on, and the events in which they do not.
func (m *model) split(sets []stateMap) (agreed stateMap, conflicted map[matrix.EventID]bool) {
	agreed, conflicted = stateMap{}, map[matrix.EventID]bool{}
	keys := map[state.Key]bool{}
	for _, s := range sets {
		for k := range s {
			keys[k] = true
		}
	}
	for k := range keys {
		same := true
		for _, s := range sets {
			same = same && s[k] == sets[0][k]
		}
		if same {
			agreed[k] = sets[0][k]
			continue
		}
		for _, s := range sets {
			if s[k] != "" {
				conflicted[s[k]] = true
			}
		}
	}
	return agreed, conflicted
}

func (m *model) resolve(sets []stateMap) stateMap {
	if m.algo == gomatrixserverlib.StateResV1 {
		return m.resolveV1(sets)
	}
	return m.resolveV2(sets)
}

// resolveV1 is the algorithm of the first room version, in which an entry that only
// some states have is no conflict.
// Spec: rooms/v1#state-resolution
func (m *model) resolveV1(sets []stateMap) stateMap {
	values := map[state.Key][]matrix.EventID{}
	for _, s := range sets {
		for k, id := range s {
			if !slices.Contains(values[k], id) {
				values[k] = append(values[k], id)
			}
		}
	}
	r := stateMap{}
	for k, ids := range values {
		if len(ids) == 1 {
			r[k] = ids[0]
			continue
		}
		slices.SortFunc(ids, func(a, b matrix.EventID) int {
			if x, y := m.events[a].Depth, m.events[b].Depth; x != y {
				return int(x - y)
			}
			x, y := sha1.Sum([]byte(a)), sha1.Sum([]byte(b))
			return strings.Compare(string(y[:]), string(x[:]))
		})
	}
	for _, typ := range []string{spec.MRoomPowerLevels, spec.MRoomJoinRules, spec.MRoomMember} {
		won := stateMap{}
		for k, ids := range values {
			if k.Type != typ || typ != spec.MRoomMember && k.StateKey != "" || len(ids) == 1 {
				continue
			}
			won[k] = ids[0]
			for _, id := range ids[1:] {
				if !m.allowedIn(m.events[id], r.with(k, won[k])) {
					break
				}
				won[k] = id
			}
		}
		for k, id := range won { // those of one type do not decide over each other
			r[k] = id
		}
	}
	won := stateMap{}
	for k, ids := range values {
		if r[k] != "" {
			continue
		}
		won[k] = ids[0]
		for _, id := range slices.Backward(ids[1:]) {
			if m.allowedIn(m.events[id], r) {
				won[k] = id
				break
			}
		}
	}
	for k, id := range won {
		r[k] = id
	}
	return r
}

// fullChain is all that authorises a state.
func (m *model) fullChain(s stateMap) map[matrix.EventID]bool {
	out := map[matrix.EventID]bool{}
	for _, id := range s {
		for a := range m.chains[id] {
			out[a] = true
		}
	}
	return out
}

// closed is a state with all that authorises it. What all states agree on, and what
// authorises that, is in all of them: servers do not take it for conflicted.
func (m *model) closed(s stateMap) map[matrix.EventID]bool {
	out := m.fullChain(s)
	for _, id := range s {
		out[id] = true
	}
	return out
}

// fullConflicted is the conflicted events, the difference of the auth chains, and
// since room version 12 what lies between conflicted events.
func (m *model) fullConflicted(sets []stateMap, conflicted map[matrix.EventID]bool) map[matrix.EventID]bool {
	full, count := map[matrix.EventID]bool{}, map[matrix.EventID]int{}
	for _, s := range sets {
		for id := range m.closed(s) {
			count[id]++
		}
	}
	for id := range conflicted {
		full[id] = true
	}
	for id, n := range count {
		if n < len(sets) {
			full[id] = true
		}
	}
	if m.algo != gomatrixserverlib.StateResV2_1 {
		return full
	}
	for id := range m.events {
		over, under := false, false
		for c := range conflicted {
			over, under = over || m.chains[c][id], under || m.chains[id][c]
		}
		if over && under {
			full[id] = true
		}
	}
	return full
}

// resolveV2 is the algorithm since room version 2.
// Spec: rooms/v2#state-resolution, rooms/v12#state-resolution
func (m *model) resolveV2(sets []stateMap) stateMap {
	agreed, conflicted := m.split(sets)
	full := m.fullConflicted(sets, conflicted)
	clear(m.odd)
	power := map[matrix.EventID]bool{}
	for id := range full {
		if !m.isPower(m.events[id]) {
			continue
		}
		power[id] = true
		for a := range m.chains[id] {
			if full[a] {
				power[a] = true
			}
		}
	}
	r := stateMap{}
	if m.algo == gomatrixserverlib.StateResV2 {
		for k, id := range agreed {
			r[k] = id
		}
	}
	for id := range power {
		for a := range m.chains[id] {
			if power[a] {
				m.odd["the order of power events of which one authorises another"] = true
			}
		}
		if e := m.events[id]; len(power) > 1 && m.algo == gomatrixserverlib.StateResV2 && m.authOf(e, spec.MRoomPowerLevels) == nil && m.levelOf(e) > 0 {
			m.odd["the level of a sender before there are levels"] = true
		}
	}
	m.check(r, m.byPower(power))
	var rest []matrix.EventID
	for id := range full {
		if !power[id] {
			rest = append(rest, id)
		}
	}
	m.byMainline(rest, r[state.Key{Type: spec.MRoomPowerLevels}])
	m.check(r, rest)
	for k, id := range agreed {
		r[k] = id
	}
	return r
}

func (m *model) isPower(e *events.Event) bool {
	if e.StateKey == nil {
		return false
	}
	switch e.Type {
	case spec.MRoomPowerLevels, spec.MRoomJoinRules:
		return *e.StateKey == ""
	case spec.MRoomMember:
		return (e.Membership == spec.Leave || e.Membership == spec.Ban) && *e.StateKey != string(e.Sender)
	}
	return false
}

func (m *model) authOf(e *events.Event, typ string) *events.Event {
	for _, id := range e.AuthEvents() {
		if a := m.events[id]; a.Type == typ && a.Key() == "" {
			return a
		}
	}
	return nil
}

func (m *model) levelOf(e *events.Event) int64 {
	create := m.authOf(e, spec.MRoomCreate)
	if create == nil {
		create = e
	}
	if m.algo == gomatrixserverlib.StateResV2_1 && slices.Contains(creatorsOf(create), e.Sender) {
		return math.MaxInt64
	}
	pl := m.authOf(e, spec.MRoomPowerLevels)
	if pl == nil {
		if create.Sender == e.Sender {
			return 100
		}
		return 0
	}
	impl, err := events.RoomVersion(m.version)
	if err != nil {
		return 0
	}
	var c gomatrixserverlib.PowerLevelContent
	c.Defaults()
	if impl.ParsePowerLevels(pl.Content(), &c) != nil {
		return 0
	}
	return c.UserLevel(spec.SenderID(e.Sender))
}

// byPower takes, again and again, the first of those whose auth events have been taken.
// What is authorised by way of events outside the set is not bound to come later: that
// is how servers read "the DAG formed by auth events".
func (m *model) byPower(set map[matrix.EventID]bool) []matrix.EventID {
	var out []matrix.EventID
	left := map[matrix.EventID]bool{}
	for id := range set {
		left[id] = true
	}
	for len(left) > 0 {
		var best *events.Event
		var level int64
		for id := range left {
			free := true
			for _, a := range m.events[id].AuthEvents() {
				free = free && !left[a]
			}
			if !free {
				continue
			}
			e := m.events[id]
			if l := m.levelOf(e); best == nil || l > level || l == level && older(e, best) < 0 {
				best, level = e, l
			}
		}
		delete(left, best.ID)
		out = append(out, best.ID)
	}
	return out
}

func (m *model) byMainline(list []matrix.EventID, levels matrix.EventID) {
	place := map[matrix.EventID]int{}
	n := 0
	for id := levels; id != ""; n++ {
		place[id] = n
		next := m.authOf(m.events[id], spec.MRoomPowerLevels)
		if id = ""; next != nil {
			id = next.ID
		}
	}
	of := func(id matrix.EventID) int {
		steps := 0
		for e := m.events[id]; e != nil; e = m.authOf(e, spec.MRoomPowerLevels) {
			if i, ok := place[e.ID]; ok {
				if steps > 1 {
					m.odd["how far it is to the mainline"] = true
				}
				return i
			}
			steps++
		}
		m.odd["the place of what has no mainline"] = true
		return n
	}
	slices.SortFunc(list, func(a, b matrix.EventID) int {
		if x, y := of(a), of(b); x != y {
			return y - x
		}
		return older(m.events[a], m.events[b])
	})
}

// check is the iterative auth checks.
func (m *model) check(r stateMap, list []matrix.EventID) {
	for _, id := range list {
		e := m.events[id]
		if m.rejected[id] {
			continue
		}
		var auth, itself []*events.Event
		for _, k := range m.needed(e) {
			if r[k] != "" {
				auth, itself = append(auth, m.events[r[k]]), append(itself, m.events[r[k]])
				continue
			}
			for _, a := range e.AuthEvents() {
				if !m.rejected[a] && keyOf(m.events[a]) == k {
					auth, itself = append(auth, m.events[a]), append(itself, e)
				}
			}
		}
		allowed := m.allowed(e, auth)
		if allowed != m.allowedByLibrary(e, auth) {
			m.odd["rules of kept invitations and of notification levels"] = true
		} else if allowed != m.allowedByLibrary(e, itself) {
			m.odd["an event is judged by itself where the state has no entry"] = true
		}
		if allowed {
			r[keyOf(e)] = id
		}
	}
}
