package ding

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/readlist"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Limits of a request.
const (
	maxBody    = 2000 // characters
	maxUUID    = 128  // bytes
	maxAhead   = 366 * 24 * time.Hour
	maxExpires = 30 * 24 * time.Hour
	minExpires = time.Minute
)

// Caller is who acts on DINGs: a person of the company, or an administrator who need not be one.
type Caller struct {
	User  string
	Admin bool
}

// actor is the caller as a person. People who left or have not begun cannot act.
func (d *Dings) actor(c Caller) (*org.Person, bool, error) {
	p := d.personOf(c.User)
	admin := c.Admin || d.opts.IsAdmin(c.User) || p != nil && p.Admin
	if p == nil {
		return nil, admin, matrix.Forbidden("DINGs are for the people of the company")
	}
	if p.Status != org.StatusActive {
		return nil, false, matrix.Forbidden("DINGs are for people who work here now")
	}
	return p, admin, nil
}

// Create makes a DING and, unless it is scheduled, fires it. A request with a UUID that the sender has used before
// gives that DING again, and created is false.
func (d *Dings) Create(ctx context.Context, c Caller, req Request) (id string, created bool, err error) {
	sender, admin, err := d.actor(c)
	if err != nil {
		return "", false, err
	}
	if len(req.UUID) > maxUUID {
		return "", false, matrix.InvalidParam("uuid is longer than %d bytes", maxUUID)
	}
	if req.UUID == "" {
		req.UUID = matrix.RandomString(24)
	} else if id, err := d.byUUID(ctx, sender.ID, req.UUID); err != nil || id != "" {
		return id, false, err
	}
	g, err := d.draft(sender, c.User, &req)
	if err != nil {
		return "", false, err
	}
	to, err := d.resolve(ctx, g, sender, admin)
	if err != nil {
		return "", false, err
	}
	l := &live{Ding: *g}
	if g.FireAt <= g.CreatedAt {
		to.into(l, g.CreatedAt)
	}
	err = d.insert(ctx, l)
	if errors.Is(err, sqldb.ErrExists) { // the same request came twice at once
		id, err := d.byUUID(ctx, sender.ID, req.UUID)
		return id, false, err
	}
	if err != nil {
		return "", false, err
	}
	d.mu.Lock()
	d.hold(l)
	d.trim()
	d.mu.Unlock()
	d.opts.Outbox.Wake()
	ring(d.wakeup)
	log.WithFields(log.Fields{"ding": l.ID, "user_id": c.User, "receivers": len(l.to), "state": l.State, "kind": l.Kind}).Info("DING created")
	return l.ID, true, nil
}

// insert stores a new DING and puts what goes out at once into the outbox, all or nothing.
func (d *Dings) insert(ctx context.Context, l *live) error {
	items := d.outgoing(l)
	card := d.firstCard(l)
	l.cardShown = card.shown
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		if l.Kind != Emergency {
			if err := d.quota(tx, l.Sender, l.CreatedAt); err != nil {
				return err
			}
		}
		if err := insertDing(tx, &l.Ding); err != nil {
			return err
		}
		if _, err := tx.Exec(qShown, l.ID, l.cardRev, l.cardShown, false); err != nil {
			return err
		}
		if err := insertDeliveries(tx, l); err != nil {
			return err
		}
		if err := d.opts.Outbox.Put(tx, items...); err != nil {
			return err
		}
		if err := d.opts.Outbox.Put(tx, card.item); err != nil {
			return err
		}
		if err := d.sendAbroad(tx, l); err != nil {
			return err
		}
		return journal(tx, l.ID, l.CreatedAt, l.SenderUser, "created", string(l.State))
	})
	if err == nil {
		return nil
	}
	var refusal *matrix.Error
	if errors.As(err, &refusal) || errors.Is(err, sqldb.ErrExists) {
		return err
	}
	return fmt.Errorf("storing a DING: %w", err)
}

func insertDeliveries(tx *sqldb.Tx, l *live) error {
	for i := range l.to {
		t := &l.to[i]
		if _, err := tx.Exec(qInsertDelivery, l.ID, int64(i), t.Person, t.User, mustJSON(nonNil(t.Units)), string(t.State), t.Site, t.told); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dings) quota(tx *sqldb.Tx, sender string, now int64) error {
	var n, oldest int64
	if err := tx.QueryRow(qQuota, sender, now-60_000).Scan(&n, &oldest); err != nil {
		return err
	}
	if n < int64(d.opts.PerMinute) {
		return nil
	}
	e := matrix.LimitExceeded(time.Duration(oldest+60_000-now) * time.Millisecond)
	e.Msg = fmt.Sprintf("at most %d DINGs a minute", d.opts.PerMinute)
	return e
}

func (d *Dings) byUUID(ctx context.Context, sender, uuid string) (id string, err error) {
	err = d.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qByUUID, sender, uuid).Scan(&id) })
	if errors.Is(err, sqldb.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking for a DING: %w", err)
	}
	return id, nil
}

// draft checks a request and makes it a DING without receivers.
func (d *Dings) draft(sender *org.Person, user string, req *Request) (*Ding, error) {
	now := d.millis()
	g := &Ding{
		ID: newID(now), UUID: req.UUID, Sender: sender.ID, SenderUser: user, Kind: req.Kind, Body: strings.TrimSpace(req.Body),
		State: Open, CreatedAt: now, FireAt: req.FireAt, FiredAt: now, ExpiresAt: req.ExpiresAt,
	}
	switch g.Kind {
	case "":
		g.Kind = Text
	case Text, Emergency:
	default:
		return nil, matrix.InvalidParam("kind must be text or emergency")
	}
	if !utf8.ValidString(g.Body) || strings.ContainsRune(g.Body, 0) {
		return nil, matrix.InvalidParam("body is not text")
	}
	if n := utf8.RuneCountInString(g.Body); n > maxBody {
		return nil, matrix.TooLarge("body has %d characters, at most %d are allowed", n, maxBody)
	}
	if g.Body == "" && req.Receivers.UnreadOf == nil {
		return nil, matrix.MissingParam("body must say what the DING is about")
	}
	if err := d.times(g, now); err != nil {
		return nil, err
	}
	var err error
	g.Receivers, err = d.canonical(&req.Receivers)
	return g, err
}

func (d *Dings) times(g *Ding, now int64) error {
	if g.FireAt > now {
		if g.FireAt > now+maxAhead.Milliseconds() {
			return matrix.InvalidParam("fire_at is more than a year ahead")
		}
		g.State, g.FiredAt = Scheduled, 0
	} else {
		if g.FireAt != 0 && g.FireAt < now-time.Minute.Milliseconds() {
			return matrix.InvalidParam("fire_at has passed")
		}
		g.FireAt = now
	}
	if g.ExpiresAt == 0 {
		g.ExpiresAt = g.FireAt + d.opts.Expires.Milliseconds()
	}
	if wait := g.ExpiresAt - g.FireAt; wait < minExpires.Milliseconds() || wait > maxExpires.Milliseconds() {
		return matrix.InvalidParam("expires_at must be between one minute and thirty days after the DING is fired")
	}
	return nil
}

// canonical turns names of people and units into their lasting IDs, so that they can be found again when it is fired.
func (d *Dings) canonical(r *Receivers) (out Receivers, err error) {
	tree := d.opts.Tree()
	out.Everybody, out.UnreadOf = r.Everybody, r.UnreadOf
	for _, q := range r.Persons {
		p, err := d.onePerson(tree, q)
		if err != nil {
			return out, err
		}
		if !slices.Contains(out.Persons, p.ID) {
			out.Persons = append(out.Persons, p.ID)
		}
	}
	for _, q := range r.Units {
		units := tree.FindUnit(q)
		switch len(units) {
		case 0:
			return out, matrix.InvalidParam("no unit is called %s", clip(q)).With("unknown_unit", clip(q))
		case 1:
		default:
			ids := make([]string, len(units))
			for i, u := range units {
				ids[i] = u.ID
			}
			return out, matrix.InvalidParam("%d units are called %s: %s", len(units), clip(q), strings.Join(ids, ", ")).
				With("ambiguous_unit", clip(q)).With("candidates", ids)
		}
		if !slices.Contains(out.Units, units[0].ID) {
			out.Units = append(out.Units, units[0].ID)
		}
	}
	if s := out.UnreadOf; s != nil {
		if _, err := matrix.ParseRoomID(s.Room); err != nil {
			return out, err
		}
		if _, err := matrix.ParseEventID(s.Event); err != nil {
			return out, err
		}
	}
	if len(out.Persons)+len(out.Units) == 0 && !out.Everybody && out.UnreadOf == nil {
		return out, matrix.MissingParam("receivers must name people, units, everybody or the message that was not read")
	}
	return out, nil
}

// onePerson finds a person by job number, log-in name, mobile, name or user ID. Of several of one name, those who
// still work here count.
func (d *Dings) onePerson(tree *org.Tree, q string) (*org.Person, error) {
	var found []*org.Person
	if strings.HasPrefix(q, "@") && strings.Contains(q, ":") {
		if p := d.personOf(q); p != nil {
			return p, nil
		}
	} else if found = tree.FindPerson(strings.TrimPrefix(q, "@")); len(found) > 1 {
		var working []*org.Person
		for _, p := range found {
			if p.Status != org.StatusLeft {
				working = append(working, p)
			}
		}
		if len(working) > 0 {
			found = working
		}
	}
	switch len(found) {
	case 0:
		return nil, matrix.InvalidParam("nobody is called %s", clip(q)).With("unknown_person", clip(q))
	case 1:
		return found[0], nil
	}
	ids := make([]string, len(found))
	for i, p := range found {
		ids[i] = p.ID
	}
	return nil, matrix.InvalidParam("%d people are called %s: %s", len(found), clip(q), strings.Join(ids, ", ")).
		With("ambiguous_person", clip(q)).With("candidates", ids)
}

func clip(s string) string {
	if r := []rune(s); len(r) > 64 {
		return string(r[:64]) + "…"
	}
	return s
}

// resolved is whom a DING reaches at this moment.
type resolved struct {
	to          []Delivery
	skipped     []Skip
	alreadyRead int
}

// into makes a DING fired at now, with these receivers.
func (r *resolved) into(l *live, now int64) {
	l.to, l.Skipped, l.AlreadyRead = r.to, r.skipped, r.alreadyRead
	l.State, l.FiredAt = Open, now
}

// resolve finds the receivers of a DING now and checks that its sender may DING them.
func (d *Dings) resolve(ctx context.Context, g *Ding, sender *org.Person, admin bool) (*resolved, error) {
	x := &resolver{d: d, tree: d.opts.Tree(), sender: sender, seen: map[string]int{}}
	for _, id := range g.Receivers.Persons {
		if p := x.tree.Person(id); p != nil {
			x.take(p, "")
		} else {
			x.skipped = append(x.skipped, Skip{Person: id, Name: id, Reason: "unknown"})
		}
	}
	for _, id := range g.Receivers.Units {
		if x.tree.Unit(id) == nil {
			x.skipped = append(x.skipped, Skip{Person: "", Name: id, Reason: "unit_removed"})
			continue
		}
		for _, p := range x.tree.Members(id, true) {
			x.take(p, id)
		}
	}
	if g.Receivers.Everybody {
		for _, p := range x.tree.People() {
			if p.Status != org.StatusLeft {
				x.take(p, "")
			}
		}
	}
	if s := g.Receivers.UnreadOf; s != nil {
		missing, err := d.opts.Unread.Unread(ctx, readlist.Viewer{User: g.SenderUser, Admin: admin}, s.Room, s.Event)
		if err != nil {
			return nil, err
		}
		x.alreadyRead = missing.Read
		for _, user := range missing.Users {
			if p := d.personOf(user); p != nil {
				x.take(p, "")
			} else {
				x.skipped = append(x.skipped, Skip{Person: user, Name: user, Reason: "unknown"})
			}
		}
	}
	if len(x.to) == 0 {
		return nil, noReceivers(x)
	}
	return &x.resolved, d.permit(g, sender, admin, x)
}

func noReceivers(x *resolver) error {
	msg := "nobody is left to DING"
	if x.alreadyRead > 0 && len(x.skipped) == 0 {
		msg = "everybody has read the message"
	}
	return matrix.NewError(http.StatusBadRequest, codeNoReceivers, "%s", msg).With("skipped", nonNil(x.skipped)).With("already_read", x.alreadyRead)
}

// Error codes of this package.
const (
	codeNoReceivers = "IM_CARILLON_NO_RECEIVERS"
	codeDingOver    = "IM_CARILLON_DING_OVER"
)

type resolver struct {
	resolved
	d      *Dings
	tree   *org.Tree
	sender *org.Person
	seen   map[string]int // person -> place in to, or -1 for the skipped
}

// take adds a person, named for a unit or "", unless they are there or must be passed over.
func (x *resolver) take(p *org.Person, unit string) {
	if i, ok := x.seen[p.ID]; ok {
		if i >= 0 && unit != "" && !slices.Contains(x.to[i].Units, unit) {
			x.to[i].Units = append(x.to[i].Units, unit)
		}
		return
	}
	reason := ""
	switch {
	case p.ID == x.sender.ID:
		reason = "self"
	case p.Status == org.StatusLeft:
		reason = "left"
	case p.Status == org.StatusSuspended:
		reason = "suspended"
	case p.Status != org.StatusActive || p.Localpart == "":
		reason = "not_active"
	}
	if reason != "" {
		x.seen[p.ID] = -1
		x.skipped = append(x.skipped, Skip{Person: p.ID, Name: p.Name, Reason: reason})
		return
	}
	x.seen[p.ID] = len(x.to)
	t := Delivery{Person: p.ID, User: x.d.userOf(p), State: Queued, told: true}
	t.Site = x.d.siteOf(t.User)
	if unit != "" {
		t.Units = []string{unit}
	}
	x.to = append(x.to, t)
}

// permit checks who may DING whom: administrators everybody, others those below them in the units they manage, and
// outside of those MaxReceivers people.
func (d *Dings) permit(g *Ding, sender *org.Person, admin bool, x *resolver) error {
	if admin {
		return nil
	}
	managed := x.tree.ManagedUnits(sender.ID)
	if g.Kind == Emergency && len(managed) == 0 {
		return matrix.Forbidden("emergency DINGs are for managers and administrators")
	}
	if len(x.to) <= d.opts.MaxReceivers {
		return nil
	}
	below := map[string]bool{}
	for _, u := range managed {
		for _, p := range x.tree.Members(u.ID, true) {
			below[p.ID] = true
		}
	}
	outside := 0
	for i := range x.to {
		if !below[x.to[i].Person] {
			outside++
		}
	}
	if outside > d.opts.MaxReceivers {
		return matrix.Forbidden("you may DING at most %d people outside of the units you manage; these are %d", d.opts.MaxReceivers, outside).
			With("max_receivers", d.opts.MaxReceivers).With("outside", outside)
	}
	return nil
}
