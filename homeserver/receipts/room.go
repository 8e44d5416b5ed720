package receipts

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// ReadMark is how far a user has read a room: positions of events, 0 for
// nothing. It takes m.read and m.read.private together. Threads may be nil; do
// not change it.
type ReadMark struct {
	Unthreaded, Main stream.Pos
	Threads          map[matrix.EventID]stream.Pos
}

// room is the receipts of one room in memory.
type room struct {
	once sync.Once
	err  error

	mu      sync.RWMutex
	loaded  bool
	pending []*Receipt // came while the rows were read
	users   map[matrix.UserID]*reader
	log     []*Receipt // by position; holds every current receipt and some that newer ones replaced
	current int        // how many of log are current
	encoded []encoding // of the latest ranges asked for
}

type reader struct {
	list []*Receipt // one for each type and thread
	mark ReadMark
}

type encoding struct {
	from, to stream.Pos
	contents [][]byte
}

// keptEncodings is how many encoded ranges a room keeps: clients wake together
// and ask for the same few.
const keptEncodings = 4

// room returns a room's receipts, read from the database at the first call.
func (r *Receipts) room(ctx context.Context, id matrix.RoomID) (*room, error) {
	r.mu.RLock()
	rm := r.inUse[id]
	r.mu.RUnlock()
	if rm == nil {
		r.mu.Lock()
		if rm = r.inUse[id]; rm == nil {
			rm = &room{users: make(map[matrix.UserID]*reader)}
			r.inUse[id] = rm
		}
		r.mu.Unlock()
	}
	rm.once.Do(func() { rm.err = r.load(ctx, id, rm) })
	if rm.err != nil {
		r.mu.Lock()
		if r.inUse[id] == rm { // the next caller tries again
			delete(r.inUse, id)
		}
		r.mu.Unlock()
		return nil, rm.err
	}
	return rm, nil
}

// load reads the rows. The room is in the map already, so that what commits
// meanwhile lands in pending; an overlap is harmless.
func (r *Receipts) load(ctx context.Context, id matrix.RoomID, rm *room) error {
	var rows []*Receipt
	err := r.db.Read(context.WithoutCancel(ctx), func(tx *sqldb.Tx) (err error) {
		rows, err = sqldb.Select(tx, scan, qOfRoom, string(id))
		return err
	})
	if err != nil {
		return fmt.Errorf("reading receipts of %s: %w", id, err)
	}
	rm.mu.Lock()
	defer rm.mu.Unlock()
	names := map[string]string{} // the same event and room IDs over and over
	for _, x := range rows {
		x.Room = id
		x.Event = matrix.EventID(intern(names, string(x.Event)))
		x.Thread, x.Type = intern(names, x.Thread), intern(names, x.Type)
		rm.insert(x)
	}
	rm.loaded = true
	for _, x := range rm.pending {
		rm.insert(x)
	}
	rm.pending = nil
	return nil
}

func intern(names map[string]string, s string) string {
	if have, ok := names[s]; ok {
		return have
	}
	names[s] = s
	return s
}

func (rm *room) add(x *Receipt) {
	rm.mu.Lock()
	defer rm.mu.Unlock()
	if !rm.loaded {
		rm.pending = append(rm.pending, x)
		return
	}
	rm.insert(x)
}

func (rm *room) insert(x *Receipt) {
	u := rm.users[x.User]
	if u == nil {
		u = &reader{}
		rm.users[x.User] = u
	}
	i := slices.IndexFunc(u.list, func(o *Receipt) bool { return o.Type == x.Type && o.Thread == x.Thread })
	switch {
	case i < 0:
		u.list = append(u.list, x)
		rm.current++
	case u.list[i].Pos >= x.Pos:
		return
	default:
		u.list[i] = x
	}
	u.mark.raise(x)
	rm.log = append(rm.log, x)
	if len(rm.log) > 2*rm.current+64 {
		rm.log = slices.DeleteFunc(rm.log, func(o *Receipt) bool { return !rm.isCurrent(o) })
	}
}

func (rm *room) isCurrent(x *Receipt) bool {
	return slices.Contains(rm.users[x.User].list, x)
}

func (m *ReadMark) raise(x *Receipt) {
	switch x.Thread {
	case "":
		m.Unthreaded = max(m.Unthreaded, x.EventPos)
	case MainThread:
		m.Main = max(m.Main, x.EventPos)
	default:
		root := matrix.EventID(x.Thread)
		if x.EventPos <= m.Threads[root] {
			return
		}
		threads := make(map[matrix.EventID]stream.Pos, len(m.Threads)+1)
		maps.Copy(threads, m.Threads) // readers may hold the old one
		threads[root] = x.EventPos
		m.Threads = threads
	}
}

func (rm *room) behind(x *Receipt) bool {
	rm.mu.RLock()
	defer rm.mu.RUnlock()
	if u := rm.users[x.User]; u != nil {
		for _, o := range u.list {
			if o.Type == x.Type && o.Thread == x.Thread {
				return x.EventPos <= o.EventPos && !x.far || x.far && (x.TS < o.TS || x.TS == o.TS && x.EventPos <= o.EventPos)
			}
		}
	}
	return false
}

// ReadUpTo is how far a user has read a room.
func (r *Receipts) ReadUpTo(ctx context.Context, id matrix.RoomID, user matrix.UserID) (ReadMark, error) {
	rm, err := r.room(ctx, id)
	if err != nil {
		return ReadMark{}, err
	}
	rm.mu.RLock()
	defer rm.mu.RUnlock()
	if u := rm.users[user]; u != nil {
		return u.mark, nil
	}
	return ReadMark{}, nil
}

// Changed reports whether the room has receipts with positions in (from, to].
func (r *Receipts) Changed(ctx context.Context, id matrix.RoomID, from, to stream.Pos) (bool, error) {
	rm, err := r.room(ctx, id)
	if err != nil {
		return false, err
	}
	rm.mu.RLock()
	defer rm.mu.RUnlock()
	return len(rm.between(from, to)) > 0, nil
}

// between is the part of log in (from, to].
func (rm *room) between(from, to stream.Pos) []*Receipt {
	i := sort.Search(len(rm.log), func(i int) bool { return rm.log[i].Pos > from })
	j := i + sort.Search(len(rm.log)-i, func(j int) bool { return rm.log[i+j].Pos > to })
	return rm.log[i:j]
}

// Since lists the current receipts of a room with positions in (from, to] that
// the user may see.
func (r *Receipts) Since(ctx context.Context, user matrix.UserID, id matrix.RoomID, from, to stream.Pos) ([]*Receipt, error) {
	rm, err := r.room(ctx, id)
	if err != nil {
		return nil, err
	}
	rm.mu.RLock()
	defer rm.mu.RUnlock()
	list, _ := rm.visible(user, from, to)
	return list, nil
}

// visible also tells whether private receipts of the user are among the list.
func (rm *room) visible(user matrix.UserID, from, to stream.Pos) (list []*Receipt, private bool) {
	for _, x := range rm.between(from, to) {
		if x.Type != Read && (x.Type != ReadPrivate || x.User != user) || !rm.isCurrent(x) {
			continue
		}
		private = private || x.Type != Read
		list = append(list, x)
	}
	return list, private
}

// Content is the content of the m.receipt events for the receipts of a room
// with positions in (from, to] that the user may see: none, one, or more where
// a user has receipts of several threads at one event. The bytes are shared
// between callers; do not change them.
func (r *Receipts) Content(ctx context.Context, user matrix.UserID, id matrix.RoomID, from, to stream.Pos) ([][]byte, error) {
	rm, err := r.room(ctx, id)
	if err != nil {
		return nil, err
	}
	rm.mu.RLock()
	if len(rm.between(from, to)) == 0 {
		rm.mu.RUnlock()
		return nil, nil
	}
	if !rm.hasPrivate(user, from, to) {
		for _, e := range rm.encoded {
			if e.from == from && e.to == to {
				rm.mu.RUnlock()
				return e.contents, nil
			}
		}
	}
	list, private := rm.visible(user, from, to)
	rm.mu.RUnlock()
	contents := Encode(list)
	if !private {
		rm.mu.Lock()
		if len(rm.encoded) >= keptEncodings {
			rm.encoded = slices.Delete(rm.encoded, 0, 1)
		}
		rm.encoded = append(rm.encoded, encoding{from, to, contents})
		rm.mu.Unlock()
	}
	return contents, nil
}

func (rm *room) hasPrivate(user matrix.UserID, from, to stream.Pos) bool {
	u := rm.users[user]
	return u != nil && slices.ContainsFunc(u.list, func(x *Receipt) bool {
		return x.Type == ReadPrivate && x.Pos > from && x.Pos <= to
	})
}
