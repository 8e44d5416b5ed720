package ding

import (
	"context"
	"fmt"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Ways of confirming.
const (
	viaReaction = "reaction"
	viaReply    = "reply"
	viaEvent    = "event"
	viaAPI      = "api"
)

// answer is a receiver's confirmation on its way into the tables.
type answer struct {
	l    *live
	i    int
	at   int64
	via  string
	late bool
	took bool
}

// Confirm confirms a DING for the caller. The first confirmation stands; late reports that the DING was over.
func (d *Dings) Confirm(ctx context.Context, c Caller, dingID string) (at int64, late bool, err error) {
	l, err := d.get(ctx, dingID)
	if err != nil {
		return 0, false, err
	}
	i, ok := d.receiver(l, c.User)
	if !ok {
		return 0, false, errNoDing()
	}
	if err := d.confirm(ctx, []answer{{l: l, i: i, at: d.millis(), via: viaAPI}}); err != nil {
		return 0, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return l.to[i].ConfirmedAt, l.to[i].Late, nil
}

func errNoDing() error { return matrix.NotFound("no such DING, or it is not yours") }

// receiver is the place of a user among the receivers of a DING.
func (d *Dings) receiver(l *live, user string) (int, bool) {
	p := d.personOf(user)
	if l == nil || p == nil {
		return 0, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	i, ok := l.index[p.ID]
	return i, ok && l.to[i].User == user
}

// confirm stores confirmations, many in one commit, with the records that tell of them.
func (d *Dings) confirm(ctx context.Context, answers []answer) error {
	answers, records := d.fresh(answers)
	if len(answers) == 0 {
		return nil
	}
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		for n := range answers {
			a := &answers[n]
			rows, err := tx.Exec(qConfirm, a.l.ID, int64(a.i), a.at, a.via, a.late, a.l.Origin == "")
			if err != nil {
				return err
			}
			if a.took = rows == 1; !a.took {
				continue
			}
			if a.late {
				if _, err := tx.Exec(qReshow, a.l.ID); err != nil {
					return err
				}
			}
			if err := d.opts.Outbox.Put(tx, records[n]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing confirmations: %w", err)
	}
	d.opts.Outbox.Wake()
	changed := map[*live]bool{}
	d.mu.Lock()
	for n := range answers {
		a := &answers[n]
		if !a.took {
			continue
		}
		t := &a.l.to[a.i]
		a.l.n.add(t, -1)
		t.ConfirmedAt, t.Via, t.Late = a.at, a.via, a.late
		if !a.late {
			t.State = Confirmed
		}
		a.l.n.add(t, 1)
		a.l.cardDone = a.l.cardDone && !a.late
		changed[a.l] = true
	}
	for l := range changed {
		d.touch(l)
	}
	d.mu.Unlock()
	for l := range changed {
		log.WithFields(log.Fields{"ding": l.ID}).Debug("DING confirmed")
		if err := d.maybeConfirmed(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// fresh leaves the first confirmation of each receiver who has not confirmed yet, and makes their records.
func (d *Dings) fresh(answers []answer) ([]answer, []bridge.New) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := answers[:0:0]
	var records []bridge.New
	seen := map[*Delivery]bool{}
	for _, a := range answers {
		t := &a.l.to[a.i]
		if t.ConfirmedAt != 0 || seen[t] {
			continue
		}
		seen[t] = true
		a.late = a.l.State != Open
		out = append(out, a)
		records = append(records, d.confirmation(a.l, t, a.at, a.via, a.late))
	}
	return out, records
}

// Recall takes a DING back: what is queued is not sent, what went out is retracted by an edit. Recalling again changes
// nothing. It is for the sender and administrators.
func (d *Dings) Recall(ctx context.Context, c Caller, dingID string) error {
	l, err := d.get(ctx, dingID)
	if err != nil {
		return err
	}
	if l == nil || !d.sees(l, c).any() {
		return errNoDing()
	}
	if !d.sees(l, c).all {
		return matrix.Forbidden("a DING is recalled by its sender or an administrator")
	}
	if l.Origin != "" {
		return matrix.Forbidden("this DING is recalled at the site of its sender, %s", l.Origin)
	}
	d.mu.Lock()
	state := l.State
	var retract []bridge.New
	for i := range l.to {
		if l.to[i].Event != "" {
			retract = append(retract, d.retraction(l, &l.to[i]))
		}
	}
	d.mu.Unlock()
	switch state {
	case Recalled:
		return nil
	case Missed, Cancelled, Refused:
		return matrix.NewError(409, codeDingOver, "this DING was never sent: it is %s", state)
	}
	now := d.millis()
	err = d.db.Write(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(qEnd, l.ID, string(Recalled), "", now, string(state))
		if err != nil {
			return err
		}
		if n == 0 {
			return errMoved
		}
		if _, err := d.opts.Outbox.CancelGroup(tx, group(l.ID)); err != nil {
			return err
		}
		if _, err := tx.Exec(qRecallQueued, l.ID, true); err != nil {
			return err
		}
		if err := d.opts.Outbox.Put(tx, retract...); err != nil {
			return err
		}
		if err := d.recallAbroad(tx, l); err != nil {
			return err
		}
		return journal(tx, l.ID, now, c.User, string(Recalled), "")
	})
	if err == errMoved { //nolint:errorlint // our own, unwrapped
		return d.Recall(ctx, c, dingID)
	}
	if err != nil {
		return fmt.Errorf("recalling a DING: %w", err)
	}
	d.recalled(l, now)
	d.opts.Outbox.Wake()
	log.WithFields(log.Fields{"ding": l.ID, "user_id": c.User}).Info("DING recalled")
	return d.retractMissed(ctx, l, retract)
}

func (d *Dings) recalled(l *live, now int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l.State, l.Reason, l.EndedAt, l.cardDone = Recalled, "", now, false
	for i := range l.to {
		if t := &l.to[i]; t.State == Queued || t.State == Sent {
			l.n.add(t, -1)
			t.State = Recalled
			l.n.add(t, 1)
		}
	}
	d.touch(l)
}

// retractMissed retracts what was found to have gone out while the recall was being stored.
func (d *Dings) retractMissed(ctx context.Context, l *live, had []bridge.New) error {
	known := make(map[string]bool, len(had))
	for i := range had {
		known[had[i].Key] = true
	}
	var more []bridge.New
	d.mu.Lock()
	for i := range l.to {
		if t := &l.to[i]; t.Event != "" && !known[itemKey(l.ID, itemRetract, t.Person)] {
			more = append(more, d.retraction(l, t))
		}
	}
	d.mu.Unlock()
	if len(more) == 0 {
		return nil
	}
	return d.opts.Outbox.Add(ctx, more...)
}

// sight is what a caller may see of a DING.
type sight struct {
	all  bool // sender, administrator: every receiver
	mine int  // the caller's place among the receivers, or -1
}

func (s sight) any() bool { return s.all || s.mine >= 0 }

func (d *Dings) sees(l *live, c Caller) sight {
	s := sight{mine: -1}
	if i, ok := d.receiver(l, c.User); ok {
		d.mu.Lock()
		if l.to[i].SentAt != 0 || l.to[i].ConfirmedAt != 0 {
			s.mine = i
		}
		d.mu.Unlock()
	}
	p := d.personOf(c.User)
	s.all = l.SenderUser == c.User || c.Admin || d.opts.IsAdmin(c.User) || p != nil && p.Admin && p.Working()
	return s
}
