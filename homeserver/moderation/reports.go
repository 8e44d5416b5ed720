package moderation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// maxReason is the longest reason of a report, in bytes.
const maxReason = 4000

const (
	reportColumns = `id, kind, reporter, room_id, event_id, user_id, reason, ts, handled_by, handled_ts`
	qReport       = `INSERT INTO reports (kind, reporter, room_id, event_id, user_id, reason, ts, handled_by, handled_ts)
		VALUES ($1, $2, $3, $4, $5, $6, $7, '', 0)
		ON CONFLICT (reporter, kind, room_id, event_id, user_id) DO UPDATE SET reason = excluded.reason, ts = excluded.ts, handled_by = '', handled_ts = 0`
	qReports       = `SELECT ` + reportColumns + ` FROM reports WHERE id < $1 ORDER BY id DESC LIMIT $2`
	qOpenReports   = `SELECT ` + reportColumns + ` FROM reports WHERE id < $1 AND handled_ts = 0 ORDER BY id DESC LIMIT $2`
	qClosedReports = `SELECT ` + reportColumns + ` FROM reports WHERE id < $1 AND handled_ts <> 0 ORDER BY id DESC LIMIT $2`
	qOneReport     = `SELECT ` + reportColumns + ` FROM reports WHERE id = $1`
	qHandle        = `UPDATE reports SET handled_by = $2, handled_ts = $3 WHERE id = $1`
)

// Report is what somebody has reported.
type Report struct {
	ID        int64          `json:"id"`
	Kind      string         `json:"kind"` // room, event or user
	Reporter  matrix.UserID  `json:"reporter"`
	Room      matrix.RoomID  `json:"room_id,omitempty"`
	Event     matrix.EventID `json:"event_id,omitempty"`
	User      matrix.UserID  `json:"user_id,omitempty"` // who is reported; of an event its sender
	Reason    string         `json:"reason"`
	TS        int64          `json:"ts"`
	HandledBy matrix.UserID  `json:"handled_by,omitempty"`
	HandledTS int64          `json:"handled_ts,omitempty"`
}

func scanReport(r *sqldb.Rows) (p Report, err error) {
	err = r.Scan(&p.ID, &p.Kind, &p.Reporter, &p.Room, &p.Event, &p.User, &p.Reason, &p.TS, &p.HandledBy, &p.HandledTS)
	return p, err
}

// store keeps a report; a second one of the same thing takes its place.
func (m *Moderation) store(ctx context.Context, p Report) error {
	err := m.DB.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qReport, p.Kind, string(p.Reporter), string(p.Room), string(p.Event), string(p.User), p.Reason, matrix.Millis(m.Now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("storing a report: %w", err)
	}
	log.WithFields(log.Fields{
		"kind": p.Kind, "reporter": p.Reporter, "room_id": p.Room, "event_id": p.Event, "user_id": p.User,
	}).Warn("something has been reported to the administrators")
	return nil
}

// reason reads the body of a report.
func reason(c *httpapi.Call, needed bool) (string, error) {
	var body struct {
		Reason *string `json:"reason"`
	}
	if err := c.Body(&body); err != nil {
		return "", err
	}
	switch {
	case body.Reason == nil && needed:
		return "", matrix.MissingParam("reason is needed; it may be blank")
	case body.Reason == nil:
		return "", nil
	case len(*body.Reason) > maxReason:
		return "", matrix.InvalidParam("the reason is longer than %d bytes", maxReason)
	}
	return *body.Reason, nil
}

// reportRoom takes a report of a room, also from who is not in it. Whether the
// room exists is not told.
//
// Spec: post_matrixclientv3roomsroomidreport
func (m *Moderation) reportRoom(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	why, err := reason(c, true)
	if err != nil {
		return nil, err
	}
	member, err := m.Rooms.MembershipOf(c.Ctx(), c.Caller.User, room)
	if err != nil {
		return nil, err
	}
	if member == nil { // else he may be invited to a room that this server is not in
		if _, err := m.Rooms.Version(c.Ctx(), room); matrix.IsCode(err, "M_NOT_FOUND") {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	return nil, m.store(c.Ctx(), Report{Kind: "room", Reporter: c.Caller.User, Room: room, Reason: why})
}

// reportEvent takes a report of an event that the caller can see in a room that
// he is in.
//
// Spec: post_matrixclientv3roomsroomidreporteventid
func (m *Moderation) reportEvent(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	id, err := matrix.ParseEventID(c.Var("eventId"))
	if err != nil {
		return nil, err
	}
	why, err := reason(c, false)
	if err != nil {
		return nil, err
	}
	unknown := matrix.NotFound("The event was not found or you are not joined to the room.")
	if !m.Hub.Joined(c.Caller.User, room) {
		return nil, unknown
	}
	e, err := m.Events.ByID(c.Ctx(), id)
	if err != nil {
		return nil, err
	}
	if e == nil || e.Room != room {
		return nil, unknown
	}
	seen, err := m.Rooms.Visible(c.Ctx(), c.Caller.User, room, []*events.Event{e})
	if err != nil {
		return nil, err
	}
	if len(seen) == 0 {
		return nil, unknown
	}
	return nil, m.store(c.Ctx(), Report{Kind: "event", Reporter: c.Caller.User, Room: room, Event: id, User: e.Sender, Reason: why})
}

// reportUser takes a report of a user. Whether he exists is not told.
//
// Spec: post_matrixclientv3usersuseridreport
func (m *Moderation) reportUser(c *httpapi.Call) (any, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	why, err := reason(c, true)
	if err != nil {
		return nil, err
	}
	if user.Server() == m.Rooms.Server() && !m.Accounts.Exists(user) {
		return nil, nil
	}
	return nil, m.store(c.Ctx(), Report{Kind: "user", Reporter: c.Caller.User, User: user, Reason: why})
}

// listReports pages through the reports, the newest first: from is the last ID of
// the page before, handled says which to show.
func (m *Moderation) listReports(c *httpapi.Call) (any, error) {
	limit, err := c.QueryInt("limit", 100, 1, 1000)
	if err != nil {
		return nil, err
	}
	from := int64(1) << 62
	if s := c.Query("from"); s != "" {
		if from, err = strconv.ParseInt(s, 10, 64); err != nil {
			return nil, matrix.InvalidParam("from is not a token of this endpoint")
		}
	}
	handled, err := c.Bool("handled")
	if err != nil {
		return nil, err
	}
	list := []Report{}
	err = m.DB.Read(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		switch {
		case !c.Values().Has("handled"):
			list, err = sqldb.Select(tx, scanReport, qReports, from, limit+1)
		case handled:
			list, err = sqldb.Select(tx, scanReport, qClosedReports, from, limit+1)
		default:
			list, err = sqldb.Select(tx, scanReport, qOpenReports, from, limit+1)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading reports: %w", err)
	}
	out := struct {
		Reports []Report `json:"reports"`
		Next    string   `json:"next_batch,omitempty"`
	}{Reports: append([]Report{}, list...)}
	if len(list) > limit {
		out.Reports = list[:limit]
		out.Next = strconv.FormatInt(list[limit-1].ID, 10)
	}
	return out, nil
}

// reportVar reads the report that a request is about.
func (m *Moderation) reportVar(c *httpapi.Call) (p Report, err error) {
	unknown := matrix.NotFound("there is no report %q", c.Var("reportId"))
	id, err := strconv.ParseInt(c.Var("reportId"), 10, 64)
	if err != nil {
		return p, unknown
	}
	err = m.DB.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		list, err := sqldb.Select(tx, scanReport, qOneReport, id)
		if err == nil && len(list) == 0 {
			return unknown
		}
		if err == nil {
			p = list[0]
		}
		return err
	})
	var me *matrix.Error
	if err != nil && !errors.As(err, &me) {
		err = fmt.Errorf("reading a report: %w", err)
	}
	return p, err
}

// showReport is a report with the event that it is about, as far as it is left.
func (m *Moderation) showReport(c *httpapi.Call) (any, error) {
	p, err := m.reportVar(c)
	if err != nil {
		return nil, err
	}
	out := struct {
		Report
		Content json.RawMessage `json:"event,omitempty"`
	}{Report: p}
	if p.Event != "" {
		e, err := m.Events.ByID(c.Ctx(), p.Event)
		if err != nil {
			return nil, err
		}
		if e != nil {
			out.Content = e.AppendClient(nil, events.ClientFormat{Now: m.Now()})
		}
	}
	return out, nil
}

// handleReport notes that a report has been dealt with, or has not.
func (m *Moderation) handleReport(c *httpapi.Call) (any, error) {
	var body struct {
		Handled *bool `json:"handled"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Handled == nil {
		return nil, matrix.MissingParam("handled is needed")
	}
	p, err := m.reportVar(c)
	if err != nil {
		return nil, err
	}
	p.HandledBy, p.HandledTS = "", 0
	if *body.Handled {
		p.HandledBy, p.HandledTS = c.Caller.User, matrix.Millis(m.Now())
	}
	err = m.DB.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qHandle, p.ID, string(p.HandledBy), p.HandledTS)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing a report: %w", err)
	}
	return p, nil
}
