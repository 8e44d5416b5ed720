package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// archive is the other servers of the rooms of stories: it has all their events and
// says of them what is true, or what a test has it say.
type archive struct {
	mu      sync.Mutex
	stories map[matrix.RoomID]*story
	// lie says what is not true in place of some answers.
	lie lies
	// asked counts the requests.
	asked map[string]int
}

// lies are answers that are not true; nil for those that are.
type lies struct {
	missing   []json.RawMessage
	events    map[matrix.EventID]json.RawMessage
	endless   func(id matrix.EventID) json.RawMessage
	states    []matrix.EventID
	chain     []matrix.EventID
	eventAuth []json.RawMessage
	noChain   bool // there is no answer to a question for a chain
}

func newArchive() *archive {
	return &archive{stories: map[matrix.RoomID]*story{}, asked: map[string]int{}}
}

func (a *archive) add(s *story) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stories[s.room] = s
}

func (a *archive) of(what string, room matrix.RoomID) *story {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked[what]++
	return a.stories[room]
}

var errSilent = errors.New("nobody answers")

// Verify checks signatures with the keys that servers have by their names.
func (a *archive) Verify(_ context.Context, version string, pdus []json.RawMessage) []error {
	errs := make([]error, len(pdus))
	for i, raw := range pdus {
		errs[i] = verify(gomatrixserverlib.RoomVersion(version), raw)
	}
	return errs
}

func verify(version gomatrixserverlib.RoomVersion, raw json.RawMessage) error {
	pdu, err := matrix.CanonicalJSON(raw, false)
	if err != nil {
		return err
	}
	servers, _, err := events.Signers(pdu, version)
	if err != nil {
		return err
	}
	redacted, err := events.RedactPDU(pdu, version)
	if err != nil {
		return err
	}
	for _, s := range servers {
		if err := gomatrixserverlib.VerifyJSON(string(s), "ed25519:1", publicOf(s), redacted); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) HasKeys(context.Context, matrix.ServerName, bool) (bool, error) { return true, nil }

// MissingEvents walks back from latest to earliest.
func (a *archive) MissingEvents(_ context.Context, _ matrix.ServerName, room matrix.RoomID, earliest, latest []matrix.EventID, limit int) ([]json.RawMessage, error) {
	s := a.of("missing", room)
	if a.lie.missing != nil {
		return a.lie.missing, nil
	}
	var out []json.RawMessage
	seen := map[matrix.EventID]bool{}
	next := slices.Clone(latest)
	for len(next) > 0 && len(out) < limit {
		e := s.events[next[0]]
		next = next[1:]
		if e == nil {
			continue
		}
		for _, id := range e.PrevEvents() {
			if p := s.events[id]; p != nil && !seen[id] && !slices.Contains(earliest, id) && len(out) < limit {
				seen[id] = true
				out, next = append(out, p.JSON), append(next, id)
			}
		}
	}
	slices.Reverse(out)
	return out, nil
}

func (a *archive) Event(_ context.Context, _ matrix.ServerName, id matrix.EventID) (json.RawMessage, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked["event"]++
	if raw := a.lie.events[id]; raw != nil {
		return raw, nil
	}
	if a.lie.endless != nil {
		return a.lie.endless(id), nil
	}
	for _, s := range a.stories {
		if e := s.events[id]; e != nil {
			return e.JSON, nil
		}
	}
	return nil, matrix.NotFound("%s is not known", id)
}

// StateIDs is the state before an event.
func (a *archive) StateIDs(_ context.Context, _ matrix.ServerName, room matrix.RoomID, at matrix.EventID) (st, chain []matrix.EventID, err error) {
	s := a.of("state_ids", room)
	if a.lie.states != nil {
		return a.lie.states, a.lie.chain, nil
	}
	if s.events[at] == nil {
		return nil, nil, matrix.NotFound("%s is not known", at)
	}
	for _, id := range s.before[at] {
		st = append(st, id)
	}
	for id := range s.fullChain(s.before[at]) {
		chain = append(chain, id)
	}
	return st, chain, nil
}

func (a *archive) State(ctx context.Context, server matrix.ServerName, room matrix.RoomID, at matrix.EventID) (RemoteState, error) {
	st, chain, err := a.StateIDs(ctx, server, room, at)
	if err != nil {
		return RemoteState{}, err
	}
	s := a.of("state", room)
	return RemoteState{State: s.raws(st), AuthChain: s.raws(chain)}, nil
}

func (a *archive) EventAuth(_ context.Context, _ matrix.ServerName, room matrix.RoomID, id matrix.EventID) ([]json.RawMessage, error) {
	s := a.of("event_auth", room)
	if a.lie.noChain {
		return nil, errSilent
	}
	if a.lie.eventAuth != nil {
		return a.lie.eventAuth, nil
	}
	var chain []matrix.EventID
	for c := range s.chains[id] {
		chain = append(chain, c)
	}
	return s.raws(chain), nil
}

func (s *story) raws(ids []matrix.EventID) (out []json.RawMessage) {
	for _, id := range ids {
		if e := s.events[id]; e != nil {
			out = append(out, e.JSON)
		}
	}
	return out
}

// What the observers never ask for.

func (a *archive) MakeJoin(context.Context, matrix.ServerName, matrix.RoomID, matrix.UserID, []string) (RemoteTemplate, error) {
	return RemoteTemplate{}, errSilent
}

func (a *archive) SendJoin(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID, json.RawMessage) (RemoteJoin, error) {
	return RemoteJoin{}, errSilent
}

func (a *archive) MakeLeave(context.Context, matrix.ServerName, matrix.RoomID, matrix.UserID) (RemoteTemplate, error) {
	return RemoteTemplate{}, errSilent
}

func (a *archive) SendLeave(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID, json.RawMessage) error {
	return errSilent
}

func (a *archive) MakeKnock(context.Context, matrix.ServerName, matrix.RoomID, matrix.UserID, []string) (RemoteTemplate, error) {
	return RemoteTemplate{}, errSilent
}

func (a *archive) SendKnock(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID, json.RawMessage) ([]json.RawMessage, error) {
	return nil, errSilent
}

func (a *archive) Invite(context.Context, matrix.ServerName, string, matrix.RoomID, matrix.EventID, json.RawMessage, []json.RawMessage) (json.RawMessage, error) {
	return nil, errSilent
}

func (a *archive) ExchangeThirdParty(context.Context, matrix.ServerName, matrix.RoomID, json.RawMessage) error {
	return errSilent
}

func (a *archive) Backfill(context.Context, matrix.ServerName, matrix.RoomID, []matrix.EventID, int) ([]json.RawMessage, error) {
	return nil, errSilent
}

func (a *archive) Nearest(context.Context, matrix.ServerName, matrix.RoomID, int64, bool) (matrix.EventID, int64, error) {
	return "", 0, errSilent
}

// observer is a server with a database of its own that keeps rooms of stories. Its
// one user says nothing in them.
type observer struct {
	*Rooms
	user matrix.UserID
}

func roomVersion(v string) gomatrixserverlib.RoomVersion { return gomatrixserverlib.RoomVersion(v) }

func observe(t testing.TB, n int, a *archive) *observer {
	t.Helper()
	return observeWith(t, n, a, sqldbtest.Open(t), 0)
}

func observeWith(t testing.TB, n int, a *archive, db *sqldb.DB, quiet time.Duration) *observer {
	t.Helper()
	ctx := context.Background()
	name := matrix.ServerName(fmt.Sprintf("o%d.test", n))
	l, err := stream.Open(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := events.New(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(ctx, db, l, ev, hub.New(l, name), Options{Signer: signerOf(name), Remote: a, Quiet: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return &observer{r, matrix.UserID("@o:" + string(name))}
}

// begin puts the observer into a story's room, where its user joins. Those who join
// after him it hears of as of all else.
func (o *observer) begin(ctx context.Context, s *story) error {
	for _, id := range s.order {
		e := s.events[id]
		if e.Sender != o.user {
			continue
		}
		ev, err := events.Parse(e.JSON, s.version)
		if err != nil {
			return err
		}
		var st []matrix.EventID
		for _, id := range s.before[id] {
			st = append(st, id)
		}
		var chain []matrix.EventID
		for c := range s.fullChain(s.before[id]) {
			chain = append(chain, c)
		}
		return o.enter(ctx, ev, RemoteJoin{RemoteState: RemoteState{State: s.raws(st), AuthChain: s.raws(chain)}})
	}
	return errors.New("the observer is not part of the story")
}

// hears has the observer receive an event as its sender's server would send it.
func (o *observer) hears(ctx context.Context, e *events.Event) (matrix.EventID, error) {
	return o.Receive(ctx, e.Sender.Server(), e.JSON)
}

// named is a state as the observer has it, by the names of events.
func (o *observer) named(tx *sqldb.Tx, all map[state.Key]int64) (stateMap, error) {
	var nids []int64
	for _, nid := range all {
		nids = append(nids, nid)
	}
	evs, err := o.events.ByNID(tx, nids)
	if err != nil {
		return nil, err
	}
	out := stateMap{}
	for k, nid := range all {
		if evs[nid] == nil {
			return nil, fmt.Errorf("the event of row %d is missing", nid)
		}
		out[k] = evs[nid].ID
	}
	return out, nil
}

// now is the current state and the tips of a room.
func (o *observer) now(ctx context.Context, room matrix.RoomID) (st stateMap, tips []matrix.EventID, err error) {
	rm, err := o.locked(ctx, room)
	if err != nil {
		return nil, nil, err
	}
	tips = slices.Clone(rm.tips)
	rm.mu.Unlock()
	err = o.db.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := state.Current(tx, room)
		if err != nil {
			return err
		}
		all := map[state.Key]int64{}
		for _, r := range rows {
			all[r.Key] = r.NID
		}
		st, err = o.named(tx, all)
		return err
	})
	return st, tips, err
}

// stateBefore is the state before an event that has its place.
func (o *observer) stateBefore(ctx context.Context, e *events.Event) (st stateMap, err error) {
	err = o.db.Read(ctx, func(tx *sqldb.Tx) error {
		v, err := state.ViewBefore(tx, e.NID, e.Pos)
		if err != nil {
			return err
		}
		all, err := v.All(tx, e.Room)
		if err != nil {
			return err
		}
		st, err = o.named(tx, all)
		return err
	})
	return st, err
}
