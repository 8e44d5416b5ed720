package federation

import (
	"cmp"
	"slices"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// In a large room a message is answered by thousands of receipts, each of which would go to every server. So a room
// may cause no more than so many transactions a second with its receipts, over all servers; those that are too many
// wait for others, or go along with whatever else is sent to the server. They are in the table of receipts, and the
// place in the log up to which they have been queued is stored, so a restart loses none.
const (
	// receiptRate is how many transactions a second the receipts of one room may cause.
	receiptRate = 50
	// smallRoom is up to how many other servers a room's receipts go at once.
	smallRoom = 5
	// young events are those that people are just reading: their receipts wait youngWait at most, others oldWait.
	young     = time.Minute
	youngWait = time.Second
	oldWait   = 30 * time.Second
	// heldReceipts is how many receipts wait for one server; one more, and all go.
	heldReceipts = 2000
	// pacedRooms is of how many rooms it is remembered when their receipts went.
	pacedRooms = 10_000
)

// holding is the receipts that wait, by server. The reader alone uses it.
type holding struct {
	own   matrix.ServerName
	paces map[matrix.RoomID]pace
	lists map[matrix.ServerName]*heldList
}

// pace is when a room may cause transactions again, and how long it then has to wait.
type pace struct {
	next  time.Time
	every time.Duration
}

type heldList struct {
	due  time.Time
	from stream.Pos // place of the first
	list map[heldKey]*receipts.Receipt
}

// heldKey is what a newer receipt replaces an older one of.
type heldKey struct {
	room   matrix.RoomID
	user   matrix.UserID
	thread string
}

func newHolding(own matrix.ServerName) *holding {
	return &holding{own: own, paces: map[matrix.RoomID]pace{}, lists: map[matrix.ServerName]*heldList{}}
}

// add has a receipt wait for each of the servers of its room. It returns how many of them it has to wait for.
func (h *holding) add(x *receipts.Receipt, servers []matrix.ServerName, now time.Time) (waiting int) {
	due := h.due(x, len(servers), now)
	key := heldKey{x.Room, x.User, x.Thread}
	for _, s := range servers {
		at := due
		if s == x.Author {
			at = now
		}
		l := h.lists[s]
		if l == nil {
			l = &heldList{due: at, from: x.Pos, list: map[heldKey]*receipts.Receipt{}}
			h.lists[s] = l
		}
		l.list[key] = x
		if l.due.After(at) {
			l.due = at
		}
		if len(l.list) > heldReceipts {
			l.due = now
		}
		if l.due.After(now) {
			waiting++
		}
	}
	return waiting
}

// due is when a receipt has to go at the latest.
func (h *holding) due(x *receipts.Receipt, servers int, now time.Time) time.Time {
	if servers <= smallRoom {
		return now
	}
	p, known := h.paces[x.Room]
	if !known && len(h.paces) >= pacedRooms {
		clear(h.paces) // each of them may go once too early
	}
	p.every = time.Duration(servers) * time.Second / receiptRate
	h.paces[x.Room] = p
	if !p.next.After(now) {
		return now
	}
	wait := oldWait
	if now.Sub(time.UnixMilli(x.EventTS)) < young {
		wait = youngWait
	}
	if last := now.Add(wait); p.next.After(last) {
		return last
	}
	return p.next
}

// ready lists the servers whose receipts go now: those that are due, and those that something else goes to.
func (h *holding) ready(now time.Time, with map[matrix.ServerName]bool) []matrix.ServerName {
	var out []matrix.ServerName
	for s, l := range h.lists {
		if with[s] || !l.due.After(now) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// rows encodes what waits for a server, in the order of the log.
func (h *holding) rows(server matrix.ServerName) []row {
	l := h.lists[server]
	list := make([]*receipts.Receipt, 0, len(l.list))
	for _, x := range l.list {
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b *receipts.Receipt) int { return cmp.Compare(a.Pos, b.Pos) })
	return receiptRows(server, list, l.from)
}

// gone forgets what waited for servers, which goes now: its rooms have to wait from now on.
func (h *holding) gone(servers []matrix.ServerName, now time.Time) {
	for _, s := range servers {
		for key := range h.lists[s].list {
			if p, ok := h.paces[key.room]; ok {
				p.next = now.Add(p.every)
				h.paces[key.room] = p
			}
		}
		delete(h.lists, s)
	}
}

// first is the place in the log of the first receipt that waits, but for those of the servers given; 0 if none does.
func (h *holding) first(but []matrix.ServerName) (pos stream.Pos) {
	for s, l := range h.lists {
		if _, going := slices.BinarySearch(but, s); !going && (pos == 0 || l.from < pos) {
			pos = l.from
		}
	}
	return pos
}

// wait is how long until something is due.
func (h *holding) wait(now time.Time) time.Duration {
	wait := time.Hour
	for _, l := range h.lists {
		wait = min(wait, l.due.Sub(now))
	}
	return max(wait, 0)
}
