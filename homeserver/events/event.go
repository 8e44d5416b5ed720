// Package events stores the events of all rooms, each once, and knows their
// formats: how an event is built, hashed and signed, what it looks like to a
// client, and what redaction leaves of it. It knows nothing of a room's state.
//
// Tables: events, events_backward (the counter of negative row numbers).
//
// Spec: client-server-api#events, server-server-api#pdus, rooms/v1 to rooms/v12
//
// Invariants: an Event is immutable once it is published; redaction makes a new
// Event of the same ID and replaces the stored JSON in the same commit that
// stores the redaction.
package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Flags of a stored event. Clients may see those with none of the first three:
// in SQL, flags & 7 = 0.
const (
	FlagRejected   = 1 << iota // failed authorisation; kept so that it is not fetched again
	FlagSoftFailed             // allowed where it was made, not by the current state; not shown to clients
	FlagOutlier                // known only as part of a state or an auth chain
	FlagBackfilled             // fetched as history
	FlagGap                    // not all is known of what comes right before it
	FlagPolicy                 // soft-failed as the room's policy server did not sign it
	FlagDummy                  // holds the ends of a room together; soft-failed for clients alone
)

// Dummy is the type of events by which servers bring a room's ends together. Clients
// do not see them.
const Dummy = "org.matrix.dummy_event"

// Event is one stored or newly built event.
type Event struct {
	NID      int64      // row number, 0 before it is stored
	Pos      stream.Pos // place in the room's timeline, 0 for outliers
	ID       matrix.EventID
	Room     matrix.RoomID
	Version  gomatrixserverlib.RoomVersion
	Sender   matrix.UserID
	Type     string
	StateKey *string // nil for message events
	TS       int64   // origin_server_ts, ms
	Depth    int64
	Flags    int
	Redacts  matrix.EventID
	RelType  string // m.relates_to.rel_type
	RelTo    matrix.EventID
	Txn      string // see TxnKey, "" for none
	JSON     []byte // the PDU

	Replaces   int64  // NID of the state event it replaced, 0 for none
	RedactedBy int64  // NID of the redaction, 0 for none
	Replaced   *Event // the event of Replaces, where it was loaded
	Redaction  *Event // the event of RedactedBy, where it was loaded
	Target     *Event // of a redaction: the redacted form of its target
	Membership string // content.membership of a member event
	Sticky     int64  // how long, in ms from its time, clients hear of it in any case (MSC4354); 0: no sticky event
	Resolved   *Resolved
	client     atomic.Pointer[[]byte]
}

// Resolved says what an event changed in a room that had forked: the state was
// resolved anew, and the event itself may have no part in it. It is there for
// those who are told by the log, and not stored.
type Resolved struct{ Moves map[matrix.UserID]string }

// Moves yields the memberships that change with the event: that of a member
// event, or those that resolution has changed where the room had forked.
func (e *Event) Moves(yield func(matrix.UserID, string) bool) {
	switch {
	case e.Resolved != nil:
		for u, m := range e.Resolved.Moves {
			if !yield(u, m) {
				return
			}
		}
	case e.Type == "m.room.member" && e.StateKey != nil && !e.Hidden():
		yield(matrix.UserID(*e.StateKey), e.Membership)
	}
}

// Content is the event's content as a JSON object.
func (e *Event) Content() []byte {
	c := gjson.GetBytes(e.JSON, "content")
	if !c.IsObject() {
		return []byte("{}")
	}
	return []byte(c.Raw)
}

// ContentString reads one string of the content; path is in gjson's syntax.
func (e *Event) ContentString(path string) string {
	v := gjson.GetBytes(e.JSON, "content."+path)
	if v.Type != gjson.String {
		return ""
	}
	return v.Str
}

// IsState reports whether the event has a state key.
func (e *Event) IsState() bool { return e.StateKey != nil }

// Key is the state key or "".
func (e *Event) Key() string {
	if e.StateKey == nil {
		return ""
	}
	return *e.StateKey
}

// Redacted reports whether the event has been redacted.
func (e *Event) Redacted() bool { return e.RedactedBy != 0 }

// Rejected reports whether the event failed authorisation.
func (e *Event) Rejected() bool { return e.Flags&FlagRejected != 0 }

// Gap reports whether events may be missing right before this one.
func (e *Event) Gap() bool { return e.Flags&FlagGap != 0 }

// Hidden reports whether clients must not see the event.
func (e *Event) Hidden() bool { return e.Flags&(FlagRejected|FlagSoftFailed) != 0 }

// Dead reports whether nothing is to be built on the event, and no server told of it.
func (e *Event) Dead() bool { return e.Hidden() && e.Flags&FlagDummy == 0 }

// IsDummy reports whether an event is there to be built upon, and says nothing to
// anybody.
func (e *Event) IsDummy() bool { return e.Type == Dummy && e.StateKey == nil }

// PDU parses the event for gomatrixserverlib.
func (e *Event) PDU() (gomatrixserverlib.PDU, error) {
	v, err := RoomVersion(e.Version)
	if err != nil {
		return nil, err
	}
	form := libraryForm(e.JSON)
	if v.Version() != e.Version && e.Type == spec.MRoomCreate { // the library does not know the version by its name
		if form, err = sjson.SetBytes(form, "content.room_version", v.Version()); err != nil {
			return nil, fmt.Errorf("reading %s: %w", e.ID, err)
		}
	}
	return v.NewEventFromTrustedJSONWithEventID(string(e.ID), form, e.Redacted())
}

// PrevEvents lists the IDs of the events directly before this one.
func (e *Event) PrevEvents() []matrix.EventID { return refs(e.JSON, "prev_events") }

// AuthEvents lists the IDs of the events that authorise this one. In room
// version 12 the create event is among them though the PDU leaves it out.
func (e *Event) AuthEvents() []matrix.EventID {
	ids := refs(e.JSON, "auth_events")
	if v, err := RoomVersion(e.Version); err == nil && v.DomainlessRoomIDs() && e.Type != "m.room.create" {
		ids = append([]matrix.EventID{CreateID(e.Room)}, ids...)
	}
	return ids
}

// CreateID is the ID of the create event of a room of version 12 or later.
func CreateID(room matrix.RoomID) matrix.EventID { return matrix.EventID("$" + room[1:]) }

// refs reads a list of references: plain IDs, or pairs [ID, hashes] in room
// versions 1 and 2.
func refs(pdu []byte, field string) []matrix.EventID {
	var ids []matrix.EventID
	gjson.GetBytes(pdu, field).ForEach(func(_, v gjson.Result) bool {
		if v.IsArray() {
			v = v.Get("0")
		}
		if v.Type == gjson.String {
			ids = append(ids, matrix.EventID(v.Str))
		}
		return true
	})
	return ids
}

// TxnKey is how a client's transaction is stored with its event: scoped to the
// device and the endpoint.
// Spec: client-server-api#transaction-identifiers
func TxnKey(device matrix.DeviceID, endpoint, txn string) string {
	return string(device) + "\x1f" + endpoint + "\x1f" + txn
}

// delayed is the endpoint of the transactions by which the server itself sends a
// delayed event, whichever device asked for it.
const delayed = "\x1fdelayed\x1f"

// DelayTxn is the transaction of a delayed event: it can be sent once only.
func DelayTxn(id string) string { return delayed + id }

// DelayID is the ID of the delayed event that became this one, "" if it was none.
// Spec: MSC4140
func (e *Event) DelayID() string {
	id, ok := strings.CutPrefix(e.Txn, delayed)
	if !ok {
		return ""
	}
	return id
}

// transactionID gives back the client's own transaction ID, if device sent it.
func (e *Event) transactionID(user matrix.UserID, device matrix.DeviceID) string {
	if e.Txn == "" || user != e.Sender || device == "" {
		return ""
	}
	d, rest, _ := bytes.Cut([]byte(e.Txn), []byte{0x1f})
	if string(d) != string(device) {
		return ""
	}
	if i := bytes.LastIndexByte(rest, 0x1f); i >= 0 {
		return string(rest[i+1:])
	}
	return ""
}

// SentBy reports whether the event carries a transaction of this user: only
// then does its client form differ between readers.
func (e *Event) SentBy(user matrix.UserID) bool { return e.Txn != "" && e.Sender == user }

// ClientFormat says who reads an event and in what form.
type ClientFormat struct {
	User     matrix.UserID   // the reader, for unsigned.transaction_id
	Device   matrix.DeviceID // the reader's device
	NoRoomID bool            // /sync leaves room_id out
	Now      time.Time       // for unsigned.age; the zero time leaves it out
	// Relations, if not nil, is put into unsigned as m.relations.
	Relations json.RawMessage
	// ReaderMembership, if not "", is put into unsigned as membership.
	ReaderMembership string
}

// AppendClient appends the event as clients see it.
// Spec: client-server-api#room-event-format
func (e *Event) AppendClient(dst []byte, f ClientFormat) []byte {
	dst = append(dst, e.clientPrefix()...)
	if !f.NoRoomID {
		dst = append(dst, `,"room_id":`...)
		dst = matrix.AppendJSONString(dst, string(e.Room))
	}
	dst = e.appendUnsigned(dst, f)
	return append(dst, '}')
}

// clientPrefix encodes, once, all that is the same for every reader, without
// the closing brace.
func (e *Event) clientPrefix() []byte {
	if p := e.client.Load(); p != nil {
		return *p
	}
	content := e.Content()
	b := make([]byte, 0, len(content)+len(e.ID)+len(e.Sender)+len(e.Type)+160)
	b = append(b, `{"content":`...)
	b = append(b, e.clientContent(content)...)
	b = append(b, `,"event_id":`...)
	b = matrix.AppendJSONString(b, string(e.ID))
	if e.Sticky > 0 {
		b = append(b, `,"msc4354_sticky":{"duration_ms":`...)
		b = append(strconv.AppendInt(b, e.Sticky, 10), '}')
	}
	b = append(b, `,"origin_server_ts":`...)
	b = strconv.AppendInt(b, e.TS, 10)
	b = append(b, `,"sender":`...)
	b = matrix.AppendJSONString(b, string(e.Sender))
	if e.StateKey != nil {
		b = append(b, `,"state_key":`...)
		b = matrix.AppendJSONString(b, *e.StateKey)
	}
	b = append(b, `,"type":`...)
	b = matrix.AppendJSONString(b, e.Type)
	if e.Redacts != "" {
		b = append(b, `,"redacts":`...)
		b = matrix.AppendJSONString(b, string(e.Redacts))
	}
	e.client.Store(&b)
	return b
}

// clientContent shows clients of either habit where a redaction points: in the
// content (room version 11 on) and at the top level.
func (e *Event) clientContent(content []byte) []byte {
	if e.Redacts == "" || gjson.GetBytes(content, "redacts").Exists() {
		return content
	}
	b := append([]byte(`{"redacts":`), matrix.AppendJSONString(nil, string(e.Redacts))...)
	if string(content) != "{}" {
		b = append(b, ',')
	}
	return append(b, content[1:]...)
}

func (e *Event) appendUnsigned(dst []byte, f ClientFormat) []byte {
	dst = append(dst, `,"unsigned":{`...)
	start := len(dst)
	sep := func() {
		if len(dst) > start {
			dst = append(dst, ',')
		}
	}
	if !f.Now.IsZero() {
		dst = append(dst, `"age":`...)
		dst = strconv.AppendInt(dst, max(f.Now.UnixMilli()-e.TS, 0), 10)
	}
	if f.ReaderMembership != "" {
		sep()
		dst = append(dst, `"membership":`...)
		dst = matrix.AppendJSONString(dst, f.ReaderMembership)
	}
	if id := e.transactionID(f.User, f.Device); id != "" {
		sep()
		dst = append(dst, `"transaction_id":`...)
		dst = matrix.AppendJSONString(dst, id)
	}
	if id := e.DelayID(); id != "" && f.User == e.Sender {
		sep()
		dst = append(dst, `"org.matrix.msc4140.delay_id":`...)
		dst = matrix.AppendJSONString(dst, id)
	}
	if ttl := e.StickyLeft(f.Now); ttl > 0 {
		sep()
		dst = append(dst, `"msc4354_sticky_duration_ttl_ms":`...)
		dst = strconv.AppendInt(dst, ttl, 10)
	}
	if p := e.Replaced; p != nil {
		sep()
		dst = append(dst, `"prev_content":`...)
		dst = append(dst, p.Content()...)
		dst = append(dst, `,"replaces_state":`...)
		dst = matrix.AppendJSONString(dst, string(p.ID))
		dst = append(dst, `,"prev_sender":`...)
		dst = matrix.AppendJSONString(dst, string(p.Sender))
	}
	if r := e.Redaction; r != nil {
		sep()
		dst = append(dst, `"redacted_because":`...)
		dst = r.AppendClient(dst, ClientFormat{Now: f.Now, NoRoomID: f.NoRoomID})
	}
	if f.Relations != nil {
		sep()
		dst = append(dst, `"m.relations":`...)
		dst = append(dst, f.Relations...)
	}
	return append(dst, '}')
}

// AppendStripped appends the four fields that people outside a room may see.
// Spec: client-server-api#stripped-state
func (e *Event) AppendStripped(dst []byte) []byte {
	dst = append(dst, `{"content":`...)
	dst = append(dst, e.Content()...)
	dst = append(dst, `,"sender":`...)
	dst = matrix.AppendJSONString(dst, string(e.Sender))
	dst = append(dst, `,"state_key":`...)
	dst = matrix.AppendJSONString(dst, e.Key())
	dst = append(dst, `,"type":`...)
	dst = matrix.AppendJSONString(dst, e.Type)
	return append(dst, '}')
}

// Placed returns a copy that has its place: row number, position in the
// timeline, and the row that it replaces in the state (0 for none).
func (e *Event) Placed(nid int64, pos stream.Pos, replaces int64) *Event {
	p := &Event{
		NID: nid, Pos: pos, ID: e.ID, Room: e.Room, Version: e.Version, Sender: e.Sender, Type: e.Type,
		StateKey: e.StateKey, TS: e.TS, Depth: e.Depth, Flags: e.Flags, Redacts: e.Redacts, RelType: e.RelType,
		RelTo: e.RelTo, Txn: e.Txn, JSON: e.JSON, Replaces: replaces, RedactedBy: e.RedactedBy,
		Replaced: e.Replaced, Redaction: e.Redaction, Membership: e.Membership, Sticky: e.Sticky,
	}
	p.client.Store(e.client.Load())
	return p
}
