// Package presence tells users who share a room whether the others are online.
// It lives in memory; of each user the last word (status message and time of
// the last activity) is stored now and then.
//
// Table: presence.
//
// Spec: client-server-api#presence, server-server-api#presence
//
// Invariants: a user's presence is shown to users who share a room with them,
// and to themselves; changes that fall together wake clients once; switched
// off, nothing is kept or sent.
package presence

import (
	"context"
	"embed"
	"fmt"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// The states of presence.
const (
	Online      = "online"
	Unavailable = "unavailable"
	Offline     = "offline"
)

// Times after which the server decides by itself.
const (
	activeFor   = time.Minute      // currently_active after an activity
	idleAfter   = 5 * time.Minute  // online becomes unavailable
	goneAfter   = 30 * time.Second // after the last /sync has ended
	remoteLasts = 30 * time.Minute // what another server said and never repeated
	gather      = 500 * time.Millisecond
	saveEvery   = time.Minute
)

// State is a user's presence.
type State struct {
	User            matrix.UserID
	Presence        string
	Status          string
	LastActive      time.Time // zero: never seen
	CurrentlyActive bool
}

// entry is what is known of a user.
type entry struct {
	State
	seq     int64
	syncs   int       // /sync requests under way
	gone    time.Time // when the last of them ended
	wish    string    // state set by the user, while connected: online or unavailable
	touched time.Time // of remote users
	unsaved bool
}

// Presence is the module.
type Presence struct {
	db      *sqldb.DB
	enabled bool
	local   matrix.ServerName
	hub     *hub.Hub
	now     matrix.Now

	mu        sync.RWMutex
	users     map[matrix.UserID]*entry
	log       []change // by number; the newest of each user is always in it
	pending   map[matrix.UserID]struct{}
	ring      chan struct{} // capacity one: pending is not empty; full is as good
	listeners []func(State)
}

type change struct {
	seq  int64
	user matrix.UserID
}

//go:embed schema
var schema embed.FS

const (
	qAll  = `SELECT user_id, status_msg, last_active FROM presence`
	qSave = `INSERT INTO presence (user_id, status_msg, last_active) VALUES ($1, $2, $3)
ON CONFLICT (user_id) DO UPDATE SET status_msg = excluded.status_msg, last_active = excluded.last_active`
)

// New reads the last words. Call it before the log runs.
func New(ctx context.Context, db *sqldb.DB, l *stream.Log, enabled bool, server matrix.ServerName, h *hub.Hub, now matrix.Now) (*Presence, error) {
	if err := db.Migrate(ctx, "presence", schema); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	p := &Presence{
		db: db, enabled: enabled, local: server, hub: h, now: now,
		users: make(map[matrix.UserID]*entry), pending: make(map[matrix.UserID]struct{}), ring: make(chan struct{}, 1),
	}
	if !enabled {
		return p, nil
	}
	err := db.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := sqldb.Select(tx, func(r *sqldb.Rows) (*entry, error) {
			e := &entry{State: State{Presence: Offline}}
			var ms int64
			err := r.Scan(&e.User, &e.Status, &ms)
			e.LastActive = time.UnixMilli(ms)
			return e, err
		}, qAll)
		for _, e := range rows {
			p.users[e.User] = e
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading presence: %w", err)
	}
	l.Subscribe(p.hear)
	return p, nil
}

// Enabled reports whether the server offers presence.
func (p *Presence) Enabled() bool { return p.enabled }

// Subscribe registers fn for changes of local users, so that other servers and
// application services can be told. Register before serving; fn must not block.
func (p *Presence) Subscribe(fn func(State)) { p.listeners = append(p.listeners, fn) }

// Set is what a user says of themselves: it counts as an activity.
func (p *Presence) Set(user matrix.UserID, state, status string) {
	if !p.enabled {
		return
	}
	p.mu.Lock()
	e := p.entry(user)
	old := e.State
	e.Presence, e.Status, e.wish, e.unsaved = state, status, state, true
	if state != Offline {
		e.LastActive = p.now()
	}
	e.CurrentlyActive = state == Online
	if e.syncs == 0 {
		e.gone = p.now()
	}
	told := p.changed(e, old)
	p.mu.Unlock()
	p.tell(told)
}

// Connect says that a /sync of the user begins, with its set_presence (empty is
// online; offline leaves the presence alone). The returned function ends it.
//
// Spec: get_matrixclientv3sync
func (p *Presence) Connect(user matrix.UserID, set string) (done func()) {
	if !p.enabled || set == Offline {
		return func() {}
	}
	if set != Unavailable {
		set = Online
	}
	p.mu.Lock()
	e := p.entry(user)
	old := e.State
	e.syncs++
	switch {
	case set == Unavailable:
		e.Presence, e.CurrentlyActive = Unavailable, false
	case e.wish == Offline: // said so explicitly, until they say otherwise
	case e.Presence == Offline:
		e.Presence, e.LastActive, e.CurrentlyActive, e.unsaved = Online, p.now(), true, true
		if e.wish == Unavailable {
			e.Presence, e.CurrentlyActive = Unavailable, false
		}
	}
	told := p.changed(e, old)
	p.mu.Unlock()
	p.tell(told)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		e.syncs--
		e.gone = p.now()
	}
}

// Active says that the user did something: it brings them online.
func (p *Presence) Active(user matrix.UserID) {
	if !p.enabled {
		return
	}
	p.mu.Lock()
	e := p.entry(user)
	old := e.State
	e.LastActive, e.unsaved = p.now(), true
	if e.wish != Offline {
		e.Presence, e.CurrentlyActive, e.wish = Online, true, ""
	}
	if e.syncs == 0 {
		e.gone = p.now()
	}
	told := p.changed(e, old)
	p.mu.Unlock()
	p.tell(told)
}

// hear takes messages of local users for activity.
func (p *Presence) hear(changes []stream.Change) {
	for i := range changes {
		e, ok := changes[i].Payload.(*events.Event)
		if ok && changes[i].Kind == stream.KindEvent && !e.IsState() && e.Sender.Server() == p.local {
			p.Active(e.Sender)
		}
	}
}

func (p *Presence) entry(user matrix.UserID) *entry {
	e := p.users[user]
	if e == nil {
		e = &entry{State: State{User: user, Presence: Offline}}
		p.users[user] = e
	}
	return e
}

// changed gives an entry a new number if others have to hear of the change. It
// returns a copy for the listeners then.
func (p *Presence) changed(e *entry, old State) *State {
	if e.Presence == old.Presence && e.Status == old.Status && e.CurrentlyActive == old.CurrentlyActive {
		return nil // the last activity alone is not news
	}
	e.seq = p.hub.NextEphemeral()
	p.log = append(p.log, change{e.seq, e.User})
	if len(p.log) > 2*len(p.users)+1000 {
		kept := p.log[:0]
		for _, c := range p.log {
			if p.users[c.user].seq == c.seq {
				kept = append(kept, c)
			}
		}
		p.log = kept
	}
	p.hub.MarkPresence(e.User, e.seq)
	p.pending[e.User] = struct{}{}
	select {
	case p.ring <- struct{}{}:
	default:
	}
	s := e.State
	return &s
}

func (p *Presence) tell(s *State) {
	if s == nil || s.User.Server() != p.local {
		return
	}
	for _, fn := range p.listeners {
		fn(*s)
	}
}

// Run wakes clients for changes, lets users go idle and offline, and stores the
// last words.
func (p *Presence) Run(ctx context.Context) error {
	if !p.enabled {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	saved := p.now()
	for {
		select {
		case <-p.ring:
			select {
			case <-time.After(gather):
			case <-ctx.Done():
			}
			p.wakeAll()
		case <-tick.C:
			p.age()
			if now := p.now(); now.Sub(saved) >= saveEvery {
				saved = now
				p.save(ctx)
			}
		case <-ctx.Done():
			p.save(context.WithoutCancel(ctx))
			return nil
		}
	}
}

func (p *Presence) wakeAll() {
	p.mu.Lock()
	users := p.pending
	p.pending = make(map[matrix.UserID]struct{})
	p.mu.Unlock()
	for u := range users {
		p.hub.WakePresence(u)
	}
}

// age moves users on whom nothing was heard of.
//
// Spec: client-server-api#idle-timeout
func (p *Presence) age() {
	var told []*State
	p.mu.Lock()
	now := p.now()
	for _, e := range p.users {
		if e.Presence == Offline {
			continue
		}
		old := e.State
		local := e.User.Server() == p.local
		switch {
		case local && e.syncs == 0 && now.Sub(e.gone) > goneAfter, !local && now.Sub(e.touched) > remoteLasts:
			e.Presence, e.CurrentlyActive = Offline, false
			if e.wish != Unavailable {
				e.wish = ""
			}
		case !local:
		case e.Presence == Online && now.Sub(e.LastActive) > idleAfter:
			e.Presence, e.CurrentlyActive = Unavailable, false
		case e.CurrentlyActive && now.Sub(e.LastActive) > activeFor:
			e.CurrentlyActive = false
		}
		if s := p.changed(e, old); s != nil {
			told = append(told, s)
		}
	}
	p.mu.Unlock()
	for _, s := range told {
		p.tell(s)
	}
}

func (p *Presence) save(ctx context.Context) {
	type row struct {
		user   string
		status string
		active int64
	}
	var rows []row
	p.mu.Lock()
	for _, e := range p.users {
		if e.unsaved && e.User.Server() == p.local {
			rows = append(rows, row{string(e.User), e.Status, matrix.Millis(e.LastActive)})
		}
		e.unsaved = false
	}
	p.mu.Unlock()
	if len(rows) == 0 {
		return
	}
	err := p.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, r := range rows {
			if _, err := tx.Exec(qSave, r.user, r.status, r.active); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		log.WithError(err).Warn("storing presence")
	}
}
