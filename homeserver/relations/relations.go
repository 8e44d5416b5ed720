// Package relations knows which events relate to which: it lists an event's
// children, a room's threads, and bundles edits, references and thread summaries
// with the events that clients read.
//
// What an event relates to stands in its row, and two indexes on package events'
// table are made here. The threads of a room that somebody asks about are held in
// memory, kept true by the log. Relations by the field m.relationship are a graph of
// their own, which is walked over all servers of a room.
//
// Tables: relations_claims (what other servers say of events' children).
//
// Spec: client-server-api#forming-relationships-between-events,
// client-server-api#threading, client-server-api#event-replacements,
// client-server-api#reference-relations, MSC2836
//
// Invariants: events of ignored users are in no bundle; a redacted event relates
// to nothing.
package relations

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

// The relation types that the server aggregates.
const (
	relReplace   = "m.replace"
	relThread    = "m.thread"
	relReference = "m.reference"
)

const qBundled = `SELECT ` + events.Columns + ` FROM events WHERE rel_to = ANY($1) AND rel_to <> ''
AND (rel_type = 'm.replace' OR rel_type = 'm.reference') AND pos <> 0 AND flags & 7 = 0 ORDER BY pos`

// Relations is the module.
type Relations struct {
	db    *sqldb.DB
	store *events.Store
	data  *accountdata.Data
	now   matrix.Now

	erasure Erasure // nil: nothing is erased

	mu    sync.RWMutex
	rooms map[matrix.RoomID]*roomThreads
	heard map[matrix.RoomID]stream.Pos // newest change of threads since the start
}

// New prepares the module. Call it after package events and before the log runs.
func New(ctx context.Context, db *sqldb.DB, l *stream.Log, store *events.Store, data *accountdata.Data, now matrix.Now) (*Relations, error) {
	if err := db.Migrate(ctx, "relations", schema); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	r := &Relations{db: db, store: store, data: data, now: now, rooms: make(map[matrix.RoomID]*roomThreads), heard: make(map[matrix.RoomID]stream.Pos)}
	l.Subscribe(r.hear)
	return r, nil
}

// Erasure finds those of some events whose content is erased for a reader, and gives their redacted forms.
type Erasure func(tx *sqldb.Tx, reader matrix.UserID, list []*events.Event) (map[matrix.EventID]*events.Event, error)

// SetErasure connects what knows of erased content. Call it before serving.
func (r *Relations) SetErasure(e Erasure) { r.erasure = e }

func (r *Relations) erasedFor(tx *sqldb.Tx, reader matrix.UserID, list []*events.Event) (map[matrix.EventID]*events.Event, error) {
	if r.erasure == nil {
		return nil, nil
	}
	return r.erasure(tx, reader, list)
}

// Bundle gives the m.relations of those events that have any. It makes one query
// for the edits and references of all events, and a few for each thread among
// them.
//
// Spec: client-server-api#aggregations-of-child-events
func (r *Relations) Bundle(ctx context.Context, tx *sqldb.Tx, user matrix.UserID, list []*events.Event) (map[matrix.EventID]json.RawMessage, error) {
	b := &bundler{r: r, tx: tx, user: user, ignored: r.data.Ignored(user)}
	bundles, err := b.bundle(ctx, list)
	if err != nil {
		return nil, fmt.Errorf("bundling relations: %w", err)
	}
	return bundles, nil
}

type bundler struct {
	r       *Relations
	tx      *sqldb.Tx
	user    matrix.UserID
	ignored accountdata.Ignored
}

// parts are the aggregations of one event.
type parts struct {
	Replace   json.RawMessage `json:"m.replace,omitempty"`
	Thread    *threadPart     `json:"m.thread,omitempty"`
	Reference *referencePart  `json:"m.reference,omitempty"`
}

type threadPart struct {
	Latest       json.RawMessage `json:"latest_event"`
	Count        int             `json:"count"`
	Participated bool            `json:"current_user_participated"`
}

type referencePart struct {
	Chunk []reference `json:"chunk"`
}

type reference struct {
	ID matrix.EventID `json:"event_id"`
}

func (b *bundler) bundle(ctx context.Context, list []*events.Event) (map[matrix.EventID]json.RawMessage, error) {
	all, err := b.plain(list)
	if err != nil {
		return nil, err
	}
	if err := b.threads(ctx, list, all); err != nil {
		return nil, err
	}
	out := make(map[matrix.EventID]json.RawMessage, len(all))
	for id, p := range all {
		raw, err := json.Marshal(p)
		if err != nil {
			return nil, err
		}
		out[id] = raw
	}
	return out, nil
}

// plain collects edits and references.
func (b *bundler) plain(list []*events.Event) (map[matrix.EventID]*parts, error) {
	all := make(map[matrix.EventID]*parts)
	byID := make(map[matrix.EventID]*events.Event, len(list))
	ids := make([]string, 0, len(list))
	for _, e := range list {
		byID[e.ID] = e
		ids = append(ids, string(e.ID))
	}
	if len(ids) == 0 {
		return all, nil
	}
	children, err := sqldb.Select(b.tx, events.Scan, qBundled, ids)
	if err != nil {
		return nil, err
	}
	erased, err := b.r.erasedFor(b.tx, b.user, children)
	if err != nil {
		return nil, err
	}
	edits := make(map[matrix.EventID]*events.Event)
	for _, c := range children {
		parent := byID[c.RelTo]
		if parent == nil || erased[c.ID] != nil || parent.Room != c.Room || b.ignored.Has(c.Sender) {
			continue
		}
		if c.RelType == relReplace {
			if validEdit(parent, c) && newer(c, edits[parent.ID]) {
				edits[parent.ID] = c
			}
			continue
		}
		p := part(all, parent.ID)
		if p.Reference == nil {
			p.Reference = &referencePart{}
		}
		p.Reference.Chunk = append(p.Reference.Chunk, reference{c.ID})
	}
	for id, e := range edits {
		part(all, id).Replace = b.client(e, nil)
	}
	return all, nil
}

func part(all map[matrix.EventID]*parts, id matrix.EventID) *parts {
	p := all[id]
	if p == nil {
		p = &parts{}
		all[id] = p
	}
	return p
}

// validEdit checks the conditions that a server can.
//
// Spec: client-server-api#validity-of-replacement-events
func validEdit(parent, edit *events.Event) bool {
	return !parent.Redacted() && parent.Sender == edit.Sender && parent.Type == edit.Type &&
		parent.StateKey == nil && edit.StateKey == nil && parent.RelType != relReplace &&
		(edit.Type == "m.room.encrypted" || hasNewContent(edit))
}

func newer(e, than *events.Event) bool {
	return than == nil || e.TS > than.TS || e.TS == than.TS && e.ID > than.ID
}

func (b *bundler) client(e *events.Event, relations json.RawMessage) json.RawMessage {
	return e.AppendClient(nil, events.ClientFormat{User: b.user, Now: b.r.now(), Relations: relations})
}
