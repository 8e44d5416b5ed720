package applications

import (
	"sort"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// keptChanges bounds the tail. A service further behind reads from the database.
const keptChanges = 8192

// item is a change that may interest a service: an event or a receipt.
type item struct {
	pos     stream.Pos
	event   *events.Event
	receipt *receipts.Receipt
}

// tail is the newest part of the log, with the events themselves, shared by all services.
type tail struct {
	mu    sync.RWMutex
	items []item
	floor stream.Pos // items has all that is after it
	head  stream.Pos
}

func newTail(head stream.Pos) *tail { return &tail{floor: head, head: head} }

// add takes in a commit and reports whether there was anything of interest.
func (t *tail) add(changes []stream.Change) bool {
	var fresh []item
	for i := range changes {
		c := &changes[i]
		switch x := c.Payload.(type) {
		case *events.Event:
			if c.Kind == stream.KindEvent && (x.Pos > 0 || outside(x)) && !x.Hidden() {
				fresh = append(fresh, item{pos: c.Pos, event: x})
			}
		case *receipts.Receipt:
			fresh = append(fresh, item{pos: c.Pos, receipt: x})
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(changes); n > 0 {
		t.head = changes[n-1].Pos
	}
	t.items = append(t.items, fresh...)
	if over := len(t.items) - keptChanges; over > 0 {
		t.floor = t.items[over-1].pos
		clear(t.items[:over]) // readers have copies
		t.items = t.items[over:]
	}
	return len(fresh) > 0
}

// outside reports whether an event is the membership of a local user in a room in which nobody of this server is: an
// invitation from elsewhere, or its end.
func outside(e *events.Event) bool {
	return e.Pos == 0 && e.Flags&events.FlagOutlier != 0 && e.Type == "m.room.member" && e.IsState()
}

// read gives up to limit items after from, and the position up to which these are all. ok is false when the tail
// does not reach back that far.
func (t *tail) read(from, to stream.Pos, limit int) (list []item, upTo stream.Pos, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if from < t.floor {
		return nil, 0, false
	}
	lo := sort.Search(len(t.items), func(i int) bool { return t.items[i].pos > from })
	hi := sort.Search(len(t.items), func(i int) bool { return t.items[i].pos > to })
	upTo = to
	if hi-lo > limit {
		hi = lo + limit
		upTo = t.items[hi-1].pos
	}
	return append([]item(nil), t.items[lo:hi]...), upTo, true
}

func (t *tail) top() stream.Pos {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.head
}
