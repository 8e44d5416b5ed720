package ding

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Limits of pages.
const (
	maxList       = 100
	maxDeliveries = 500
)

// Routes are the endpoints of this package.
func (d *Dings) Routes() []httpapi.Route {
	const base = "/_carillon/v1/dings"
	return []httpapi.Route{
		{Method: http.MethodPost, Path: base, Auth: httpapi.AuthUser, Handler: d.serveCreate},
		{Method: http.MethodGet, Path: base, Auth: httpapi.AuthUser, Handler: d.serveList},
		{Method: http.MethodGet, Path: base + "/{dingId}", Auth: httpapi.AuthUser, Handler: d.serveShow},
		{Method: http.MethodPost, Path: base + "/{dingId}/recall", Auth: httpapi.AuthUser, Handler: d.serveRecall},
		{Method: http.MethodPost, Path: base + "/{dingId}/confirm", Auth: httpapi.AuthUser, Handler: d.serveConfirm},
	}
}

func callerOf(c *httpapi.Call) Caller {
	return Caller{User: string(c.Caller.User), Admin: c.Caller.Admin}
}

// personJSON is a person in an answer.
type personJSON struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	User string `json:"user_id,omitempty"`
	Unit string `json:"unit,omitempty"`
}

// dingJSON is a DING in an answer. Receivers, Skipped and Reason are for those who see all of it.
type dingJSON struct {
	ID        string        `json:"id"`
	UUID      string        `json:"uuid,omitempty"`
	Kind      string        `json:"kind"`
	State     State         `json:"state"`
	Reason    string        `json:"reason,omitempty"`
	Body      string        `json:"body"`
	Sender    personJSON    `json:"sender"`
	Receivers *Receivers    `json:"receivers,omitempty"`
	Source    *Source       `json:"source,omitempty"`
	CreatedAt int64         `json:"created_at"`
	FireAt    int64         `json:"fire_at"`
	FiredAt   int64         `json:"fired_at,omitempty"`
	ExpiresAt int64         `json:"expires_at"`
	EndedAt   int64         `json:"ended_at,omitempty"`
	Counts    Counts        `json:"counts"`
	Skipped   []Skip        `json:"skipped,omitempty"`
	Mine      *deliveryJSON `json:"mine,omitempty"`
	Site      string        `json:"site,omitempty"` // of the sender, when it is another one
}

// deliveryJSON is what became of a DING for one receiver.
type deliveryJSON struct {
	Person      personJSON `json:"person"`
	State       State      `json:"state"`
	Reason      string     `json:"reason,omitempty"`
	SentAt      int64      `json:"sent_at,omitempty"`
	ConfirmedAt int64      `json:"confirmed_at,omitempty"`
	Via         string     `json:"via,omitempty"`
	Late        bool       `json:"late,omitempty"`
	Room        string     `json:"room_id,omitempty"`
	Event       string     `json:"event_id,omitempty"`
	Site        string     `json:"site,omitempty"` // that delivers, when it is another one
}

func (d *Dings) personJSON(person, user string) personJSON {
	p := personJSON{ID: person, Name: d.nameOf(person), User: user}
	if units := d.opts.Tree().UnitsOf(person); len(units) > 0 {
		p.Unit = units[0].Name
	}
	return p
}

func (d *Dings) deliveryJSON(t *Delivery) deliveryJSON {
	return deliveryJSON{
		Person: d.personJSON(t.Person, t.User), State: t.State, Reason: t.Reason, SentAt: t.SentAt, ConfirmedAt: t.ConfirmedAt, Via: t.Via,
		Late: t.Late, Room: t.Room, Event: t.Event, Site: t.Site,
	}
}

func (d *Dings) dingJSON(g *Ding, n Counts, all bool) dingJSON {
	j := dingJSON{
		ID: g.ID, Kind: g.Kind, State: g.State, Body: g.Body, Sender: d.personJSON(g.Sender, g.SenderUser), Source: g.Receivers.UnreadOf,
		CreatedAt: g.CreatedAt, FireAt: g.FireAt, FiredAt: g.FiredAt, ExpiresAt: g.ExpiresAt, EndedAt: g.EndedAt, Counts: n, Site: g.Origin,
	}
	if all {
		r := g.Receivers
		j.Receivers, j.Skipped, j.Reason, j.UUID = &r, g.Skipped, g.Reason, g.UUID
	}
	return j
}

func (d *Dings) serveCreate(c *httpapi.Call) (any, error) {
	raw, err := c.RawBody()
	if err != nil {
		return nil, err
	}
	if err := d.schemas.Validate("im.carillon.ding.request", raw); err != nil {
		return nil, err
	}
	var req Request
	if err := httpapi.Decode(raw, &req); err != nil {
		return nil, err
	}
	id, created, err := d.Create(c.Ctx(), callerOf(c), req)
	if err != nil {
		return nil, err
	}
	l, err := d.get(c.Ctx(), id)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	g, n := l.Ding, l.n
	d.mu.Unlock()
	status := http.StatusCreated
	if !created {
		status = http.StatusOK
	}
	return httpapi.Status{Code: status, Body: d.dingJSON(&g, n, true)}, nil
}

func (d *Dings) serveShow(c *httpapi.Call) (any, error) {
	limit, err := c.QueryInt("limit", 100, 0, maxDeliveries)
	if err != nil {
		return nil, err
	}
	after := -1
	if s := c.Query("cursor"); s != "" {
		if after, err = strconv.Atoi(s); err != nil || after < 0 {
			return nil, matrix.InvalidParam("cursor is not one that was given out")
		}
	}
	state := State(c.Query("state"))
	switch state {
	case "", Queued, Sent, Confirmed, Failed, Expired, Recalled, "late", "unconfirmed":
	default:
		return nil, matrix.InvalidParam("state must be queued, sent, confirmed, unconfirmed, failed, expired, recalled or late")
	}
	l, err := d.get(c.Ctx(), c.Var("dingId"))
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, errNoDing()
	}
	s := d.sees(l, callerOf(c))
	if !s.any() {
		return nil, errNoDing()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out := struct {
		dingJSON
		Deliveries []deliveryJSON `json:"deliveries,omitempty"`
		Next       string         `json:"next_cursor,omitempty"`
		Units      []unitJSON     `json:"units,omitempty"`
		Sites      []siteJSON     `json:"sites,omitempty"`
		Timing     *timing        `json:"timing,omitempty"`
	}{dingJSON: d.dingJSON(&l.Ding, l.n, s.all)}
	if s.mine >= 0 {
		t := d.deliveryJSON(&l.to[s.mine])
		out.Mine = &t
	}
	if !s.all {
		return out, nil
	}
	for i := after + 1; i < len(l.to) && limit > 0; i++ {
		if !l.to[i].is(state) {
			continue
		}
		if len(out.Deliveries) == limit {
			out.Next = strconv.Itoa(l.index[out.Deliveries[limit-1].Person.ID])
			break
		}
		out.Deliveries = append(out.Deliveries, d.deliveryJSON(&l.to[i]))
	}
	out.Units, out.Sites, out.Timing = d.byUnit(l), d.bySite(l), l.timing()
	return out, nil
}

// is reports whether a delivery belongs into a list.
func (t *Delivery) is(state State) bool {
	switch state {
	case "":
		return true
	case "late":
		return t.Late
	case "unconfirmed":
		return t.ConfirmedAt == 0 && t.SentAt != 0
	}
	return t.State == state
}

// unitJSON is the figures of one unit; a person named by two units counts in both.
type unitJSON struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Total     int    `json:"total"`
	Confirmed int    `json:"confirmed"`
}

// byUnit counts by the units that were asked for, or else by the people's main units. The caller holds mu.
func (d *Dings) byUnit(l *live) []unitJSON {
	tree := d.opts.Tree()
	index := map[string]int{}
	var out []unitJSON
	count := func(id string, confirmed bool) {
		i, ok := index[id]
		if !ok {
			i = len(out)
			index[id] = i
			u := unitJSON{ID: id, Name: id}
			if unit := tree.Unit(id); unit != nil {
				u.Name = unit.Name
			}
			out = append(out, u)
		}
		out[i].Total++
		if confirmed {
			out[i].Confirmed++
		}
	}
	for i := range l.to {
		t := &l.to[i]
		units := t.Units
		if len(units) == 0 {
			if own := tree.UnitsOf(t.Person); len(own) > 0 {
				count(own[0].ID, t.ConfirmedAt != 0)
			}
			continue
		}
		for _, u := range units {
			count(u, t.ConfirmedAt != 0)
		}
	}
	return out
}

// timing is how long people took to confirm, in milliseconds from the firing.
type timing struct {
	First int64 `json:"first"`
	P50   int64 `json:"p50"`
	P90   int64 `json:"p90"`
	P99   int64 `json:"p99"`
	Last  int64 `json:"last"`
}

func (l *live) timing() *timing {
	took := make([]int64, 0, len(l.to))
	for i := range l.to {
		if at := l.to[i].ConfirmedAt; at != 0 {
			took = append(took, at-l.FiredAt)
		}
	}
	if len(took) == 0 {
		return nil
	}
	slices.Sort(took)
	at := func(percent int) int64 { return took[(len(took)-1)*percent/100] }
	return &timing{First: took[0], P50: at(50), P90: at(90), P99: at(99), Last: took[len(took)-1]}
}

func (d *Dings) serveList(c *httpapi.Call) (any, error) {
	limit, err := c.QueryInt("limit", 20, 1, maxList)
	if err != nil {
		return nil, err
	}
	box := c.Query("box")
	switch box {
	case "":
		box = "sent"
	case "sent", "received", "unconfirmed":
	default:
		return nil, matrix.InvalidParam("box must be sent, received or unconfirmed")
	}
	before := c.Query("cursor")
	if before == "" {
		before = "z" // after every ID
	} else if len(before) > 64 {
		return nil, matrix.InvalidParam("cursor is not one that was given out")
	}
	out := struct {
		Dings []dingJSON `json:"dings"`
		Next  string     `json:"next_cursor,omitempty"`
	}{Dings: []dingJSON{}}
	p := d.personOf(string(c.Caller.User))
	if p == nil {
		return out, nil
	}
	list, err := d.list(c.Ctx(), p.ID, box, before, limit+1)
	if err != nil {
		return nil, err
	}
	if len(list) > limit {
		list = list[:limit]
		out.Next = list[limit-1].ID
	}
	out.Dings = append(out.Dings, list...)
	return out, nil
}

// list reads a page of a person's DINGs, newest first.
func (d *Dings) list(ctx context.Context, person, box, before string, limit int) (out []dingJSON, err error) {
	err = d.db.Read(ctx, func(tx *sqldb.Tx) error {
		var dings []Ding
		var ids []string
		var err error
		if box == "sent" {
			dings, err = sqldb.Select(tx, scanDings, qSentList, person, before, int64(limit))
		} else {
			q := qReceived
			if box == "unconfirmed" {
				q = qUnconfirmed
			}
			if ids, err = sqldb.Select(tx, scanString, q, person, before, int64(limit)); err == nil {
				dings, err = sqldb.Select(tx, scanDings, qMany, ids)
			}
		}
		if err != nil {
			return err
		}
		ids = ids[:0]
		for i := range dings {
			ids = append(ids, dings[i].ID)
		}
		counts, err := countsOf(tx, ids)
		if err != nil {
			return err
		}
		mine := map[string]*deliveryJSON{}
		if box != "sent" {
			if mine, err = d.mineOf(tx, person, ids); err != nil {
				return err
			}
		}
		out = make([]dingJSON, 0, len(dings))
		for i := range dings {
			n := counts[dings[i].ID]
			n.Skipped, n.AlreadyRead = len(dings[i].Skipped), dings[i].AlreadyRead
			j := d.dingJSON(&dings[i], n, box == "sent")
			j.Mine = mine[j.ID]
			out = append(out, j)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing DINGs: %w", err)
	}
	return out, nil
}

func countsOf(tx *sqldb.Tx, ids []string) (map[string]Counts, error) {
	counts := map[string]Counts{}
	rows, err := tx.Query(qCounts, ids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var state State
		var n, late, out int
		if err := rows.Scan(&id, &state, &n, &late, &out); err != nil {
			return nil, err
		}
		c := counts[id]
		c.Total += n
		c.add(&Delivery{State: state}, n)
		c.Late += late
		c.WentOut += out
		counts[id] = c
	}
	return counts, rows.Err()
}

func (d *Dings) mineOf(tx *sqldb.Tx, person string, ids []string) (map[string]*deliveryJSON, error) {
	mine := map[string]*deliveryJSON{}
	rows, err := tx.Query(qMine, person, ids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		t, err := scanDelivery(rows, &id)
		if err != nil {
			return nil, err
		}
		j := d.deliveryJSON(&t)
		mine[id] = &j
	}
	return mine, rows.Err()
}

func (d *Dings) serveRecall(c *httpapi.Call) (any, error) {
	if err := emptyBody(c); err != nil {
		return nil, err
	}
	caller := callerOf(c)
	if err := d.Recall(c.Ctx(), caller, c.Var("dingId")); err != nil {
		return nil, err
	}
	l, err := d.get(c.Ctx(), c.Var("dingId"))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out := struct {
		State   State        `json:"state"`
		Counts  Counts       `json:"counts"`
		WentOut []personJSON `json:"went_out"` // the first thousand of those whom it had reached
	}{State: l.State, Counts: l.n, WentOut: []personJSON{}}
	for i := range l.to {
		if t := &l.to[i]; t.SentAt != 0 && len(out.WentOut) < 1000 {
			out.WentOut = append(out.WentOut, d.personJSON(t.Person, t.User))
		}
	}
	return out, nil
}

func (d *Dings) serveConfirm(c *httpapi.Call) (any, error) {
	if err := emptyBody(c); err != nil {
		return nil, err
	}
	at, late, err := d.Confirm(c.Ctx(), callerOf(c), c.Var("dingId"))
	if err != nil {
		return nil, err
	}
	return struct {
		ConfirmedAt int64 `json:"confirmed_at"`
		Late        bool  `json:"late,omitempty"`
	}{at, late}, nil
}

// emptyBody checks that a body, if there is one, is a JSON object.
func emptyBody(c *httpapi.Call) error {
	var ignored map[string]json.RawMessage
	return c.Body(&ignored)
}
