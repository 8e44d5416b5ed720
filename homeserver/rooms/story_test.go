package rooms

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// signerOf is the identity of a server of a story.
func signerOf(name matrix.ServerName) events.Signer {
	return events.Signer{Server: name, KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed([]byte(fmt.Sprintf("%-32s", name))[:32])}
}

func publicOf(name matrix.ServerName) ed25519.PublicKey {
	return ed25519.PublicKey(signerOf(name).Key[32:])
}

// story is the random history of a room on several servers, which hear of each
// other late and some of which are malicious. The same seed gives the same story.
type story struct {
	*model
	rnd     *rand.Rand
	room    matrix.RoomID
	servers []*teller
	n       int // events made
	tokens  int // third-party invitations made
	err     error
	base    int // events until everybody is in
	healed  bool
	out     int // observers that lost their place in the room
	soft    int // events that observers have soft-failed
}

// teller is one server of a story: what it knows and what it builds on.
type teller struct {
	events.Signer
	users []matrix.UserID
	known map[matrix.EventID]bool
	tips  []matrix.EventID
	evil  bool
}

const storyTellers = 4

// newStory begins a room: its creator, levels, and everybody's joins, one after another.
func newStory(version gomatrixserverlib.RoomVersion, seed uint64, observers []matrix.UserID) (*story, error) {
	impl, err := events.RoomVersion(version)
	if err != nil {
		return nil, err
	}
	s := &story{model: newModel(version, impl.StateResAlgorithm()), rnd: rand.New(rand.NewPCG(seed, 1))}
	for i := range storyTellers {
		name := matrix.ServerName(fmt.Sprintf("s%d.test", i))
		t := &teller{Signer: signerOf(name), known: map[matrix.EventID]bool{}, evil: i == storyTellers-1}
		for j := range 3 {
			t.users = append(t.users, matrix.UserID(fmt.Sprintf("@u%d:%s", j, name)))
		}
		s.servers = append(s.servers, t)
	}
	first := s.servers[0]
	creator := first.users[0]
	create := map[string]any{"room_version": version, "seed": seed} // the room's ID comes of it
	if impl.CreatorInCreateEvent() {
		create["creator"] = creator
	}
	if !impl.DomainlessRoomIDs() {
		s.room = matrix.RoomID(fmt.Sprintf("!v%s-%d:s0.test", version, seed))
	}
	if impl.PrivilegedCreators() {
		create["additional_creators"] = []matrix.UserID{s.servers[1].users[0]}
	}
	empty := ""
	s.tell(first, creator, spec.MRoomCreate, &empty, create)
	s.tell(first, creator, spec.MRoomMember, ptr(string(creator)), map[string]any{"membership": "join"})
	levels := map[string]any{"users": map[matrix.UserID]int{creator: 100, s.servers[1].users[0]: 100, s.servers[1].users[1]: 50, s.servers[3].users[0]: 50, s.servers[3].users[1]: 50}, "notifications": map[string]int{"room": 50}}
	if impl.PrivilegedCreators() {
		delete(levels["users"].(map[matrix.UserID]int), creator)
		delete(levels["users"].(map[matrix.UserID]int), s.servers[1].users[0])
	}
	s.tell(first, creator, spec.MRoomPowerLevels, &empty, levels)
	s.tell(first, creator, spec.MRoomJoinRules, &empty, map[string]any{"join_rule": "public"})
	for i, t := range s.servers {
		t.tips = first.tips
		for j, u := range t.users[:2] {
			if i+j > 0 {
				s.tell(t, u, spec.MRoomMember, ptr(string(u)), map[string]any{"membership": "join"})
			}
		}
		first.tips = t.tips
	}
	for _, u := range observers {
		t := &teller{Signer: signerOf(u.Server()), tips: first.tips, known: map[matrix.EventID]bool{}}
		s.tell(t, u, spec.MRoomMember, ptr(string(u)), map[string]any{"membership": "join"})
		first.tips = t.tips
	}
	for _, t := range s.servers {
		t.tips = first.tips
		for _, id := range s.order {
			t.known[id] = true
		}
	}
	for _, id := range s.order {
		if s.rejected[id] {
			return nil, fmt.Errorf("%s of the beginning is rejected", s.events[id].JSON)
		}
	}
	s.base = len(s.order)
	return s, s.err
}

func ptr[T any](v T) *T { return &v }

// tell has a server add an event to its own end of the room.
func (s *story) tell(t *teller, sender matrix.UserID, typ string, key *string, content any) *events.Event {
	e := s.make(t, sender, typ, key, content, t.tips, nil, "")
	if e != nil {
		s.place(t, e)
	}
	return e
}

// place adds an event to the room and to what its server knows.
func (s *story) place(t *teller, e *events.Event) {
	s.add(e)
	t.known[e.ID] = true
	if !s.rejected[e.ID] {
		t.tips = append(slices.DeleteFunc(slices.Clone(t.tips), func(id matrix.EventID) bool { return slices.Contains(e.PrevEvents(), id) }), e.ID)
	}
}

// make builds an event. Without auth events of its own it has those that the state
// before it has.
func (s *story) make(t *teller, sender matrix.UserID, typ string, key *string, content any, prev, auth []matrix.EventID, redacts matrix.EventID) *events.Event {
	raw, err := json.Marshal(content)
	if err != nil {
		s.err = err
		return nil
	}
	p := events.Proto{
		Version: s.version, Room: s.room, Sender: sender, Type: typ, StateKey: key, Content: raw, PrevEvents: prev, AuthEvents: auth, Redacts: redacts,
		Depth: 1, Time: time.UnixMilli(1_700_000_000_000 + int64(s.n/4)), // concurrent ones have the same time, at times
	}
	if s.rnd.IntN(3) == 0 {
		p.Time = p.Time.Add(time.Duration(s.rnd.IntN(20)-10) * time.Millisecond)
	}
	for _, id := range prev {
		p.Depth = max(p.Depth, s.events[id].Depth+1)
	}
	if auth == nil && len(prev) > 0 {
		before := s.stateAt(prev)
		needed, err := gomatrixserverlib.StateNeededForProtoEvent(&gomatrixserverlib.ProtoEvent{Type: typ, StateKey: key, Content: spec.RawJSON(raw), SenderID: string(sender)})
		if err != nil {
			s.err = err
			return nil
		}
		for _, k := range needed.Tuples() {
			if id := before[state.Key{Type: k.EventType, StateKey: k.StateKey}]; id != "" {
				p.AuthEvents = append(p.AuthEvents, id)
			}
		}
	}
	e, err := s.build(p, t.Signer)
	if err != nil {
		s.err = err
		return nil
	}
	if via := matrix.UserID(e.ContentString("join_authorised_via_users_server")); via != "" && e.Membership == "join" {
		if e, err = e.Sign(signerOf(via.Server())); err != nil {
			s.err = err
			return nil
		}
	}
	s.n++
	return e
}

// build is events.Build with IDs that the story chooses, where they are chosen.
func (s *story) build(p events.Proto, by events.Signer) (*events.Event, error) {
	if s.version != "1" && s.version != "2" {
		e, err := events.Build(p, by)
		if err == nil && s.room == "" {
			s.room = e.Room
		}
		return e, err
	}
	type pair [2]any
	pairs := func(ids []matrix.EventID) []pair {
		out := []pair{}
		for _, id := range ids {
			out = append(out, pair{id, map[string]string{"sha256": ""}})
		}
		return out
	}
	doc := map[string]any{
		"auth_events": pairs(p.AuthEvents), "prev_events": pairs(p.PrevEvents), "content": p.Content, "depth": p.Depth,
		"origin": by.Server, "origin_server_ts": p.Time.UnixMilli(), "room_id": p.Room, "sender": p.Sender, "type": p.Type,
	}
	doc["event_id"] = fmt.Sprintf("$%d-%x:%s", s.n, sha256.Sum256([]byte(s.room)), by.Server)
	if p.StateKey != nil {
		doc["state_key"] = *p.StateKey
	}
	if p.Redacts != "" {
		doc["redacts"] = p.Redacts
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	if raw, err = matrix.CanonicalJSON(raw, false); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	doc["hashes"] = map[string]string{"sha256": base64.RawStdEncoding.EncodeToString(sum[:])}
	if raw, err = json.Marshal(doc); err != nil {
		return nil, err
	}
	e, err := events.Parse(raw, s.version)
	if err != nil {
		return nil, err
	}
	return e.Sign(by)
}

// hear lets one server know what another one knows.
func (s *story) hear(t, from *teller) {
	for id := range from.known {
		t.known[id] = true
	}
	var tips []matrix.EventID
	for _, id := range unique(slices.Concat(t.tips, from.tips)) {
		if !s.covered(id, slices.Concat(t.tips, from.tips)) {
			tips = append(tips, id)
		}
	}
	t.tips = tips
}

// covered reports whether an event lies before any of others.
func (s *story) covered(id matrix.EventID, others []matrix.EventID) bool {
	seen := map[matrix.EventID]bool{}
	next := []matrix.EventID{}
	for _, o := range others {
		next = append(next, s.events[o].PrevEvents()...)
	}
	for len(next) > 0 {
		o := next[0]
		next = next[1:]
		if o == id {
			return true
		}
		if !seen[o] {
			seen[o] = true
			next = append(next, s.events[o].PrevEvents()...)
		}
	}
	return false
}

// ends are the events that nothing is built on, the rejected left out.
func (s *story) ends() (out []matrix.EventID) {
	for _, id := range s.order {
		if !s.rejected[id] && !s.covered(id, s.accepted()) {
			out = append(out, id)
		}
	}
	return out
}

func (s *story) accepted() (out []matrix.EventID) {
	for _, id := range s.order {
		if !s.rejected[id] {
			out = append(out, id)
		}
	}
	return out
}

// grow adds n events.
func (s *story) grow(n int) error {
	for tries := 0; n > 0 && s.err == nil && tries < 50*n+1000; tries++ {
		t := s.servers[s.rnd.IntN(len(s.servers))]
		if s.rnd.IntN(5) == 0 {
			s.hear(t, s.servers[s.rnd.IntN(len(s.servers))])
			continue
		}
		var e *events.Event
		if t.evil && s.rnd.IntN(3) == 0 {
			e = s.evil(t)
		} else {
			e = s.honest(t)
		}
		if e == nil {
			continue
		}
		s.place(t, e)
		n--
	}
	return s.err
}

// honest builds on what its server knows; what is not allowed is not sent, but by
// a server that does not care.
func (s *story) honest(t *teller) *events.Event {
	a := s.act(t, s.stateAt(t.tips))
	e := s.make(t, a.sender, a.typ, a.key, a.content, t.tips, nil, a.redacts)
	if e == nil || !t.evil && !s.verdictOf(e) {
		return nil
	}
	return e
}

func (s *story) verdictOf(e *events.Event) bool {
	return s.verdict(e, s.stateAt(e.PrevEvents()))
}

// evil builds on whatever it likes, and has it authorised by whatever has ever been.
func (s *story) evil(t *teller) *events.Event {
	known := slices.DeleteFunc(slices.Clone(s.order), func(id matrix.EventID) bool { return !t.known[id] })
	var prev []matrix.EventID
	newest := len(known) - s.base + 1 // a fork from before somebody came may throw him out
	if s.rnd.IntN(40) == 0 {
		newest = len(known)
	}
	for range 1 + s.rnd.IntN(3) {
		prev = append(prev, known[len(known)-1-s.rnd.IntN(min(newest, 25))])
	}
	prev = unique(prev)
	if s.rnd.IntN(3) > 0 {
		prev = t.tips
	}
	a := s.act(t, s.stateAt(prev))
	other := s.after(known[len(known)/3+s.rnd.IntN(len(known)-len(known)/3)]) // some state of old
	e := s.make(t, a.sender, a.typ, a.key, a.content, prev, nil, a.redacts)
	if e == nil {
		return nil
	}
	auth := []matrix.EventID{}
	for _, k := range s.needed(e) {
		from := other
		if s.rnd.IntN(2) == 0 {
			from = s.stateAt(prev)
		}
		if id := from[k]; id != "" && s.rnd.IntN(12) > 0 {
			auth = append(auth, id)
		}
	}
	if s.rnd.IntN(12) == 0 {
		auth = append(auth, known[s.rnd.IntN(len(known))])
	}
	return s.make(t, a.sender, a.typ, a.key, a.content, prev, unique(auth), a.redacts)
}
