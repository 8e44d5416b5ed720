// Package federation speaks with other servers: it answers their requests, takes their transactions, and sends
// what happens here to those that are concerned.
//
// It owns the tables fed_queue, fed_behind, fed_owed, fed_destinations, fed_position and openid_tokens and implements the
// server-server specification
// but for keys (serverkeys) and discovery (fedclient). What a foreign event does to a room is decided in rooms.
//
// Invariants: a request is answered only after its signature is proved; what waits for a server is stored in the
// transaction that moves the place in the log, so a restart neither loses nor doubles it; a transaction keeps its
// ID and its rows however often it is tried; a server that fails holds up nobody else.
//
// Spec: server-server-api
package federation

import (
	"context"
	"embed"
	"time"

	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/carillon-chat/carillon/homeserver/typing"
	"github.com/prometheus/client_golang/prometheus"
)

//go:embed schema/*.sql
var schemaFS embed.FS

// Media serves local media to other servers; the handlers write the multipart answer themselves.
type Media interface {
	ServeFederationDownload(c *httpapi.Call) (any, error)
	ServeFederationThumbnail(c *httpapi.Call) (any, error)
}

// Parts are what federation speaks for. Typing, Presence, Profiles, Directory and Media may be nil.
type Parts struct {
	Client    *fedclient.Client
	Hub       *hub.Hub
	Rooms     *rooms.Rooms
	Events    *events.Store
	Receipts  *receipts.Receipts
	Typing    *typing.Typing
	Presence  *presence.Presence
	Keys      *e2ee.Service
	Profiles  *profiles.Profiles
	Directory *directory.Directory
	Media     Media
	// Version is this server's version, which anybody may ask for.
	Version string
	// Metrics is where figures are hung; nil where nobody reads them.
	Metrics prometheus.Registerer
	// Now is the clock; time.Now when nil.
	Now matrix.Now
}

// Federation is the server's part in the federation.
type Federation struct {
	own    matrix.ServerName
	db     *sqldb.DB
	parts  Parts
	queue  *queue
	reader *reader
	txns   transactions
	// questions are those of other servers that this one answers by itself.
	questions *crowd
}

// New prepares federation. Call it after the hub and the features are made, and before the log runs.
func New(ctx context.Context, db *sqldb.DB, l *stream.Log, parts Parts) (*Federation, error) {
	if err := db.Migrate(ctx, "federation", schemaFS); err != nil {
		return nil, err
	}
	if parts.Now == nil {
		parts.Now = time.Now
	}
	f := &Federation{own: parts.Client.Server(), db: db, parts: parts}
	f.queue = newQueue(db, f.own, parts.Client, parts.Now, parts.Metrics)
	f.queue.content, f.queue.owed = f.pdus, f.owed
	turnedAway := func() { f.meters().turnAway.Inc() }
	f.txns.turns, f.txns.slots = newCrowd(oneAtATime, moreTransactions, turnedAway), gate.NewSemaphore(transactionsAtOnce)
	f.questions = newCrowd(askAtATime, moreQuestions, turnedAway)
	if err := f.queue.load(ctx); err != nil {
		return nil, err
	}
	f.reader = &reader{
		own: f.own, db: db, log: l, queue: f.queue, events: parts.Events, rooms: parts.Rooms, receipts: parts.Receipts,
		keys: parts.Keys, bell: make(chan struct{}, 1), head: l.Head(), held: newHolding(f.own), now: parts.Now,
		servers: &roomServers{own: f.own, hub: parts.Hub, rooms: map[matrix.RoomID]*remoteMembers{}},
	}
	l.Subscribe(f.reader.hear)
	if parts.Typing != nil {
		parts.Typing.Subscribe(f.sendTyping)
	}
	if parts.Presence != nil {
		parts.Presence.Subscribe(f.sendPresence)
	}
	return f, nil
}

func (f *Federation) meters() *meters { return f.queue.meters }

// Run sends to other servers until ctx ends.
func (f *Federation) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.queue.run(ctx)
	}()
	err := f.reader.run(ctx)
	<-done
	return err
}

// Alive is told of each server that has made a proved request: what waits for it is sent at once.
func (f *Federation) Alive(server matrix.ServerName) {
	f.parts.Client.Alive(server)
	f.queue.alive(server)
}

// pdus reads events to be sent.
func (f *Federation) pdus(ctx context.Context, ids []matrix.EventID) (map[matrix.EventID][]byte, error) {
	out := make(map[matrix.EventID][]byte, len(ids))
	err := f.db.Read(ctx, func(tx *sqldb.Tx) error {
		list, err := f.parts.Events.GetMany(tx, ids)
		if err != nil {
			return err
		}
		for id, e := range list {
			if !e.Rejected() {
				out[id] = e.JSON
			}
		}
		return nil
	})
	return out, err
}

func (f *Federation) sendTyping(u typing.Update) {
	for _, s := range f.reader.servers.of(u.Room) {
		f.queue.volatile(s, false, func(v *volatile) { v.addTyping(u.Room, u.User, u.Typing) })
	}
}

func (f *Federation) sendPresence(s presence.State) {
	to := f.reader.servers.sharing(s.User)
	if len(to) == 0 {
		return
	}
	p := s.EDU(f.parts.Now())
	for _, server := range to {
		f.queue.volatile(server, true, func(v *volatile) { v.addPresence(p) })
	}
}
