package search

import (
	"cmp"
	"context"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	// maxWaiting is how many events wait in memory to be indexed. When there are
	// more they are forgotten and read from the database instead.
	maxWaiting = 4096
	// perCommit is how many of them are indexed in one commit, which others wait for.
	perCommit = 200
	// unsaved is how far the log may run ahead, with nothing in it to be indexed,
	// before the position is stored.
	unsaved = 20_000
)

const (
	relevantTypes = `(type = 'm.room.message' OR type = 'm.room.name' OR type = 'm.room.topic' OR redacts <> '')`
	qOfRoom       = `SELECT ` + events.Columns + ` FROM events WHERE room_id = $1 AND pos > $2 AND pos <= $3 AND pos <> 0 AND ` + relevantTypes + ` ORDER BY pos`
	qHistory      = `SELECT ` + events.Columns + ` FROM events WHERE pos < $1 AND pos < 0 ORDER BY pos DESC LIMIT $2`
	qEdits        = `SELECT ` + events.Columns + ` FROM events WHERE rel_to = ANY($1) AND rel_to <> '' AND rel_type = 'm.replace' AND pos <> 0 AND flags & 7 = 0`
	qBySource     = `SELECT nid FROM search_docs WHERE source = ANY($1) AND source <> 0`
	qPutDoc       = `INSERT INTO search_docs (doc, nid, room_id, sender, field, terms, source) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (doc) DO UPDATE SET terms = excluded.terms, source = excluded.source`
	qRemoveDoc = `DELETE FROM search_docs WHERE doc = $1`
)

// field says which key of which event type a text comes from.
type field int

const (
	unsearched field = iota
	bodyField
	nameField
	topicField
)

// fieldsByKey are the keys that clients can ask for.
var fieldsByKey = map[string]field{"content.body": bodyField, "content.name": nameField, "content.topic": topicField}

// typesOf are the event types of the fields.
var typesOf = map[field]string{bodyField: "m.room.message", nameField: "m.room.name", topicField: "m.room.topic"}

func fieldOf(e *events.Event) field {
	if e.StateKey == nil {
		if e.Type == "m.room.message" {
			return bodyField
		}
		return unsearched
	}
	switch {
	case *e.StateKey != "":
	case e.Type == "m.room.name":
		return nameField
	case e.Type == "m.room.topic":
		return topicField
	}
	return unsearched
}

func relevant(e *events.Event) bool {
	return !e.Hidden() && e.Pos != 0 && (fieldOf(e) != unsearched || e.Redacts != "")
}

func isEdit(e *events.Event) bool { return e.RelType == "m.replace" && fieldOf(e) == bodyField }

// textOf is what an event is found by. Spec: client-server-api#search-categories
func textOf(e, edit *events.Event) string {
	content := gjson.ParseBytes(e.Content())
	str := func(r gjson.Result) string {
		if r.Type != gjson.String {
			return ""
		}
		return r.Str
	}
	switch fieldOf(e) {
	case bodyField:
		if edit != nil {
			return str(gjson.GetBytes(edit.Content(), `m\.new_content.body`))
		}
		body := str(content.Get("body"))
		if content.Get(`m\.relates_to.m\.in_reply_to`).Exists() {
			return withoutQuote(body)
		}
		return body
	case nameField:
		return str(content.Get("name"))
	case topicField:
		topic := str(content.Get("topic"))
		for _, r := range content.Get(`m\.topic.m\.text`).Array() {
			if m := r.Get("mimetype"); (!m.Exists() || m.Str == "text/plain") && str(r.Get("body")) != topic {
				topic += "\n" + str(r.Get("body"))
			}
		}
		return topic
	}
	return ""
}

// withoutQuote drops what older clients repeat of the message that they reply to.
func withoutQuote(body string) string {
	if !strings.HasPrefix(body, "> <") && !strings.HasPrefix(body, "> * <") {
		return body
	}
	for strings.HasPrefix(body, ">") {
		_, rest, ok := strings.Cut(body, "\n")
		if !ok {
			return ""
		}
		body = rest
	}
	return body
}

// scopeName is a short name of a room or a sender among the terms. Two may share
// one; what is found is checked again.
func scopeName(kind, s string) string {
	h := fnv.New64a()
	h.Write([]byte(s))
	return kind + strconv.FormatUint(h.Sum64(), 36)
}

func roomScope(r matrix.RoomID) string   { return scopeName("r", string(r)) }
func senderScope(u matrix.UserID) string { return scopeName("u", string(u)) }
func fieldScope(f field) string          { return "f" + strconv.Itoa(int(f)) }

// hear takes in a commit.
func (s *Search) hear(changes []stream.Change) {
	if len(changes) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = changes[len(changes)-1].Pos
	before := len(s.waiting)
	for i := range changes {
		if e, ok := changes[i].Payload.(*events.Event); ok && changes[i].Kind == stream.KindEvent && relevant(e) {
			s.waiting = append(s.waiting, e)
		}
	}
	if len(s.waiting) == before {
		return
	}
	if len(s.waiting) > maxWaiting {
		s.waiting, s.from = nil, s.to
	}
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

// take gives what waits next and the position up to which that is all. With
// behind, the log must be read up to there instead.
func (s *Search) take() (list []*events.Event, to stream.Pos, behind bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done.upto < s.from {
		return nil, s.from, true
	}
	list, to = s.waiting, s.to
	if len(list) > perCommit {
		list, to = list[:perCommit], list[perCommit-1].Pos
	}
	// From here on this stretch is in the database only, should indexing fail.
	s.waiting, s.from = s.waiting[len(list):], to
	if len(s.waiting) == 0 {
		s.waiting = nil
	}
	return list, to, false
}

// step does a bounded piece of the work and reports whether there is more, up to
// a position of the log.
func (s *Search) step(ctx context.Context, target stream.Pos) (more bool, err error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	list, to, behind := s.take()
	p := s.done
	if behind {
		if list, p.upto, err = s.fromLog(ctx, s.done.upto, to); err != nil {
			return false, err
		}
	} else {
		p.upto = max(to, p.upto)
	}
	if err := s.absorb(ctx, list, !behind, p); err != nil {
		return false, err
	}
	old, err := s.fromHistory(ctx)
	if err != nil {
		return false, err
	}
	if len(old) > 0 {
		p.downto = old[len(old)-1].Pos
		if err := s.absorb(ctx, old, false, p); err != nil {
			return false, err
		}
	}
	return s.done.upto < target || len(old) == perCommit, nil
}

// fromLog reads a stretch of the log, and how far it has come.
func (s *Search) fromLog(ctx context.Context, from, to stream.Pos) (list []*events.Event, upto stream.Pos, err error) {
	changes, err := s.Log.Changes(ctx, from, to, perCommit)
	if err != nil {
		return nil, 0, err
	}
	if len(changes) == perCommit {
		to = changes[perCommit-1].Pos
	}
	seen := map[matrix.RoomID]bool{}
	err = s.DB.Read(ctx, func(tx *sqldb.Tx) error {
		list = nil
		clear(seen)
		for _, c := range changes {
			if c.Kind != stream.KindEvent || seen[c.Room] {
				continue
			}
			seen[c.Room] = true
			rows, err := sqldb.Select(tx, events.Scan, qOfRoom, string(c.Room), int64(from), int64(to))
			if err != nil {
				return err
			}
			list = append(list, rows...)
		}
		return nil
	})
	return list, to, err
}

// fromHistory reads some of the history that was fetched and is not indexed yet.
func (s *Search) fromHistory(ctx context.Context) (list []*events.Event, err error) {
	err = s.DB.Read(ctx, func(tx *sqldb.Tx) error {
		list, err = sqldb.Select(tx, events.Scan, qHistory, int64(s.done.downto), perCommit)
		return err
	})
	return list, err
}

// entry is a document as it is to be.
type entry struct {
	event  *events.Event
	source int64
	terms  []string
}

// absorb brings the index up to date with events and saves the progress in the
// same commit. Live events have just been published: those of this server cannot
// have been edited before.
func (s *Search) absorb(ctx context.Context, list []*events.Event, live bool, p progress) error {
	entries, err := s.entries(ctx, list, live)
	if err != nil {
		return err
	}
	if len(entries) == 0 && p.downto == s.done.downto && p.upto < s.save+unsaved {
		s.done = p
		return nil
	}
	err = s.DB.Write(ctx, func(tx *sqldb.Tx) error {
		for _, e := range entries {
			if err := s.store(tx, e); err != nil {
				return err
			}
		}
		_, err := tx.Exec(qSaveProgress, int64(p.upto), int64(p.downto))
		return err
	})
	if err == nil {
		s.done, s.save = p, p.upto
	}
	return err
}

func (s *Search) store(tx *sqldb.Tx, e entry) error {
	ev := e.event
	doc := int64(ev.Pos)
	if len(e.terms) == 0 {
		n, err := tx.Exec(qRemoveDoc, doc)
		if err != nil || n == 0 {
			return err
		}
		return s.terms.remove(tx, doc)
	}
	f := fieldOf(ev)
	if _, err := tx.Exec(qPutDoc, doc, ev.NID, string(ev.Room), string(ev.Sender), int(f), len(e.terms), e.source); err != nil {
		return err
	}
	return s.terms.put(tx, doc, e.terms, []string{roomScope(ev.Room), fieldScope(f), senderScope(ev.Sender)})
}

// entries works out which documents the events change, in their order.
func (s *Search) entries(ctx context.Context, list []*events.Event, live bool) ([]entry, error) {
	docs := map[matrix.EventID]*events.Event{}
	var again, redacted, edited []matrix.EventID
	for _, e := range list {
		if !relevant(e) {
			continue
		}
		if e.Redacts != "" {
			redacted = append(redacted, e.Redacts)
		}
		switch {
		case fieldOf(e) == unsearched:
		case isEdit(e):
			again = append(again, e.RelTo)
		default:
			docs[e.ID] = e
			if !live || e.Sender.Server() != s.Rooms.Server() {
				edited = append(edited, e.ID)
			}
		}
	}
	edits := map[matrix.EventID]*events.Event{}
	if len(again)+len(redacted)+len(edited) > 0 {
		err := s.DB.Read(ctx, func(tx *sqldb.Tx) error { return s.look(tx, docs, edits, again, redacted, edited) })
		if err != nil {
			return nil, err
		}
	}
	out := make([]entry, 0, len(docs))
	for _, e := range docs {
		x := entry{event: e}
		edit := edits[e.ID]
		if edit != nil {
			x.source = edit.NID
		}
		x.terms = Terms(textOf(e, edit))
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b entry) int { return cmp.Compare(a.event.Pos, b.event.Pos) })
	return out, nil
}

// look reads the events whose text has changed by edits or redactions, and the
// edit that holds for each.
func (s *Search) look(tx *sqldb.Tx, docs, edits map[matrix.EventID]*events.Event, again, redacted, edited []matrix.EventID) error {
	gone, err := s.Events.GetMany(tx, redacted)
	if err != nil {
		return err
	}
	var sources []int64
	for id, e := range gone {
		again = append(again, id)
		sources = append(sources, e.NID)
	}
	if len(sources) > 0 { // of redacted edits: their text was that of another event
		nids, err := sqldb.Select(tx, func(r *sqldb.Rows) (n int64, err error) { err = r.Scan(&n); return n, err }, qBySource, sources)
		if err != nil {
			return err
		}
		originals, err := s.Events.ByNID(tx, nids)
		if err != nil {
			return err
		}
		for _, e := range originals {
			again = append(again, e.ID)
		}
	}
	fresh, err := s.Events.GetMany(tx, again)
	if err != nil {
		return err
	}
	for id, e := range fresh {
		if relevant(e) && fieldOf(e) != unsearched && !isEdit(e) {
			docs[id] = e
			edited = append(edited, id)
		}
	}
	ids := make([]string, len(edited))
	for i, id := range edited {
		ids[i] = string(id)
	}
	rows, err := sqldb.Select(tx, events.Scan, qEdits, ids)
	if err != nil {
		return err
	}
	for _, e := range rows {
		if o := docs[e.RelTo]; o != nil && replaces(e, o) && newer(e, edits[e.RelTo]) {
			edits[e.RelTo] = e
		}
	}
	return nil
}

// replaces reports whether an edit holds.
// Spec: client-server-api#validity-of-replacement-events
func replaces(edit, o *events.Event) bool {
	return isEdit(edit) && !o.Redacted() && o.Room == edit.Room && o.Sender == edit.Sender && fieldOf(o) == bodyField && !isEdit(o) &&
		gjson.GetBytes(edit.Content(), `m\.new_content`).IsObject()
}

func newer(e, than *events.Event) bool {
	return than == nil || e.TS > than.TS || e.TS == than.TS && e.ID > than.ID
}
