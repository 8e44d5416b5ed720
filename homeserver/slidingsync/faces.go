package slidingsync

import (
	"slices"
	"sync"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// maxFaces bounds the faces kept.
const maxFaces = 50_000

// face is what lists and filters need of a room's state. It does not change.
type face struct {
	state     stream.Pos // the state is that right after it
	part      bool       // kind and encrypted are known, and nothing else
	kind      string     // type of the room
	encrypted bool
	name      string
	avatar    string
	children  map[matrix.RoomID]bool // of a space

	bump   stream.Pos // newest event that counts as activity
	bumpAt stream.Pos // looked for up to here
}

// faceKey names a face; at is 0 for the room as it is, else the room at the time
// when the user left it.
type faceKey struct {
	room matrix.RoomID
	at   stream.Pos
}

// faces keeps them for all users.
type faces struct {
	mu sync.RWMutex
	m  map[faceKey]*face
}

func (fs *faces) get(k faceKey) *face {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	return fs.m[k]
}

func (fs *faces) put(k faceKey, f *face) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.m) >= maxFaces {
		clear(fs.m)
	}
	fs.m[k] = f
}

// faceTypes is the state that makes a face.
var (
	faceTypes = []string{"m.room.create", "m.room.encryption", "m.room.name", "m.room.avatar"}
	partTypes = faceTypes[:2]
)

// current gives a room's face as it is kept, if that is still right.
func (w *work) current(e *entry) *face {
	if f := w.s.faces.get(faceKey{room: e.id}); f != nil && f.state >= min(e.room.LastState, w.to) {
		return f
	}
	return nil
}

const (
	// fewFaces are read one by one, more of them together, facePage at a time.
	fewFaces, facePage = 4, 500
)

// sortFaces reads, of all rooms at once, what filters by kind and encryption need
// and nobody has asked for yet: after a start that is each room of the user.
func (w *work) sortFaces(tx *sqldb.Tx, all []*entry) error {
	var lacking []*entry
	for _, e := range all {
		if e.joined() && w.current(e) == nil {
			lacking = append(lacking, e)
		}
	}
	if len(lacking) <= fewFaces {
		return nil
	}
	if tx == nil {
		return errNeedsDB
	}
	for page := range slices.Chunk(lacking, facePage) {
		if err := w.loadParts(tx, page); err != nil {
			return err
		}
	}
	return nil
}

// qTyped reads, of events m.room.create, those that may have a type in their content:
// the word stands in them a second time, or there are characters that are escaped.
// Most rooms have none, and need not be read at all.
const qTyped = `SELECT ` + events.Columns + ` FROM events WHERE nid = ANY($1) AND (json LIKE '%"type"%"type"%' OR json LIKE '%\u%' ESCAPE '!')`

func (w *work) loadParts(tx *sqldb.Tx, page []*entry) error {
	ids, made := make([]string, len(page)), make(map[matrix.RoomID]*face, len(page))
	for i, e := range page {
		ids[i] = string(e.id)
		f := &face{state: w.to, part: true}
		if old := w.s.faces.get(faceKey{room: e.id}); old != nil {
			f.bump, f.bumpAt = old.bump, old.bumpAt
		}
		made[e.id] = f
	}
	rows, err := state.RoomsAt(tx, ids, partTypes, w.to)
	if err != nil {
		return err
	}
	var creates []int64
	for _, r := range rows {
		if r.Type == "m.room.create" {
			creates = append(creates, r.NID)
		} else {
			made[r.Room].encrypted = true
		}
	}
	list, err := sqldb.Select(tx, events.Scan, qTyped, creates)
	if err != nil {
		return err
	}
	for _, e := range list {
		if f := made[e.Room]; f != nil {
			f.see(e.Type, gjson.ParseBytes(e.Content()))
		}
	}
	for id, f := range made {
		w.s.faces.put(faceKey{room: id}, f)
	}
	return nil
}

// sort gives at least the kind of a room and whether it is encrypted.
func (w *work) sort(tx *sqldb.Tx, e *entry) (*face, error) {
	if e.joined() {
		if f := w.current(e); f != nil {
			return f, nil
		}
	}
	return w.face(tx, e)
}

// face gives what a room looks like to the user.
func (w *work) face(tx *sqldb.Tx, e *entry) (*face, error) {
	switch e.membership {
	case "invite", "knock":
		return strippedFace(e.member.Stripped), nil
	case "join":
		k := faceKey{room: e.id}
		old := w.s.faces.get(k)
		if old != nil && !old.part && old.state >= min(e.room.LastState, w.to) {
			return old, nil
		}
		return w.loadFace(tx, k, w.to, old)
	}
	if !e.member.WasJoined {
		return &face{}, nil
	}
	k := faceKey{e.id, e.member.Pos}
	if f := w.s.faces.get(k); f != nil {
		return f, nil
	}
	return w.loadFace(tx, k, e.member.Pos, nil)
}

func (w *work) loadFace(tx *sqldb.Tx, k faceKey, at stream.Pos, old *face) (*face, error) {
	if tx == nil {
		return nil, errNeedsDB
	}
	rows, err := state.TypesAt(tx, k.room, faceTypes, at)
	if err != nil {
		return nil, err
	}
	list, err := w.s.Rooms.EventsOf(tx, rows)
	if err != nil {
		return nil, err
	}
	f := &face{state: at}
	if old != nil {
		f.bump, f.bumpAt = old.bump, old.bumpAt
	}
	for _, e := range list {
		if e.Key() == "" {
			f.see(e.Type, gjson.ParseBytes(e.Content()))
		}
	}
	if f.kind == "m.space" {
		if rows, err = state.TypeAt(tx, k.room, "m.space.child", at); err != nil {
			return nil, err
		}
		if list, err = w.s.Rooms.EventsOf(tx, rows); err != nil {
			return nil, err
		}
		f.children = make(map[matrix.RoomID]bool, len(list))
		for _, e := range list {
			if via := gjson.GetBytes(e.Content(), "via"); via.IsArray() && len(via.Array()) > 0 {
				f.children[matrix.RoomID(e.Key())] = true
			}
		}
	}
	w.s.faces.put(k, f)
	return f, nil
}

func (f *face) see(typ string, content gjson.Result) {
	str := func(key string) string {
		if v := content.Get(key); v.Type == gjson.String {
			return v.Str
		}
		return ""
	}
	switch typ {
	case "m.room.create":
		f.kind = str("type")
	case "m.room.encryption":
		f.encrypted = true
	case "m.room.name":
		f.name = str("name")
	case "m.room.avatar":
		f.avatar = str("url")
	}
}

// strippedFace reads the state that comes with an invitation.
func strippedFace(stripped []byte) *face {
	f := &face{}
	gjson.ParseBytes(stripped).ForEach(func(_, e gjson.Result) bool {
		if e.Get("state_key").Str == "" {
			f.see(e.Get("type").Str, e.Get("content"))
		}
		return true
	})
	return f
}

// bumps reports whether an event moves a room up in people's lists.
func bumps(e *events.Event) bool {
	switch e.Type {
	case "m.room.create", "m.room.message", "m.room.encrypted", "m.sticker", "m.call.invite",
		"m.poll.start", "org.matrix.msc3381.poll.start", "m.beacon_info", "org.matrix.msc3672.beacon_info":
		return !e.Hidden()
	}
	return false
}

const (
	bumpPage  = 100
	bumpPages = 10
)

// bumpStamp is the position of the newest event that counts as activity.
func (w *work) bumpStamp(tx *sqldb.Tx, e *entry) (stream.Pos, error) {
	if !e.joined() {
		return e.member.Pos, nil
	}
	f, err := w.sort(tx, e)
	if err != nil {
		return 0, err
	}
	if f.bumpAt >= min(e.room.LastEvent, w.to) {
		return f.bump, nil
	}
	fresh := *f
	fresh.bumpAt = w.to
	list, complete := w.s.Hub.Recent(e.id, f.bumpAt, w.to)
	if complete {
		if fresh.bump == 0 && len(list) > 0 {
			fresh.bump = list[0].Pos // a room that came from elsewhere begins with the joining
		}
		for _, ev := range list {
			if bumps(ev) {
				fresh.bump = ev.Pos
			}
		}
	} else if err := w.findBump(tx, e, &fresh, f.bumpAt); err != nil {
		return 0, err
	}
	w.s.faces.put(faceKey{room: e.id}, &fresh)
	return fresh.bump, nil
}

// findBump looks for it in the database. In a room where nothing of the kind has
// happened for very long, an older place does.
func (w *work) findBump(tx *sqldb.Tx, e *entry, f *face, from stream.Pos) error {
	if tx == nil {
		return errNeedsDB
	}
	at := w.to
	for range bumpPages {
		page, err := w.s.Events.Timeline(tx, e.id, from, at, bumpPage, false)
		if err != nil {
			return err
		}
		for _, ev := range page {
			if bumps(ev) {
				f.bump = ev.Pos
				return nil
			}
			at = ev.Pos - 1
		}
		if len(page) < bumpPage {
			break
		}
	}
	if f.bump == 0 {
		f.bump = max(at, 0) + 1
	}
	return nil
}
