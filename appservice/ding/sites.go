package ding

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// The kinds of messages between the sites.
const (
	kindDeliver = "ding.deliver" // a DING for people of the site
	kindRecall  = "ding.recall"
	kindReport  = "ding.report" // what became of deliveries
	kindAsk     = "ding.ask"    // does the DING still stand?
	kindGo      = "ding.go"     // it does
)

// staleAfterCut is how old a DING of another site may be that is delivered at once: of an older one, which a cut link
// has held up, the site is asked whether it still stands, so that nobody gets a DING that was recalled meanwhile.
const staleAfterCut = 2 * time.Second

// reportEvery is how long reports to other sites are gathered.
const reportEvery = 400 * time.Millisecond

// maxReport bounds the deliveries of one report.
const maxReport = 500

// abroad is a DING on its way to another site.
type abroad struct {
	Ding    string        `json:"ding_id"`
	Kind    string        `json:"kind"`
	Body    string        `json:"body"`
	Sender  personContent `json:"sender"`
	Source  *Source       `json:"source,omitempty"`
	FiredAt int64         `json:"fired_at"`
	Expires int64         `json:"expires_at"`
	To      []abroadTo    `json:"to"`
}

type abroadTo struct {
	Person string   `json:"person_id"`
	User   string   `json:"user_id"`
	Units  []string `json:"units,omitempty"`
}

// reported is how a delivery stands at the site that makes it.
type reported struct {
	Ding        string `json:"ding_id"`
	Person      string `json:"person_id"`
	State       State  `json:"state"`
	Reason      string `json:"reason,omitempty"`
	SentAt      int64  `json:"sent_at,omitempty"`
	ConfirmedAt int64  `json:"confirmed_at,omitempty"`
	Via         string `json:"via,omitempty"`
	Late        bool   `json:"late,omitempty"`
}

type named struct {
	Ding string `json:"ding_id"`
}

const (
	qTakeUntold = `UPDATE as_ding_deliveries SET told = TRUE WHERE (ding_id, idx) IN
		(SELECT ding_id, idx FROM as_ding_deliveries WHERE NOT told ORDER BY ding_id, idx LIMIT $1)
		RETURNING ding_id, person, state, reason, sent_at, confirmed_at, via, late`
	qOrigins  = `SELECT id, origin FROM as_dings WHERE id = ANY($1) AND origin <> ''`
	qRecallOf = `UPDATE as_dings SET state = 'recalled', ended_at = $3, held = FALSE WHERE id = $1 AND origin = $2 AND state <> 'recalled'`
	qUnhold   = `UPDATE as_dings SET held = FALSE WHERE id = $1 AND held AND state = 'open'`
	qReported = `UPDATE as_ding_deliveries SET state = CASE WHEN state = 'recalled' AND $3 <> 'confirmed' THEN state ELSE $3 END, reason = $4,
		sent_at = $5, confirmed_at = $6, via = $7, late = $8 WHERE ding_id = $1 AND idx = $2`
	qExpireHeld = `UPDATE as_ding_deliveries SET state = 'expired', told = FALSE WHERE ding_id = $1 AND state = 'queued'`
)

// many reports whether the company has several sites.
func (d *Dings) many() bool { return d.opts.Sites != nil && d.opts.Sites.Many() }

// isHere reports whether an account is at this site.
func (d *Dings) isHere(user string) bool { return id.UserID(user).Homeserver() == d.opts.ServerName }

// siteOf is the site that delivers to an account, "" for this one.
func (d *Dings) siteOf(user string) string {
	if !d.many() || d.isHere(user) {
		return ""
	}
	s, _ := d.opts.Sites.OfServer(id.UserID(user).Homeserver())
	return s.Name
}

func (d *Dings) listen() {
	s := d.opts.Sites
	s.Handle(kindDeliver, d.takeDing)
	s.Handle(kindRecall, d.takeRecall)
	s.Handle(kindReport, d.takeReport)
	s.Handle(kindAsk, d.takeAsk)
	s.Handle(kindGo, d.takeGo)
}

// sendAbroad hands the receivers at other sites to those sites.
func (d *Dings) sendAbroad(tx *sqldb.Tx, l *live) error {
	if !d.many() {
		return nil
	}
	to := map[string][]abroadTo{}
	var order []string
	for i := range l.to {
		t := &l.to[i]
		if t.Site == "" {
			continue
		}
		if to[t.Site] == nil {
			order = append(order, t.Site)
		}
		to[t.Site] = append(to[t.Site], abroadTo{t.Person, t.User, t.Units})
	}
	for _, site := range order {
		msg := abroad{
			Ding: l.ID, Kind: l.Kind, Body: l.Body, Sender: d.personContent(l.Sender, l.SenderUser), Source: l.Receivers.UnreadOf,
			FiredAt: l.FiredAt, Expires: l.ExpiresAt, To: to[site],
		}
		if err := d.opts.Sites.Send(tx, []sites.Site{d.opts.Sites.Named(site)}, kindDeliver, msg); err != nil {
			return err
		}
	}
	return nil
}

// recallAbroad tells the other sites with receivers that a DING is taken back.
func (d *Dings) recallAbroad(tx *sqldb.Tx, l *live) error {
	if !d.many() {
		return nil
	}
	var to []sites.Site
	d.mu.Lock()
	for _, f := range l.sites() {
		if f.Site != "" {
			to = append(to, d.opts.Sites.Named(f.Site))
		}
	}
	d.mu.Unlock()
	return d.opts.Sites.Send(tx, to, kindRecall, named{l.ID})
}

// check finds fault with a DING that another site has sent.
func (m *abroad) check(from sites.Site, own string) error {
	switch {
	case len(m.Ding) == 0 || len(m.Ding) > 64 || strings.Trim(m.Ding, "0123456789abcdef") != "":
		return errors.New("no ID of a DING")
	case m.Kind != Text && m.Kind != Emergency:
		return errors.New("no kind of DING")
	case id.UserID(m.Sender.User).Homeserver() != from.ServerName:
		return errors.New("its sender is of another site")
	case len(m.Body) > 4*maxBody || m.Sender.Person == "" || !plain(m.Body) || !plain(m.Sender.Person+m.Sender.User+m.Sender.Name):
		return errors.New("its body or sender cannot be")
	case m.Expires <= m.FiredAt || m.Expires > m.FiredAt+2*maxExpires.Milliseconds():
		return errors.New("its end cannot be")
	}
	for _, t := range m.To {
		if t.Person == "" || !plain(t.Person+t.User+strings.Join(t.Units, "")) || id.UserID(t.User).Homeserver() != own {
			return errors.New("a receiver is of another site")
		}
	}
	return nil
}

// plain reports whether a text can be stored.
func plain(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// takeDing takes a DING of another site for people of this one. A DING that is here already changes nothing.
func (d *Dings) takeDing(ctx context.Context, tx *sqldb.Tx, from sites.Site, body json.RawMessage) error {
	var m abroad
	if err := json.Unmarshal(body, &m); err != nil {
		return sites.Refuse(fmt.Errorf("reading a DING: %w", err))
	}
	if err := m.check(from, d.opts.ServerName); err != nil {
		return sites.Refuse(err)
	}
	if _, err := scanDing(tx.QueryRow(qDing, m.Ding)); !errors.Is(err, sqldb.ErrNoRows) {
		return err
	}
	now := d.millis()
	l := &live{Ding: Ding{
		ID: m.Ding, UUID: "site:" + from.Name + "/" + m.Ding, Sender: m.Sender.Person, SenderUser: m.Sender.User, Kind: m.Kind, Body: m.Body,
		Receivers: Receivers{UnreadOf: m.Source}, State: Open, CreatedAt: m.FiredAt, FireAt: m.FiredAt, FiredAt: m.FiredAt, ExpiresAt: m.Expires,
		Origin: from.Name,
	}}
	seen := map[string]bool{}
	for _, t := range m.To {
		if !seen[t.Person] {
			seen[t.Person] = true
			l.to = append(l.to, Delivery{Person: t.Person, User: t.User, Units: t.Units, State: Queued, told: true})
		}
	}
	old := now - m.FiredAt
	l.held = old > staleAfterCut.Milliseconds() || old < -staleAfterCut.Milliseconds()
	if m.Expires <= now {
		l.State, l.EndedAt, l.held = Expired, now, false
		for i := range l.to {
			l.to[i].State, l.to[i].told = Expired, false
		}
	}
	if err := d.keepDing(tx, l, from, now); err != nil {
		return err
	}
	sites.After(ctx, func() {
		if _, err := d.get(context.WithoutCancel(ctx), l.ID); err != nil {
			log.WithError(err).WithField("ding", l.ID).Error("A DING of another site could not be read, it is at the next start")
		}
		d.opts.Outbox.Wake()
		ring(d.wakeup)
		ring(d.tellRun)
		log.WithFields(log.Fields{"ding": l.ID, "site": from.Name, "receivers": len(l.to)}).Info("DING of another site")
	})
	return nil
}

// keepDing stores a DING of another site and sends it, or asks whether it still stands.
func (d *Dings) keepDing(tx *sqldb.Tx, l *live, from sites.Site, now int64) error {
	if err := insertDing(tx, &l.Ding); err != nil {
		return err
	}
	if _, err := tx.Exec(qCard, l.ID, noCard, ""); err != nil {
		return err
	}
	if err := insertDeliveries(tx, l); err != nil {
		return err
	}
	switch {
	case l.held:
		if err := d.opts.Sites.Send(tx, []sites.Site{from}, kindAsk, named{l.ID}); err != nil {
			return err
		}
	case l.State == Open:
		if err := d.opts.Outbox.Put(tx, d.outgoing(l)...); err != nil {
			return err
		}
	}
	return journal(tx, l.ID, now, from.Name, "came", string(l.State))
}

// theirs is the DING that a message of another site is about: one that came from there. Nil if there is none.
func (d *Dings) theirs(ctx context.Context, from sites.Site, body json.RawMessage) (*live, error) {
	var m named
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, sites.Refuse(fmt.Errorf("reading a message about a DING: %w", err))
	}
	l, err := d.get(ctx, m.Ding)
	if err != nil || l == nil || l.Origin != from.Name {
		return nil, err
	}
	return l, nil
}

// takeRecall takes back a DING of another site.
func (d *Dings) takeRecall(ctx context.Context, tx *sqldb.Tx, from sites.Site, body json.RawMessage) error {
	l, err := d.theirs(ctx, from, body)
	if err != nil || l == nil {
		return err
	}
	now := d.millis()
	if n, err := tx.Exec(qRecallOf, l.ID, from.Name, now); err != nil || n == 0 {
		return err
	}
	if _, err := d.opts.Outbox.CancelGroup(tx, group(l.ID)); err != nil {
		return err
	}
	if _, err := tx.Exec(qRecallQueued, l.ID, false); err != nil {
		return err
	}
	var retract []bridge.New
	d.mu.Lock()
	for i := range l.to {
		if l.to[i].Event != "" {
			retract = append(retract, d.retraction(l, &l.to[i]))
		}
	}
	d.mu.Unlock()
	if err := d.opts.Outbox.Put(tx, retract...); err != nil {
		return err
	}
	if err := journal(tx, l.ID, now, from.Name, string(Recalled), ""); err != nil {
		return err
	}
	sites.After(ctx, func() {
		d.recalled(l, now)
		d.opts.Outbox.Wake()
		ring(d.tellRun)
		if err := d.retractMissed(context.WithoutCancel(ctx), l, retract); err != nil {
			log.WithError(err).WithField("ding", l.ID).Error("A recalled DING could not be retracted everywhere")
		}
	})
	return nil
}

// takeAsk answers another site that asks whether a DING of this one still stands. Of one that was recalled it has been
// told already, and one that is over it ends by itself.
func (d *Dings) takeAsk(ctx context.Context, tx *sqldb.Tx, from sites.Site, body json.RawMessage) error {
	var m named
	if err := json.Unmarshal(body, &m); err != nil {
		return sites.Refuse(fmt.Errorf("reading a question about a DING: %w", err))
	}
	var state State
	err := tx.QueryRow(qStateOf, m.Ding).Scan(&state)
	if errors.Is(err, sqldb.ErrNoRows) || err == nil && state != Open {
		return nil
	}
	if err != nil {
		return err
	}
	return d.opts.Sites.Send(tx, []sites.Site{from}, kindGo, m)
}

// takeGo delivers a DING that still stands.
func (d *Dings) takeGo(ctx context.Context, tx *sqldb.Tx, from sites.Site, body json.RawMessage) error {
	l, err := d.theirs(ctx, from, body)
	if err != nil || l == nil {
		return err
	}
	if n, err := tx.Exec(qUnhold, l.ID); err != nil || n == 0 {
		return err
	}
	if err := d.opts.Outbox.Put(tx, d.outgoing(l)...); err != nil {
		return err
	}
	sites.After(ctx, func() {
		d.mu.Lock()
		l.held = false
		d.mu.Unlock()
		d.opts.Outbox.Wake()
	})
	return nil
}

// tellSites reports to other sites what became of their DINGs here, gathered, until ctx ends.
func (d *Dings) tellSites(ctx context.Context) {
	if !d.many() {
		return
	}
	failures := gate.Backoff{Min: time.Second, Max: time.Minute}
	for ctx.Err() == nil {
		more, err := d.report(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			log.WithError(err).Error("What became of other sites' DINGs could not be reported, will be tried again")
			if failures.Wait(ctx) != nil {
				return
			}
			continue
		case more:
			continue
		}
		failures.Reset()
		select {
		case <-ctx.Done():
			return
		case <-d.tellRun:
		}
		select {
		case <-ctx.Done():
		case <-time.After(reportEvery):
		}
	}
}

// report sends one batch of reports and says whether there may be more.
func (d *Dings) report(ctx context.Context) (more bool, err error) {
	err = d.db.Write(ctx, func(tx *sqldb.Tx) error {
		list, err := sqldb.Select(tx, func(rows *sqldb.Rows) (r reported, err error) {
			err = rows.Scan(&r.Ding, &r.Person, &r.State, &r.Reason, &r.SentAt, &r.ConfirmedAt, &r.Via, &r.Late)
			return r, err
		}, qTakeUntold, int64(maxReport))
		if more = len(list) == maxReport; err != nil || len(list) == 0 {
			return err
		}
		origins, err := d.origins(tx, list)
		if err != nil {
			return err
		}
		bySite := map[string][]reported{}
		for _, r := range list {
			if site := origins[r.Ding]; site != "" {
				bySite[site] = append(bySite[site], r)
			}
		}
		for site, list := range bySite {
			if s := d.opts.Sites.Named(site); s.Name == site { // else it is a site no longer
				if err := d.opts.Sites.Send(tx, []sites.Site{s}, kindReport, map[string]any{"deliveries": list}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		d.opts.Sites.Wake()
	}
	return more, err
}

func (d *Dings) origins(tx *sqldb.Tx, list []reported) (map[string]string, error) {
	var ids []string
	for _, r := range list {
		if !slices.Contains(ids, r.Ding) {
			ids = append(ids, r.Ding)
		}
	}
	out := map[string]string{}
	_, err := sqldb.Select(tx, func(rows *sqldb.Rows) (struct{}, error) {
		var ding, origin string
		err := rows.Scan(&ding, &origin)
		out[ding] = origin
		return struct{}{}, err
	}, qOrigins, ids)
	return out, err
}

// takeReport takes what became of deliveries at another site. Every report tells all of a delivery, so repeating one,
// or taking an older one after a newer, changes nothing.
func (d *Dings) takeReport(ctx context.Context, tx *sqldb.Tx, from sites.Site, body json.RawMessage) error {
	var m struct {
		Deliveries []reported `json:"deliveries"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return sites.Refuse(fmt.Errorf("reading a report: %w", err))
	}
	type change struct {
		l *live
		r *reported
	}
	var changes []change
	for i := range m.Deliveries {
		r := &m.Deliveries[i]
		l, err := d.get(ctx, r.Ding)
		if err != nil {
			return err
		}
		if l == nil || l.Origin != "" {
			continue
		}
		d.mu.Lock()
		n, ok := l.index[r.Person]
		var next Delivery
		over := l.State.over()
		if ok = ok && l.to[n].Site == from.Name; ok {
			next = l.merged(n, r)
		}
		d.mu.Unlock()
		if !ok {
			continue
		}
		if _, err := tx.Exec(qReported, l.ID, int64(n), string(next.State), next.Reason, next.SentAt, next.ConfirmedAt, next.Via, next.Late); err != nil {
			return err
		}
		if over {
			if _, err := tx.Exec(qReshow, l.ID); err != nil {
				return err
			}
		}
		changes = append(changes, change{l, r})
	}
	sites.After(ctx, func() {
		changed := map[*live]bool{}
		d.mu.Lock()
		for _, c := range changes {
			n := c.l.index[c.r.Person]
			c.l.n.add(&c.l.to[n], -1)
			c.l.to[n] = c.l.merged(n, c.r)
			c.l.n.add(&c.l.to[n], 1)
			changed[c.l] = true
		}
		for l := range changed {
			l.cardDone = l.cardDone && !l.State.over()
			d.touch(l)
		}
		d.mu.Unlock()
		for l := range changed {
			if err := d.maybeConfirmed(context.WithoutCancel(ctx), l); err != nil {
				log.WithError(err).WithField("ding", l.ID).Error("A DING that all have confirmed could not be ended")
			}
		}
	})
	return nil
}

// merged is a delivery with what its site reports of it. A confirmation before the end counts whenever it is heard of.
// The caller holds mu.
func (l *live) merged(n int, r *reported) Delivery {
	t := l.to[n]
	if t.SentAt == 0 {
		t.SentAt = r.SentAt
	}
	if t.ConfirmedAt == 0 && r.ConfirmedAt != 0 {
		t.ConfirmedAt, t.Via = r.ConfirmedAt, r.Via
		t.Late = r.Late || l.State.over() && r.ConfirmedAt > l.EndedAt
	}
	switch {
	case t.ConfirmedAt != 0 && !t.Late:
		t.State, t.Reason = Confirmed, ""
	case t.State != Queued && t.State != Sent:
	case t.SentAt != 0 && r.State != Recalled:
		t.State = Sent
	case r.State == Failed || r.State == Expired || r.State == Recalled:
		t.State, t.Reason = r.State, r.Reason
	}
	return t
}

// closeCopy notes that nothing more is to be done for a DING of another site.
func (d *Dings) closeCopy(ctx context.Context, l *live) error {
	d.mu.Lock()
	delete(d.dirty, l.ID)
	final, done := l.State.over() && l.n.Queued == 0, l.cardDone
	d.mu.Unlock()
	if final == done {
		return nil
	}
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qShown, l.ID, int64(0), "", final)
		return err
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		l.failures++
		d.dirty[l.ID] = true
		return fmt.Errorf("storing that a DING is over: %w", err)
	}
	l.failures, l.cardDone = 0, final
	return nil
}
