package push

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qNotable = `SELECT ` + events.Columns + ` FROM events WHERE nid > 0 AND nid < $1 AND room_id = ANY($2)
AND pos > 0 AND flags & 15 = 0 AND redacted_by = 0 AND sender <> $3 ORDER BY nid DESC LIMIT $4`

	notificationPage = 500   // events read at once
	mostLookedAt     = 10000 // events looked at for one answer
)

type notification struct {
	Actions []json.RawMessage `json:"actions"`
	Event   json.RawMessage   `json:"event"`
	Read    bool              `json:"read"`
	Room    matrix.RoomID     `json:"room_id"`
	TS      int64             `json:"ts"`
}

// getNotifications evaluates the user's rules over the newest events of the
// rooms they are in. Tokens are positions in the log.
func (p *Push) getNotifications(c *httpapi.Call) (any, error) {
	limit, err := c.QueryInt("limit", 20, 1, 100)
	if err != nil {
		return nil, err
	}
	from := farthest
	if s := c.Query("from"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 1 {
			return nil, matrix.InvalidParam("from is not a token of this endpoint")
		}
		from = stream.Pos(n)
	}
	l := &lister{
		p: p, user: c.Caller.User, highlight: c.Query("only") == "highlight", limit: limit,
		rooms: make(map[matrix.RoomID]*listedRoom),
	}
	next, err := l.list(c.Ctx(), from)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"notifications": l.out}
	if next > 1 {
		out["next_token"] = strconv.FormatInt(int64(next), 10)
	}
	return out, nil
}

// lister collects the notifications of one answer.
type lister struct {
	p         *Push
	user      matrix.UserID
	highlight bool
	limit     int
	rooms     map[matrix.RoomID]*listedRoom
	out       []notification

	most   int             // events looked at, 0 for mostLookedAt
	unread []*events.Event // when not nil, unread events after a position are collected instead
	after  stream.Pos
}

type listedRoom struct {
	joined stream.Pos
	mark   receipts.ReadMark
	now    *roomNow
}

// list returns the position to go on from, 0 at the end.
func (l *lister) list(ctx context.Context, from stream.Pos) (stream.Pos, error) {
	p := l.p
	l.out = []notification{}
	var ids []string
	for _, r := range p.hub.RoomsOf(l.user) {
		ids = append(ids, string(r))
	}
	if len(ids) == 0 {
		return 0, nil
	}
	set := p.Ruleset(l.user)
	most := l.most
	if most == 0 {
		most = mostLookedAt
	}
	for looked := 0; looked < most; looked += notificationPage {
		var page []*events.Event
		err := p.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			page, err = sqldb.Select(tx, events.Scan, qNotable, int64(from), ids, string(l.user), notificationPage)
			if err == nil {
				err = p.store.Complete(tx, page)
			}
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("reading notifications: %w", err)
		}
		for _, e := range page {
			from = stream.Pos(e.NID)
			if err := l.event(ctx, set, e); err != nil {
				return 0, err
			}
			if len(l.out)+len(l.unread) == l.limit {
				return from, nil
			}
		}
		if len(page) < notificationPage {
			return 0, nil
		}
	}
	return from, nil
}

func (l *lister) event(ctx context.Context, set *Ruleset, e *events.Event) error {
	if l.p.ignored(l.user).Has(e.Sender) {
		return nil
	}
	r, err := l.room(ctx, e.Room)
	if err != nil || r == nil || e.Pos <= r.joined {
		return err
	}
	res := set.Evaluate(subjectOf(e), l.user, r.now)
	if !res.Notify || l.highlight && !res.Highlight {
		return nil
	}
	lim := limits{base: r.mark.Unthreaded, mark: r.mark}
	read := e.Pos <= lim.line(l.p.root(e))
	if l.unread != nil {
		if !read && e.Pos > l.after {
			l.unread = append(l.unread, e)
		}
		return nil
	}
	l.out = append(l.out, notification{
		Actions: res.Actions, Room: e.Room, TS: e.TS, Read: read,
		Event: e.AppendClient(nil, events.ClientFormat{User: l.user, NoRoomID: true, Now: l.p.opts.Now()}),
	})
	return nil
}

// room is what is needed of a room; nil if the user has left it meanwhile.
func (l *lister) room(ctx context.Context, id matrix.RoomID) (*listedRoom, error) {
	if r, ok := l.rooms[id]; ok {
		return r, nil
	}
	t, err := l.p.tail(ctx, id)
	if err != nil {
		return nil, err
	}
	joined, err := l.p.joinedAt(ctx, id, t, l.user)
	if errors.Is(err, errNotJoined) {
		l.rooms[id] = nil
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	mark, err := l.p.receipts.ReadUpTo(ctx, id, l.user)
	if err != nil {
		return nil, err
	}
	r := &listedRoom{joined, mark, l.p.roomNow(ctx, id, t)}
	l.rooms[id] = r
	return r, nil
}
