package federation

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// take closes the next batch of a destination and gives it with the volatile EDUs; false when there is nothing,
// and then the worker has ended.
func (q *queue) take(d *destination) (b *batch, edus []json.RawMessage, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	d.heard = false
	if len(d.batches) > 0 {
		b = d.batches[0]
		if !b.taken {
			b.taken = true
			if b.writing == 0 {
				close(b.settled)
			}
		}
	}
	if d.failures == 0 {
		edus = d.vol.take(q.own)
	}
	if b == nil && edus == nil {
		d.running = false
		if d.failures == 0 && !d.behind && !d.owed {
			delete(q.dests, d.name)
		}
		return nil, nil, false
	}
	return b, edus, true
}

// work sends all that waits for one server.
func (q *queue) work(d *destination) {
	defer func() {
		if p := recover(); p != nil {
			log.WithFields(log.Fields{"server": d.name, "panic": p}).Error("sending to a server failed")
			q.mu.Lock()
			d.running = false
			q.mu.Unlock()
		}
	}()
	for q.ctx.Err() == nil {
		if !q.rest(d) {
			return
		}
		if err := q.resume(d); err != nil {
			q.failed(d, nil, err)
			continue
		}
		b, edus, ok := q.take(d)
		if !ok {
			return
		}
		if b != nil {
			select {
			case <-b.settled:
			case <-q.ctx.Done():
				return
			}
		}
		err := q.send(d, b, edus)
		if err == nil {
			err = q.catchUp(d)
		}
		if err == nil {
			err = q.pay(d)
		}
		if err != nil && q.ctx.Err() == nil {
			q.failed(d, b, err)
		}
	}
}

// resume queues what a server has missed, once nothing else is there to find out whether it is back.
func (q *queue) resume(d *destination) error {
	q.mu.Lock()
	some := len(d.batches) > 0
	q.mu.Unlock()
	if some {
		return nil
	}
	if err := q.catchUp(d); err != nil {
		return err
	}
	return q.pay(d)
}

// rest waits while the destination is left alone; false when the queue stops.
func (q *queue) rest(d *destination) bool {
	for {
		q.mu.Lock()
		wait := d.retryAt.Sub(q.now())
		q.mu.Unlock()
		if wait <= 0 {
			return q.ctx.Err() == nil
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-d.wake:
		case <-q.ctx.Done():
		}
		t.Stop()
		if q.ctx.Err() != nil {
			return false
		}
	}
}

// send delivers one transaction and forgets it.
func (q *queue) send(d *destination, b *batch, edus []json.RawMessage) error {
	q.mu.Lock()
	slots := q.unknown
	if _, ok := q.sentAt[d.name]; ok && d.failures == 0 {
		slots = q.proven
	}
	q.mu.Unlock()
	release, err := slots.Acquire(q.ctx, 1)
	if err != nil {
		return err
	}
	defer release()
	if b == nil {
		if err := q.post(d.name, "e"+matrix.RandomString(16), nil, edus); err != nil {
			return err
		}
		return q.sent(d, nil)
	}
	pdus, stored, err := q.read(d.name, b.txn)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("t%d", b.txn)
	for n := 1; len(stored) > maxEDUs; n++ { // receipts of very many threads
		if err := q.post(d.name, fmt.Sprintf("%s.%d", id, n), nil, stored[maxEDUs:min(len(stored), 2*maxEDUs)]); err != nil {
			return err
		}
		stored = slices.Delete(stored, maxEDUs, min(len(stored), 2*maxEDUs))
	}
	edus = append(stored, edus...)
	if err := q.post(d.name, id, pdus, edus[:min(len(edus), maxEDUs)]); err != nil {
		return err
	}
	return q.sent(d, b)
}

// post sends one transaction, if there is something in it.
func (q *queue) post(server matrix.ServerName, id string, pdus, edus []json.RawMessage) error {
	if len(pdus)+len(edus) == 0 {
		return nil
	}
	body, err := q.body(pdus, edus)
	if err != nil {
		return err
	}
	start := time.Now()
	refused, err := q.deliver.SendTransaction(q.ctx, server, id, body)
	q.meters.attempt(len(pdus), len(edus), time.Since(start), err)
	if err != nil {
		return err
	}
	for event, why := range refused {
		log.WithFields(log.Fields{"server": server, "event_id": event, "reason": why}).Info("another server refused an event")
	}
	return nil
}

func (q *queue) body(pdus, edus []json.RawMessage) ([]byte, error) {
	if pdus == nil {
		pdus = []json.RawMessage{}
	}
	if edus == nil {
		edus = []json.RawMessage{}
	}
	body, err := json.Marshal(struct {
		Origin matrix.ServerName `json:"origin"`
		TS     int64             `json:"origin_server_ts"`
		PDUs   []json.RawMessage `json:"pdus"`
		EDUs   []json.RawMessage `json:"edus"`
	}{q.own, matrix.Millis(q.now()), pdus, edus})
	if err != nil {
		return nil, fmt.Errorf("encoding a transaction: %w", err)
	}
	return body, nil
}

// read gathers the rows of a batch.
func (q *queue) read(server matrix.ServerName, txn int64) (pdus, edus []json.RawMessage, err error) {
	var rows []row
	err = q.db.Read(q.ctx, func(tx *sqldb.Tx) (err error) {
		rows, err = sqldb.Select(tx, func(r *sqldb.Rows) (x row, err error) {
			var edu string
			err = r.Scan(&x.event, &edu)
			x.edu = []byte(edu)
			return x, err
		}, qBatch, string(server), txn)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading a transaction: %w", err)
	}
	var ids []matrix.EventID
	var receipts receiptMerge
	for _, r := range rows {
		switch {
		case r.event != "":
			ids = append(ids, r.event)
		case !receipts.add(r.edu):
			edus = append(edus, r.edu)
		}
	}
	edus = append(edus, receipts.edus()...)
	if len(ids) == 0 {
		return nil, edus, nil
	}
	byID, err := q.content(q.ctx, ids)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the events of a transaction: %w", err)
	}
	for _, id := range ids {
		if pdu, ok := byID[id]; ok {
			pdus = append(pdus, pdu)
		}
	}
	return pdus, edus, nil
}

// sent removes a delivered batch and the memory of failures.
func (q *queue) sent(d *destination, b *batch) error {
	q.mu.Lock()
	mended := d.failures > 0
	q.mu.Unlock()
	if b != nil || mended {
		err := q.db.Write(q.ctx, func(tx *sqldb.Tx) error {
			if b != nil {
				if _, err := tx.Exec(qSent, string(d.name), b.txn); err != nil {
					return err
				}
			}
			if mended {
				_, err := tx.Exec(qMended, string(d.name))
				return err
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("storing that a transaction was sent: %w", err)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.note(d.name, q.now())
	if b != nil {
		d.batches = d.batches[1:]
	}
	if mended {
		log.WithFields(log.Fields{"server": d.name, "failures": d.failures}).Info("another server can be reached again")
	}
	d.failures, d.since, d.retryAt = 0, time.Time{}, time.Time{}
	return nil
}
