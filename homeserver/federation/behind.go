package federation

import (
	"fmt"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// A server that is away for days shall not be sent every event that it has missed: it would take hours, most of
// them in rooms that it could ask about itself. Once much is waiting for it, only the newest event of each room is
// kept; when it is back it gets these, and asks for what lies between as it sees fit. EDUs are kept, since nobody
// can ask for them; but of those about a user's devices or keys the newest does: it names a predecessor that the
// server does not know, and so it asks for all of the user's devices.

const (
	// behindAfter is how many transactions may wait for a server that fails: some 2,000 events, which are sent in a
	// few seconds.
	behindAfter = 40
	// behindFailures is after how many failures it is taken to be away.
	behindFailures = 3
)

const (
	qBehind   = `INSERT INTO fed_behind (server, room_id, event_id) VALUES ($1, $2, $3) ON CONFLICT (server, room_id) DO UPDATE SET event_id = excluded.event_id`
	qAreAway  = `SELECT DISTINCT server FROM fed_behind`
	qCollapse = `INSERT INTO fed_behind (server, room_id, event_id)
		SELECT server, room_id, event_id FROM fed_queue WHERE id IN (
			SELECT max(id) FROM fed_queue WHERE server = $1 AND txn > $2 AND room_id <> '' GROUP BY room_id)
		ON CONFLICT (server, room_id) DO NOTHING`
	qCollapsed  = `DELETE FROM fed_queue WHERE server = $1 AND txn > $2 AND room_id <> ''`
	qSuperseded = `DELETE FROM fed_queue WHERE server = $1 AND txn > $2 AND topic <> '' AND id NOT IN (
		SELECT max(id) FROM fed_queue WHERE server = $1 AND txn > $2 AND topic <> '' GROUP BY topic)`
	qRemaining = `SELECT txn, count(*) FROM fed_queue WHERE server = $1 AND txn > $2 GROUP BY txn`
	qCatchUp   = `SELECT room_id, event_id FROM fed_behind WHERE server = $1 ORDER BY room_id LIMIT $2`
	qCaughtUp  = `DELETE FROM fed_behind WHERE server = $1 AND room_id <= $2`
)

// away puts a destination behind when it fails and much waits for it.
func (q *queue) away(d *destination) error {
	q.mu.Lock()
	if d.failures < behindFailures || len(d.batches) <= behindAfter {
		q.mu.Unlock()
		return nil
	}
	was := d.behind
	d.behind = true
	first, rest := d.batches[0], d.batches[1:len(d.batches):len(d.batches)]
	for _, b := range rest {
		if !b.taken {
			b.taken = true
			if b.writing == 0 {
				close(b.settled)
			}
		}
	}
	q.mu.Unlock()
	for _, b := range rest {
		select {
		case <-b.settled:
		case <-q.ctx.Done():
			return q.ctx.Err()
		}
	}
	remains := map[int64]int{}
	err := q.db.Write(q.ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qCollapse, string(d.name), first.txn); err != nil {
			return err
		}
		if _, err := tx.Exec(qCollapsed, string(d.name), first.txn); err != nil {
			return err
		}
		if _, err := tx.Exec(qSuperseded, string(d.name), first.txn); err != nil {
			return err
		}
		clear(remains)
		_, err := sqldb.Select(tx, func(r *sqldb.Rows) (txn int64, err error) {
			var n int
			err = r.Scan(&txn, &n)
			remains[txn] = n
			return txn, err
		}, qRemaining, string(d.name), first.txn)
		return err
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		d.behind = was // it is tried again at the next failure
		return fmt.Errorf("keeping the newest events for a server that is away: %w", err)
	}
	all := len(d.batches)
	kept := []*batch{first}
	for i, b := range d.batches[1:] {
		if i >= len(rest) {
			kept = append(kept, b)
		} else if n := remains[b.txn]; n > 0 {
			b.pdus, b.edus, b.merged = 0, n, 0
			kept = append(kept, b)
		}
	}
	d.batches = kept
	if was {
		return nil
	}
	log.WithFields(log.Fields{"server": d.name, "transactions": all - len(kept)}).Info("another server is away: it will be sent the newest event of each room")
	return nil
}

// catchUp queues what a server that is back has to hear of.
func (q *queue) catchUp(d *destination) error {
	q.mu.Lock()
	if !d.behind {
		q.mu.Unlock()
		return nil
	}
	d.behind = false // what comes from now on is queued as ever
	q.mu.Unlock()
	d.noting.Wait()
	for {
		q.mu.Lock()
		q.last = max(q.last+1, q.now().UnixMicro())
		b := &batch{txn: q.last, taken: true, settled: make(chan struct{})}
		close(b.settled)
		q.mu.Unlock()
		n := 0
		err := q.db.Write(q.ctx, func(tx *sqldb.Tx) error {
			type place struct {
				room  matrix.RoomID
				event matrix.EventID
			}
			list, err := sqldb.Select(tx, func(r *sqldb.Rows) (p place, err error) { return p, r.Scan(&p.room, &p.event) }, qCatchUp, string(d.name), maxPDUs)
			if n = len(list); err != nil || n == 0 {
				return err
			}
			for _, p := range list {
				if _, err := tx.Exec(qEnqueue, string(d.name), b.txn, string(p.event), "", string(p.room), ""); err != nil {
					return err
				}
			}
			_, err = tx.Exec(qCaughtUp, string(d.name), string(list[n-1].room))
			return err
		})
		q.mu.Lock()
		if err == nil && n > 0 {
			b.pdus = n
			d.batches = append(d.batches, b)
		}
		if err != nil {
			d.behind = true
		}
		q.mu.Unlock()
		if err != nil {
			return fmt.Errorf("queueing what a server has missed: %w", err)
		}
		if n < maxPDUs {
			return nil
		}
	}
}
