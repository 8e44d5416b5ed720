package federation

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	log "github.com/sirupsen/logrus"
)

// failed notes a failure and sets the time of the next attempt. What is volatile is forgotten.
func (q *queue) failed(d *destination, b *batch, cause error) {
	q.mu.Lock()
	d.failures++
	if d.failures == 1 {
		d.since = q.now()
	}
	wait := gate.Spread(gate.Delay(d.failures-1, retryFirst, retryMax, 2), 0.2)
	if d.heard { // it has come back while the attempt was failing
		wait = min(wait, gate.Spread(retryFirst, 0.2))
	}
	var fe *fedclient.Error
	if errors.As(cause, &fe) && fe.Status == http.StatusTooManyRequests {
		if ms, ok := fe.Extra["retry_after_ms"].(float64); ok && ms > 0 {
			wait = max(wait, min(time.Duration(ms)*time.Millisecond, retryMax))
		}
	}
	d.retryAt = q.now().Add(wait)
	d.vol.clear()
	failures, since, retryAt := d.failures, d.since, d.retryAt
	drop := b != nil && failures >= refusals && malformed(cause)
	q.mu.Unlock()

	entry := log.WithError(cause).WithFields(log.Fields{"server": d.name, "failures": failures, "wait": wait.Round(time.Millisecond)})
	if failures == 1 || failures == refusals {
		entry.Warn("cannot send to another server; trying again")
	} else {
		entry.Debug("cannot send to another server; trying again")
	}
	if drop {
		entry.Error("another server calls a transaction malformed; it is given up")
		if err := q.sent(d, b); err != nil {
			log.WithError(err).Error("giving a transaction up failed")
		}
		return
	}
	if err := q.away(d); err != nil && q.ctx.Err() == nil {
		log.WithError(err).Warn("too much waits for another server")
	}
	// Only for the next run: losing it costs one attempt.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(q.ctx), 10*time.Second)
	defer cancel()
	if err := q.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qFailed, string(d.name), failures, matrix.Millis(since), matrix.Millis(retryAt))
		return err
	}); err != nil {
		log.WithError(err).Error("storing the failure of another server")
	}
}

// malformed reports that the other side will never accept this transaction.
func malformed(err error) bool {
	var fe *fedclient.Error
	return errors.As(err, &fe) && (fe.Status == http.StatusBadRequest || fe.Status == http.StatusRequestEntityTooLarge)
}
