package events

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// maxPDU is the largest event allowed, in bytes.
// Spec: client-server-api#size-limits
const maxPDU = 65536

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
	PrevEvents []matrix.EventID
	AuthEvents []matrix.EventID // with the create event; left out where the version says so
	Depth      int64
	Time       time.Time
}

// Build makes the event: canonical JSON, content hash, signature, ID.
//
// Spec: server-server-api#signing-events, rooms/v3#event-ids
func Build(p Proto, by Signer) (*Event, error) {
	v, err := gomatrixserverlib.GetRoomVersion(p.Version)
	if err != nil {
		return nil, matrix.UnsupportedRoomVersion(string(p.Version))
	}
	content, err := canonicalContent(p.Content, p.Version)
	if err != nil {
		return nil, err
	}
	if v.EventFormat() == gomatrixserverlib.EventFormatV1 {
		return buildV1(p, content, v, by)
	}
	if p.Redacts != "" && redactsInContent(p.Version) {
		p.Redacts = "" // it stands in the content
	}
	body := newPDUWriter(p, content, v.DomainlessRoomIDs())
	sum := sha256.Sum256(body.encode(nil, nil))
	hash := base64.RawStdEncoding.EncodeToString(sum[:])
	hashes := []byte(`{"sha256":"` + hash + `"}`)
	redacted, err := body.redacted(hashes, v)
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
func strict(v gomatrixserverlib.RoomVersion) bool {
	switch v {
	case "1", "2", "3", "4", "5":
		return false
	}
	return true
}

// redactsInContent reports whether redactions name their target in the content.
// Spec: rooms/v11#moving-the-redacts-property
func redactsInContent(v gomatrixserverlib.RoomVersion) bool {
	switch v {
	case "1", "2", "3", "4", "5", "6", "7", "8", "9", "10":
		return false
	}
	return true
}

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
func (w *pduWriter) redacted(hashes []byte, v gomatrixserverlib.IRoomVersion) ([]byte, error) {
	if !protected(w.p.Type) && w.p.Redacts == "" {
		// Redaction empties the content of all other types, in every version.
		return w.write(make([]byte, 0, len(w.refs)+len(w.prev)+512), []byte("{}"), hashes, nil), nil
	}
	return redactJSON(w.encode(hashes, nil), v)
}

func redactJSON(pdu []byte, v gomatrixserverlib.IRoomVersion) ([]byte, error) {
	r, err := v.RedactEventJSON(pdu)
	if err != nil {
		return nil, fmt.Errorf("redacting: %w", err)
	}
	return matrix.CanonicalJSON(r, false)
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

// buildV1 builds events of room versions 1 and 2, whose IDs are chosen.
func buildV1(p Proto, content []byte, v gomatrixserverlib.IRoomVersion, by Signer) (*Event, error) {
	b := v.NewEventBuilder()
	b.SenderID, b.RoomID, b.Type, b.StateKey = string(p.Sender), string(p.Room), p.Type, p.StateKey
	b.Content, b.Redacts, b.Depth = spec.RawJSON(content), string(p.Redacts), p.Depth
	b.PrevEvents, b.AuthEvents = plain(p.PrevEvents), plain(p.AuthEvents)
	pdu, err := b.Build(p.Time, spec.ServerName(by.Server), gomatrixserverlib.KeyID(by.KeyID), by.Key)
	if err != nil {
		return nil, matrix.BadJSON("the event cannot be built: %s", err)
	}
	e, err := fromParts(p, matrix.EventID(pdu.EventID()), pdu.JSON())
	if err != nil {
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
		if t, to := rel.Get("rel_type"), rel.Get("event_id"); t.Type == gjson.String && to.Type == gjson.String {
			e.RelType, e.RelTo = t.Str, matrix.EventID(to.Str)
		}
	}
	if e.Type == spec.MRoomMember {
		e.Membership = r[1].Str
	}
	if e.Type == spec.MRoomRedaction {
		e.Redacts = matrix.EventID(r[2].Str)
		if redactsInContent(e.Version) {
			e.Redacts = matrix.EventID(r[3].Str)
		}
	}
}

// checkSize enforces the limits of the specification on what clients send.
// Spec: client-server-api#size-limits
func (e *Event) checkSize() error {
	if len(e.JSON) > maxPDU {
		return matrix.TooLarge("the event has %d bytes, at most %d are allowed", len(e.JSON), maxPDU)
	}
	if len(e.Type) > 255 || len(e.Key()) > 255 || len(e.Sender) > 255 {
		return matrix.TooLarge("type, state_key and sender may have 255 bytes each")
	}
	return nil
}

// FromPDU makes an Event of a parsed PDU, as received from another server.
func FromPDU(pdu gomatrixserverlib.PDU) *Event {
	e := &Event{
		ID: matrix.EventID(pdu.EventID()), Room: matrix.RoomID(pdu.RoomID().String()), Version: pdu.Version(),
		Sender: matrix.UserID(pdu.SenderID()), Type: pdu.Type(), StateKey: pdu.StateKey(),
		TS: int64(pdu.OriginServerTS()), Depth: pdu.Depth(), JSON: pdu.JSON(),
	}
	e.derive()
	return e
}

// Parse reads a PDU from outside: format, hash (a wrong one redacts it), size.
// Signatures are not checked here.
// Spec: server-server-api#checks-performed-on-receipt-of-a-pdu
func Parse(raw []byte, version gomatrixserverlib.RoomVersion) (e *Event, err error) {
	v, err := gomatrixserverlib.GetRoomVersion(version)
	if err != nil {
		return nil, matrix.UnsupportedRoomVersion(string(version))
	}
	if len(raw) > maxPDU {
		return nil, matrix.TooLarge("the event has %d bytes, at most %d are allowed", len(raw), maxPDU)
	}
	defer func() { // the library panics on some malformed room IDs
		if p := recover(); p != nil {
			e, err = nil, matrix.BadJSON("malformed event")
		}
	}()
	if !gjson.ValidBytes(raw) || !gjson.ParseBytes(raw).IsObject() {
		return nil, matrix.NotJSON("an event must be a JSON object")
	}
	pdu, redacted, err := clean(raw, v)
	if err != nil {
		return nil, matrix.BadJSON("malformed event: %s", err)
	}
	id := gjson.GetBytes(pdu, "event_id").Str
	if v.EventFormat() != gomatrixserverlib.EventFormatV1 {
		if id, err = referenceID(pdu, v); err != nil {
			return nil, matrix.BadJSON("malformed event: %s", err)
		}
	}
	parsed, err := v.NewEventFromTrustedJSONWithEventID(id, pdu, redacted)
	if err != nil {
		return nil, matrix.BadJSON("malformed event: %s", err)
	}
	if err := gomatrixserverlib.CheckFields(parsed); err != nil {
		return nil, matrix.BadJSON("malformed event: %s", err)
	}
	if _, err := matrix.ParseRoomID(parsed.RoomID().String()); err != nil {
		return nil, err
	}
	return FromPDU(parsed), nil
}

// clean brings a PDU from outside into canonical form, takes out what is no
// part of it, and redacts it if the content does not have the hash that it
// claims.
// Spec: server-server-api#validating-hashes-and-signatures-on-received-events
func clean(raw []byte, v gomatrixserverlib.IRoomVersion) (pdu []byte, redacted bool, err error) {
	for _, key := range []string{"outlier", "destinations", "age_ts", "unsigned"} {
		if raw, err = sjson.DeleteBytes(raw, key); err != nil {
			return nil, false, err
		}
	}
	if v.EventFormat() != gomatrixserverlib.EventFormatV1 {
		if raw, err = sjson.DeleteBytes(raw, "event_id"); err != nil {
			return nil, false, err
		}
	}
	if pdu, err = matrix.CanonicalJSON(raw, strict(v.Version())); err != nil {
		return nil, false, err
	}
	hashed := pdu
	for _, key := range []string{"signatures", "hashes"} {
		if hashed, err = sjson.DeleteBytes(hashed, key); err != nil {
			return nil, false, err
		}
	}
	sum := sha256.Sum256(hashed)
	claimed := strings.TrimRight(gjson.GetBytes(pdu, "hashes.sha256").Str, "=")
	if claimed == base64.RawStdEncoding.EncodeToString(sum[:]) {
		return pdu, false, nil
	}
	r, err := redactJSON(pdu, v)
	return r, err == nil && !bytes.Equal(r, pdu), err
}

// referenceID is the ID of an event whose room version derives it.
// Spec: server-server-api#calculating-the-reference-hash-for-an-event
func referenceID(pdu []byte, v gomatrixserverlib.IRoomVersion) (string, error) {
	r, err := redactJSON(pdu, v)
	if err != nil {
		return "", err
	}
	for _, key := range []string{"signatures", "unsigned", "age_ts"} {
		if r, err = sjson.DeleteBytes(r, key); err != nil {
			return "", err
		}
	}
	sum := sha256.Sum256(r)
	if v.EventIDFormat() == gomatrixserverlib.EventIDFormatV2 {
		return "$" + base64.RawStdEncoding.EncodeToString(sum[:]), nil
	}
	return "$" + base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// Sign returns a copy with one more signature.
// Spec: server-server-api#signing-events
func (e *Event) Sign(by Signer) (*Event, error) {
	v, err := gomatrixserverlib.GetRoomVersion(e.Version)
	if err != nil {
		return nil, err
	}
	msg, err := redactJSON(e.JSON, v)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"signatures", "unsigned"} {
		if msg, err = sjson.DeleteBytes(msg, key); err != nil {
			return nil, err
		}
	}
	var signatures map[string]map[string]string
	if raw := gjson.GetBytes(e.JSON, "signatures"); raw.Exists() {
		if err := json.Unmarshal([]byte(raw.Raw), &signatures); err != nil {
			return nil, matrix.BadJSON("malformed signatures: %s", err)
		}
	}
	if signatures == nil {
		signatures = map[string]map[string]string{}
	}
	if signatures[string(by.Server)] == nil {
		signatures[string(by.Server)] = map[string]string{}
	}
	signatures[string(by.Server)][by.KeyID] = base64.RawStdEncoding.EncodeToString(ed25519.Sign(by.Key, msg))
	pdu, err := sjson.SetBytes(e.JSON, "signatures", signatures)
	if err != nil {
		return nil, err
	}
	if pdu, err = matrix.CanonicalJSON(pdu, false); err != nil {
		return nil, err
	}
	p := e.Placed(e.NID, e.Pos, e.Replaces)
	p.JSON = pdu
	return p, nil
}

// Redact returns the redacted form of e.
func (e *Event) Redact(redaction *Event) (*Event, error) {
	v, err := gomatrixserverlib.GetRoomVersion(e.Version)
	if err != nil {
		return nil, err
	}
	pdu, err := redactJSON(e.JSON, v)
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
