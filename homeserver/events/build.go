package events

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// maxPDU is the largest event allowed, in bytes.
// Spec: client-server-api#size-limits
const maxPDU = 65536

// maxName is how long a type, a state key and an identifier may be, in bytes.
const maxName = 255

// Signer is the server's identity: its name and its signing key.
type Signer struct {
	Server matrix.ServerName
	KeyID  string // "ed25519:…"
	Key    ed25519.PrivateKey
}

// Proto is an event before it is hashed and signed. Content must be a valid
// JSON object.
type Proto struct {
	Version    gomatrixserverlib.RoomVersion
	Room       matrix.RoomID // "" for the create event of room version 12 on
	Sender     matrix.UserID
	Type       string
	StateKey   *string
	Content    json.RawMessage
	Redacts    matrix.EventID
	Sticky     *int64 // ms, nil for none
	PrevEvents []matrix.EventID
	AuthEvents []matrix.EventID // with the create event; left out where the version says so
	Depth      int64
	Time       time.Time
}

// Build makes the event: canonical JSON, content hash, signature, ID.
//
// Spec: server-server-api#signing-events, rooms/v3#event-ids
func Build(p Proto, by Signer) (*Event, error) {
	v, err := RoomVersion(p.Version)
	if err != nil {
		return nil, matrix.UnsupportedRoomVersion(string(p.Version))
	}
	content, err := canonicalContent(p.Content, p.Version)
	if err != nil {
		return nil, err
	}
	if v.EventFormat() == gomatrixserverlib.EventFormatV1 {
		return buildV1(p, content, by)
	}
	if p.Redacts != "" && redactsInContent(p.Version) {
		p.Redacts = "" // it stands in the content
	}
	body := newPDUWriter(p, content, v.DomainlessRoomIDs())
	sum := sha256.Sum256(body.encode(nil, nil))
	hash := base64.RawStdEncoding.EncodeToString(sum[:])
	hashes := []byte(`{"sha256":"` + hash + `"}`)
	redacted, err := body.redacted(hashes)
	if err != nil {
		return nil, err
	}
	signature := base64.RawStdEncoding.EncodeToString(ed25519.Sign(by.Key, redacted))
	signatures := []byte(`{"` + string(by.Server) + `":{"` + by.KeyID + `":"` + signature + `"}}`)
	ref := sha256.Sum256(redacted)
	enc := base64.RawURLEncoding
	if v.EventIDFormat() == gomatrixserverlib.EventIDFormatV2 {
		enc = base64.RawStdEncoding
	}
	pdu := body.encode(hashes, signatures)
	e, err := fromParts(p, matrix.EventID("$"+enc.EncodeToString(ref[:])), pdu)
	if err != nil {
		return nil, err
	}
	return e, e.checkSize()
}

// canonicalContent sorts and checks the content.
// Spec: appendices#canonical-json
func canonicalContent(raw json.RawMessage, version gomatrixserverlib.RoomVersion) ([]byte, error) {
	if len(raw) == 0 {
		return []byte("{}"), nil
	}
	if !gjson.ValidBytes(raw) || !gjson.ParseBytes(raw).IsObject() {
		return nil, matrix.BadJSON("the event's content must be a JSON object")
	}
	c, err := matrix.CanonicalJSON(raw, strict(version))
	if err != nil {
		return nil, matrix.BadJSON("the event's content is not canonical JSON: %s", err)
	}
	return c, nil
}

// strict reports whether a room version allows nothing but canonical JSON.
// Spec: rooms/v6#canonical-json
func strict(v gomatrixserverlib.RoomVersion) bool { return since(v, 6) }

// redactsInContent reports whether redactions name their target in the content.
// Spec: rooms/v11#moving-the-redacts-property
func redactsInContent(v gomatrixserverlib.RoomVersion) bool { return since(v, 11) }

// pduWriter writes an event of format 2 with its keys in canonical order.
type pduWriter struct {
	p       Proto
	content []byte
	refs    []byte // "auth_events":[…]
	prev    []byte
}

func newPDUWriter(p Proto, content []byte, domainless bool) *pduWriter {
	w := &pduWriter{p: p, content: content}
	auth := p.AuthEvents
	if domainless && p.Type != spec.MRoomCreate {
		create := CreateID(p.Room)
		auth = nil
		for _, id := range p.AuthEvents {
			if id != create {
				auth = append(auth, id)
			}
		}
	}
	w.refs, w.prev = appendIDs(nil, auth), appendIDs(nil, p.PrevEvents)
	return w
}

func appendIDs(dst []byte, ids []matrix.EventID) []byte {
	dst = append(dst, '[')
	for i, id := range ids {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = matrix.AppendJSONString(dst, string(id))
	}
	return append(dst, ']')
}

func (w *pduWriter) encode(hashes, signatures []byte) []byte {
	return w.write(make([]byte, 0, len(w.content)+len(w.refs)+len(w.prev)+640), w.content, hashes, signatures)
}

func (w *pduWriter) write(b, content, hashes, signatures []byte) []byte {
	p := &w.p
	b = append(b, `{"auth_events":`...)
	b = append(b, w.refs...)
	b = append(b, `,"content":`...)
	b = append(b, content...)
	b = append(b, `,"depth":`...)
	b = strconv.AppendInt(b, p.Depth, 10)
	if hashes != nil {
		b = append(b, `,"hashes":`...)
		b = append(b, hashes...)
	}
	b = appendSticky(b, p.Sticky)
	b = append(b, `,"origin_server_ts":`...)
	b = strconv.AppendInt(b, p.Time.UnixMilli(), 10)
	b = append(b, `,"prev_events":`...)
	b = append(b, w.prev...)
	if p.Redacts != "" {
		b = append(b, `,"redacts":`...)
		b = matrix.AppendJSONString(b, string(p.Redacts))
	}
	if p.Room != "" {
		b = append(b, `,"room_id":`...)
		b = matrix.AppendJSONString(b, string(p.Room))
	}
	b = append(b, `,"sender":`...)
	b = matrix.AppendJSONString(b, string(p.Sender))
	if signatures != nil {
		b = append(b, `,"signatures":`...)
		b = append(b, signatures...)
	}
	if p.StateKey != nil {
		b = append(b, `,"state_key":`...)
		b = matrix.AppendJSONString(b, *p.StateKey)
	}
	b = append(b, `,"type":`...)
	b = matrix.AppendJSONString(b, p.Type)
	return append(b, '}')
}

// redacted is the canonical JSON that is signed and that gives the event its ID.
func (w *pduWriter) redacted(hashes []byte) ([]byte, error) {
	if !protected(w.p.Type) && w.p.Redacts == "" {
		// Redaction empties the content of all other types, in every version.
		bare := *w
		bare.p.Sticky = nil
		return bare.write(make([]byte, 0, len(w.refs)+len(w.prev)+512), []byte("{}"), hashes, nil), nil
	}
	return RedactPDU(w.encode(hashes, nil), w.p.Version)
}

// protected lists the types of which some version keeps content fields.
func protected(typ string) bool {
	switch typ {
	case spec.MRoomCreate, spec.MRoomMember, spec.MRoomJoinRules, spec.MRoomPowerLevels,
		spec.MRoomHistoryVisibility, spec.MRoomAliases, spec.MRoomRedaction:
		return true
	}
	return false
}

// buildV1 builds events of room versions 1 and 2, whose IDs are chosen. The hash
// beside each reference says nothing that the reference does not: it is empty.
func buildV1(p Proto, content []byte, by Signer) (*Event, error) {
	type pair [2]any
	pairs := func(ids []matrix.EventID) []pair {
		out := make([]pair, len(ids))
		for i, id := range ids {
			out[i] = pair{id, map[string]string{"sha256": ""}}
		}
		return out
	}
	id := matrix.EventID("$" + matrix.RandomString(18) + ":" + string(by.Server))
	doc := map[string]any{
		"auth_events": pairs(p.AuthEvents), "content": json.RawMessage(content), "depth": p.Depth, "event_id": id,
		"origin": by.Server, "origin_server_ts": p.Time.UnixMilli(), "prev_events": pairs(p.PrevEvents),
		"room_id": p.Room, "sender": p.Sender, "type": p.Type,
	}
	if p.Redacts != "" {
		doc["redacts"] = p.Redacts
	}
	if p.Sticky != nil {
		doc[stickyField] = map[string]int64{"duration_ms": *p.Sticky}
	}
	if p.StateKey != nil {
		doc["state_key"], doc["prev_state"] = *p.StateKey, []string{} // compat: older servers expect prev_state
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, matrix.BadJSON("the event cannot be built: %s", err)
	}
	if raw, err = matrix.CanonicalJSON(raw, false); err != nil {
		return nil, matrix.BadJSON("the event cannot be built: %s", err)
	}
	sum := sha256.Sum256(raw)
	doc["hashes"] = map[string]string{"sha256": base64.RawStdEncoding.EncodeToString(sum[:])}
	if raw, err = json.Marshal(doc); err != nil {
		return nil, matrix.BadJSON("the event cannot be built: %s", err)
	}
	e, err := fromParts(p, id, raw)
	if err != nil {
		return nil, err
	}
	if e, err = e.Sign(by); err != nil {
		return nil, err
	}
	return e, e.checkSize()
}

func plain(ids []matrix.EventID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
	}
	return out
}

func fromParts(p Proto, id matrix.EventID, pdu []byte) (*Event, error) {
	e := &Event{
		ID: id, Room: p.Room, Version: p.Version, Sender: p.Sender, Type: p.Type, StateKey: p.StateKey,
		TS: p.Time.UnixMilli(), Depth: p.Depth, JSON: pdu,
	}
	if e.Room == "" {
		e.Room = matrix.RoomID("!" + id[1:])
	}
	e.derive()
	return e, nil
}

// derive fills the fields that are read out of the JSON.
func (e *Event) derive() {
	r := gjson.GetManyBytes(e.JSON, "content.m\\.relates_to", "content.membership", "redacts", "content.redacts")
	if rel := r[0]; rel.IsObject() && e.StateKey == nil {
		// What cannot be a type or an event is no relation.
		if t, to := rel.Get("rel_type"), rel.Get("event_id"); t.Type == gjson.String && to.Type == gjson.String && isName(t.Str) && isName(to.Str) {
			e.RelType, e.RelTo = t.Str, matrix.EventID(to.Str)
		}
	}
	if e.RelType == "" && e.StateKey == nil {
		e.RelType, e.RelTo = relationship(e.JSON)
	}
	if e.Type == spec.MRoomMember && isName(r[1].Str) {
		e.Membership = r[1].Str
	}
	e.Sticky = stickiness(e.JSON)
	if e.Type == spec.MRoomRedaction {
		e.Redacts = matrix.EventID(r[2].Str)
		if redactsInContent(e.Version) {
			e.Redacts = matrix.EventID(r[3].Str)
		}
		if !isName(string(e.Redacts)) {
			e.Redacts = ""
		}
	}
}

// isName reports whether a string may name something: every database can hold it,
// and it is no longer than names are.
func isName(s string) bool { return len(s) <= maxName && isText(s) }

func isText(s string) bool { return strings.IndexByte(s, 0) < 0 && utf8.ValidString(s) }

// checkSize enforces the limits of the specification on what clients send.
// Spec: client-server-api#size-limits
func (e *Event) checkSize() error {
	if len(e.JSON) > maxPDU {
		return matrix.TooLarge("the event has %d bytes, at most %d are allowed", len(e.JSON), maxPDU)
	}
	if len(e.Type) > maxName || len(e.Sender) > maxName || len(e.Key()) > maxKey(e.Version) {
		return matrix.TooLarge("type and sender may have %d bytes each, state_key %d", maxName, maxKey(e.Version))
	}
	return nil
}

// Sign returns a copy with one more signature.
// Spec: server-server-api#signing-events
func (e *Event) Sign(by Signer) (*Event, error) {
	pdu, err := matrix.CanonicalJSON(e.JSON, false)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", e.ID, err)
	}
	msg, err := RedactPDU(pdu, e.Version)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", e.ID, err)
	}
	if msg, err = matrix.CanonicalObject(msg, false, "signatures", "unsigned"); err != nil {
		return nil, fmt.Errorf("signing %s: %w", e.ID, err)
	}
	signature := base64.RawStdEncoding.EncodeToString(ed25519.Sign(by.Key, msg))
	if pdu, err = matrix.AddSignature(pdu, by.Server, by.KeyID, signature); err != nil {
		return nil, fmt.Errorf("signing %s: %w", e.ID, err)
	}
	p := e.Placed(e.NID, e.Pos, e.Replaces)
	p.JSON = pdu
	return p, nil
}

// Redact returns the redacted form of e.
func (e *Event) Redact(redaction *Event) (*Event, error) {
	pdu, err := RedactPDU(e.JSON, e.Version)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.ID, err)
	}
	r := &Event{
		NID: e.NID, Pos: e.Pos, ID: e.ID, Room: e.Room, Version: e.Version, Sender: e.Sender, Type: e.Type,
		StateKey: e.StateKey, TS: e.TS, Depth: e.Depth, Flags: e.Flags, Txn: e.Txn, Replaces: e.Replaces,
		JSON: pdu, Redaction: redaction, RedactedBy: redaction.NID,
	}
	r.derive()
	// The relation stays known to the server so that counts can be mended, but
	// clients no longer see it.
	r.RelType, r.RelTo = "", ""
	return r, nil
}
