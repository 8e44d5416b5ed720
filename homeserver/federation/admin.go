package federation

import (
	"net/http"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	adminPage, maxAdminPage = 100, 1000
	// keptSent is for how many servers it is remembered when they were last sent something.
	keptSent = 10_000
)

const (
	qWaiting = `SELECT count(*), count(CASE WHEN event_id <> '' THEN 1 END) FROM fed_queue WHERE server = $1`
	qMissing = `SELECT count(*) FROM fed_behind WHERE server = $1`
)

// AdminRoutes are the endpoints by which the server's administrators look after the ways to other servers.
func (f *Federation) AdminRoutes() []httpapi.Route {
	const (
		list = "/_carillon/admin/v1/federation/destinations"
		one  = list + "/{serverName}"
	)
	admin := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthAdmin, Handler: h}
	}
	return []httpapi.Route{
		admin(http.MethodGet, list, f.adminList),
		admin(http.MethodGet, one, f.adminShow),
		admin(http.MethodPost, one+"/retry", f.adminRetry),
		admin(http.MethodPost, one+"/reset", f.adminReset),
	}
}

// adminDestination is what administrators see of a server.
type adminDestination struct {
	Server       matrix.ServerName `json:"server_name"`
	Failures     int               `json:"failures"`                // since it last took something
	FailingSince int64             `json:"failing_since,omitempty"` // ms
	RetryAt      int64             `json:"retry_at,omitempty"`      // ms
	SentAt       int64             `json:"sent_at,omitempty"`       // ms, since this server's start
	Transactions int               `json:"waiting_transactions"`
	WaitingSince int64             `json:"waiting_since,omitempty"` // ms
	Behind       bool              `json:"behind"`                  // it will be sent the newest event of each room
}

// status describes a destination; q.mu is held.
func (q *queue) status(server matrix.ServerName) adminDestination {
	a := adminDestination{Server: server}
	if at, ok := q.sentAt[server]; ok {
		a.SentAt = matrix.Millis(at)
	}
	if d := q.dests[server]; d != nil {
		a.Failures, a.Transactions, a.Behind = d.failures, len(d.batches), d.behind
		if len(d.batches) > 0 { // the number of a batch is the time at which it was begun, in microseconds
			a.WaitingSince = d.batches[0].txn / 1000
		}
		if d.failures > 0 {
			a.FailingSince = matrix.Millis(d.since)
			if d.retryAt.After(q.now()) {
				a.RetryAt = matrix.Millis(d.retryAt)
			}
		}
	}
	return a
}

// statuses describes the servers that something waits for or that have been sent something, by name, after from.
func (q *queue) statuses(from matrix.ServerName, limit int) (list []adminDestination, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	names := make([]matrix.ServerName, 0, len(q.dests)+len(q.sentAt))
	for s := range q.dests {
		names = append(names, s)
	}
	for s := range q.sentAt {
		names = append(names, s)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	start, found := slices.BinarySearch(names, from)
	if found {
		start++
	}
	names = names[start:]
	if more = len(names) > limit; more {
		names = names[:limit]
	}
	list = make([]adminDestination, len(names))
	for i, s := range names {
		list[i] = q.status(s)
	}
	return list, more
}

// reset forgets the failures of a server and tries it at once.
func (q *queue) reset(server matrix.ServerName) {
	q.mu.Lock()
	if d := q.dests[server]; d != nil && d.failures > 0 {
		d.failures = 1 // the next success clears the stored memory of it, too
	}
	q.mu.Unlock()
	q.alive(server)
}

func (f *Federation) adminList(c *httpapi.Call) (any, error) {
	limit, err := c.QueryInt("limit", adminPage, 1, maxAdminPage)
	if err != nil {
		return nil, err
	}
	list, more := f.queue.statuses(matrix.ServerName(c.Query("from")), limit)
	out := map[string]any{"destinations": list}
	if more {
		out["next_batch"] = list[len(list)-1].Server
	}
	return out, nil
}

// named is the server of the path.
func named(c *httpapi.Call) (matrix.ServerName, error) {
	s := c.Var("serverName")
	if !matrix.ValidServerName(s) {
		return "", matrix.InvalidParam("%q is not the name of a server", s)
	}
	return matrix.ServerName(s), nil
}

func (f *Federation) adminShow(c *httpapi.Call) (any, error) {
	server, err := named(c)
	if err != nil {
		return nil, err
	}
	var all, events, rooms int64
	err = f.db.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		if err := tx.QueryRow(qWaiting, string(server)).Scan(&all, &events); err != nil {
			return err
		}
		return tx.QueryRow(qMissing, string(server)).Scan(&rooms)
	})
	if err != nil {
		return nil, err
	}
	f.queue.mu.Lock()
	defer f.queue.mu.Unlock()
	return struct {
		adminDestination
		Events int64 `json:"waiting_events"`
		EDUs   int64 `json:"waiting_edus"`
		Rooms  int64 `json:"rooms_behind"`
	}{f.queue.status(server), events, all - events, rooms}, nil
}

func (f *Federation) adminRetry(c *httpapi.Call) (any, error) {
	server, err := named(c)
	if err != nil {
		return nil, err
	}
	f.Alive(server)
	return nil, nil
}

func (f *Federation) adminReset(c *httpapi.Call) (any, error) {
	server, err := named(c)
	if err != nil {
		return nil, err
	}
	f.parts.Client.Alive(server)
	f.queue.reset(server)
	return nil, nil
}
