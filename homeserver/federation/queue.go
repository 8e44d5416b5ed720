package federation

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/prometheus/client_golang/prometheus"
)

// Limits of one transaction. Spec: server-server-api#transactions
const (
	maxPDUs = 50
	maxEDUs = 100
	// roomEDUs leaves space for receipts, typing and presence, which are merged when the transaction is made.
	roomEDUs   = 70
	mergedRows = 200
)

const (
	retryFirst = time.Second
	retryMax   = time.Hour
	// refusals is how often a transaction that the other side calls malformed is tried before it is given up: it
	// would hold up all that comes after it for ever.
	refusals = 10
	// silence is after how many failures receipts are no longer queued for a server: a server that never comes back
	// would fill the table. It is noted since when, and they are read from where they are kept should it come back.
	silence = 10
	// senders is how many servers are sent to at a time: of those that have taken something before, and of the
	// others, so that many that hang cannot hold up one that works.
	senders = 256
	// ownEDUs bounds the EDUs of a transaction in bytes, but for one that is larger by itself: other servers refuse
	// a body that is too large, again and again.
	ownEDUs = 4 << 20
	// presenceWait is how long a change of presence waits for others, or for something else to be sent.
	presenceWait = time.Second
)

// Deliverer sends transactions; fedclient.Client is one.
type Deliverer interface {
	SendTransaction(ctx context.Context, server matrix.ServerName, txn string, body json.RawMessage) (map[matrix.EventID]string, error)
}

// row is one thing that waits for one server: an event by its ID, or an EDU.
type row struct {
	server matrix.ServerName
	event  matrix.EventID
	room   matrix.RoomID // of the event; "" if it is to be kept whatever happens
	edu    []byte
	topic  string     // what the EDU is about, if only the newest is of use
	merges bool       // a receipt EDU
	from   stream.Pos // of a receipt EDU: the place in the log of its first receipt; 0 if it is queued in any case
	to     stream.Pos // and of its last
}

// queue holds what waits to be sent. The table is the truth; memory knows the open batches.
//
// Rows are gathered in batches, and a batch becomes one transaction. Its number is given when its first row
// arrives and it is closed when a worker takes it, so the transaction's ID and content are the same however often
// it is tried, also after a restart.
type queue struct {
	db      *sqldb.DB
	deliver Deliverer
	content func(ctx context.Context, ids []matrix.EventID) (map[matrix.EventID][]byte, error)
	own     matrix.ServerName
	now     matrix.Now
	proven  *gate.Semaphore // see senders
	unknown *gate.Semaphore
	meters  *meters
	// owed reads the receipts after a place in the log that a server should know, as rows.
	owed func(ctx context.Context, server matrix.ServerName, from stream.Pos) (rows []row, to stream.Pos, err error)

	mu     sync.Mutex
	dests  map[matrix.ServerName]*destination
	last   int64 // newest batch number
	sentAt map[matrix.ServerName]time.Time
	later  bool // presence waits
	ctx    context.Context
	wg     sync.WaitGroup
}

func newQueue(db *sqldb.DB, own matrix.ServerName, deliver Deliverer, now matrix.Now, r prometheus.Registerer) *queue {
	q := &queue{
		db: db, deliver: deliver, own: own, now: now, proven: gate.NewSemaphore(senders), unknown: gate.NewSemaphore(senders),
		dests: map[matrix.ServerName]*destination{}, sentAt: map[matrix.ServerName]time.Time{},
	}
	q.meters = newMeters(r, q)
	return q
}

// destination is one server with something to send. Guarded by queue.mu.
type destination struct {
	name    matrix.ServerName
	batches []*batch
	vol     volatile
	running bool
	wake    chan struct{} // capacity one: full means that it will look anyway

	failures int
	since    time.Time
	retryAt  time.Time
	heard    bool           // it was heard of since the last attempt began
	behind   bool           // events are noted in fed_behind
	owed     bool           // receipts are noted in fed_owed
	noting   sync.WaitGroup // events that are being noted
}

// batch is the rows of one transaction. Guarded by queue.mu.
type batch struct {
	txn     int64
	pdus    int
	edus    int
	merged  int
	bytes   int           // of the EDUs
	writing int           // rows handed to the database and not yet committed
	settled chan struct{} // closed when taken and nothing is being written
	taken   bool
}

const (
	qEnqueue = `INSERT INTO fed_queue (server, txn, event_id, edu, room_id, topic) VALUES ($1, $2, $3, $4, $5, $6)`
	qBatches = `SELECT server, txn, count(*) FROM fed_queue GROUP BY server, txn ORDER BY txn`
	qBatch   = `SELECT event_id, edu FROM fed_queue WHERE server = $1 AND txn = $2 ORDER BY id`
	qSent    = `DELETE FROM fed_queue WHERE server = $1 AND txn = $2`

	qFailing = `SELECT server, failures, failing_since, retry_at FROM fed_destinations`
	qFailed  = `INSERT INTO fed_destinations (server, failures, failing_since, retry_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (server) DO UPDATE SET failures = excluded.failures, failing_since = excluded.failing_since, retry_at = excluded.retry_at`
	qMended = `DELETE FROM fed_destinations WHERE server = $1`
)

// load reads what an earlier run has left.
func (q *queue) load(ctx context.Context) error {
	type left struct {
		server matrix.ServerName
		txn, n int64
	}
	type failing struct {
		server                   matrix.ServerName
		failures, since, retryAt int64
	}
	var batches []left
	var fails []failing
	var away, owed []matrix.ServerName
	name := func(r *sqldb.Rows) (s matrix.ServerName, err error) { return s, r.Scan(&s) }
	err := q.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		if batches, err = sqldb.Select(tx, func(r *sqldb.Rows) (l left, err error) {
			return l, r.Scan(&l.server, &l.txn, &l.n)
		}, qBatches); err != nil {
			return err
		}
		fails, err = sqldb.Select(tx, func(r *sqldb.Rows) (f failing, err error) {
			return f, r.Scan(&f.server, &f.failures, &f.since, &f.retryAt)
		}, qFailing)
		if err != nil {
			return err
		}
		if away, err = sqldb.Select(tx, name, qAreAway); err != nil {
			return err
		}
		owed, err = sqldb.Select(tx, name, qAreOwed)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the federation queue: %w", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range batches {
		d := q.dest(l.server)
		b := &batch{txn: l.txn, taken: true, settled: make(chan struct{}), edus: int(l.n)}
		close(b.settled)
		d.batches = append(d.batches, b)
		q.last = max(q.last, l.txn)
	}
	for _, f := range fails {
		d := q.dest(f.server)
		d.failures, d.since, d.retryAt = int(f.failures), time.UnixMilli(f.since), time.UnixMilli(f.retryAt)
	}
	for _, s := range away {
		q.dest(s).behind = true
	}
	for _, s := range owed {
		q.dest(s).owed = true
	}
	return nil
}

// run sends until ctx ends.
func (q *queue) run(ctx context.Context) {
	q.mu.Lock()
	q.ctx = ctx
	for _, d := range q.dests {
		q.start(d)
	}
	q.mu.Unlock()
	<-ctx.Done()
	q.wg.Wait()
}

// dest finds or makes a destination; q.mu is held.
func (q *queue) dest(server matrix.ServerName) *destination {
	d := q.dests[server]
	if d == nil {
		d = &destination{name: server, wake: make(chan struct{}, 1)}
		q.dests[server] = d
	}
	return d
}

// start lets a worker look at a destination; q.mu is held.
func (q *queue) start(d *destination) {
	if q.ctx == nil || q.ctx.Err() != nil || d.running || (len(d.batches) == 0 && !d.behind && !d.owed && d.vol.empty()) {
		return
	}
	d.running = true
	q.wg.Add(1)
	go func() {
		defer q.wg.Done()
		q.work(d)
	}()
}

// put stores rows and has them sent. also runs in the same transaction; it may be nil.
func (q *queue) put(ctx context.Context, rows []row, also func(tx *sqldb.Tx) error) error {
	batches, dests := q.place(rows)
	err := q.db.Write(ctx, func(tx *sqldb.Tx) error {
		for i := range rows {
			r, err := &rows[i], error(nil)
			switch {
			case batches[i] == nil && r.merges:
				_, err = tx.Exec(qOwe, string(r.server), int64(r.from)-1, int64(r.to))
			case batches[i] == nil:
				_, err = tx.Exec(qBehind, string(r.server), string(r.room), string(r.event))
			default:
				_, err = tx.Exec(qEnqueue, string(r.server), batches[i].txn, string(r.event), string(r.edu), string(r.room), r.topic)
			}
			if err != nil {
				return err
			}
		}
		if also != nil {
			return also(tx)
		}
		return nil
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, b := range batches {
		if b == nil {
			switch {
			case !rows[i].merges:
				dests[i].noting.Done()
			case err == nil:
				d := q.dest(rows[i].server) // it may have been forgotten meanwhile, as one that is well again
				d.owed = true
				q.start(d)
			}
			continue
		}
		if b.writing--; b.writing == 0 && b.taken {
			close(b.settled)
		}
		if d := q.dests[rows[i].server]; d != nil {
			q.start(d)
		}
	}
	if err != nil {
		return fmt.Errorf("queueing for other servers: %w", err)
	}
	return nil
}

// volatile adds what is worth sending only now. A server that fails is not told. What may wait a moment for others
// is sent later.
func (q *queue) volatile(server matrix.ServerName, later bool, add func(*volatile)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	d := q.dest(server)
	if d.failures > 0 {
		return
	}
	add(&d.vol)
	if !later {
		q.start(d)
	} else if !q.later {
		q.later = true
		time.AfterFunc(presenceWait, q.startAll)
	}
}

// startAll sends what has waited a moment.
func (q *queue) startAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.later = false
	for _, d := range q.dests {
		q.start(d)
	}
}

// place finds the batch and the destination of each row; no batch for one that is only to be noted.
func (q *queue) place(rows []row) (out []*batch, dests []*destination) {
	q.mu.Lock()
	defer q.mu.Unlock()
	out, dests = make([]*batch, len(rows)), make([]*destination, len(rows))
	for i := range rows {
		d := q.dest(rows[i].server)
		dests[i] = d
		if d.failures >= silence && rows[i].from > 0 {
			continue
		}
		if d.behind && rows[i].room != "" {
			d.noting.Add(1)
			continue
		}
		var b *batch
		if n := len(d.batches); n > 0 {
			b = d.batches[n-1]
		}
		if b == nil || b.taken || !b.fits(&rows[i]) {
			// Numbers grow with the clock, so that they are new also after all rows of an earlier run are gone.
			q.last = max(q.last+1, q.now().UnixMicro())
			b = &batch{txn: q.last, settled: make(chan struct{})}
			d.batches = append(d.batches, b)
		}
		b.add(&rows[i])
		out[i] = b
	}
	return out, dests
}

func (b *batch) fits(r *row) bool {
	switch {
	case r.event != "":
		return b.pdus < maxPDUs
	case r.merges:
		return b.merged < mergedRows && b.holds(r.edu)
	}
	return b.edus < roomEDUs && b.holds(r.edu)
}

// holds reports whether there is place for the bytes of an EDU.
func (b *batch) holds(edu []byte) bool { return b.bytes == 0 || b.bytes+len(edu) <= ownEDUs }

func (b *batch) add(r *row) {
	b.writing++
	b.bytes += len(r.edu)
	switch {
	case r.event != "":
		b.pdus++
	case r.merges:
		b.merged++
	default:
		b.edus++
	}
}

// alive is told that a server works: it is tried at once.
func (q *queue) alive(server matrix.ServerName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	d := q.dests[server]
	if d == nil || d.failures == 0 {
		return
	}
	d.retryAt, d.heard = time.Time{}, true
	select {
	case d.wake <- struct{}{}:
	default:
	}
	q.start(d)
}
