package events

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Parse reads a PDU from outside: format, hash (a wrong one redacts it), size.
// Signatures are not checked here.
// Spec: server-server-api#checks-performed-on-receipt-of-a-pdu
func Parse(raw []byte, version gomatrixserverlib.RoomVersion) (e *Event, err error) {
	v, err := RoomVersion(version)
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
	if !utf8.Valid(raw) || !gjson.ValidBytes(raw) || !gjson.ParseBytes(raw).IsObject() {
		return nil, matrix.NotJSON("an event must be a JSON object")
	}
	pdu, redacted, err := clean(raw, v)
	if err != nil {
		return nil, matrix.BadJSON("malformed event: %s", err)
	}
	id := gjson.GetBytes(pdu, "event_id").Str
	if v.EventFormat() != gomatrixserverlib.EventFormatV1 {
		ref, err := referenceID(pdu, v)
		if err != nil {
			return nil, matrix.BadJSON("malformed event: %s", err)
		}
		id = string(ref)
	}
	parsed, err := v.NewEventFromTrustedJSONWithEventID(id, libraryForm(pdu), redacted)
	if err != nil {
		return nil, matrix.BadJSON("malformed event: %s", err)
	}
	var bad gomatrixserverlib.EventValidationError
	err = gomatrixserverlib.CheckFields(parsed)
	if key := parsed.StateKey(); err != nil && key != nil && len(*key) > maxName && len(*key) <= maxKey(version) {
		_, err = matrix.ParseUserID(string(parsed.SenderID())) // what is left to check
	}
	if err != nil && !(errors.As(err, &bad) && bad.Persistable && !v.StrictEventByteLimits()) {
		return nil, matrix.BadJSON("malformed event: %s", err) // older versions counted characters, not bytes
	}
	if _, err := matrix.ParseRoomID(parsed.RoomID().String()); err != nil {
		return nil, err
	}
	if key := parsed.StateKey(); !isText(id) || !isText(string(parsed.SenderID())) || !isText(parsed.Type()) || key != nil && !isText(*key) {
		return nil, matrix.BadJSON("malformed event: its names hold what no name may hold")
	}
	e = &Event{
		ID: matrix.EventID(id), Room: matrix.RoomID(parsed.RoomID().String()), Version: version,
		Sender: matrix.UserID(parsed.SenderID()), Type: parsed.Type(), StateKey: parsed.StateKey(),
		TS: int64(parsed.OriginServerTS()), Depth: parsed.Depth(), JSON: pdu,
	}
	e.derive()
	return e, nil
}

// clean brings a PDU from outside into canonical form, takes out what is no
// part of it, and redacts it if the content does not have the hash that it
// claims.
// Spec: server-server-api#validating-hashes-and-signatures-on-received-events
func clean(raw []byte, v gomatrixserverlib.IRoomVersion) (pdu []byte, redacted bool, err error) {
	foreign := []string{"outlier", "destinations", "age_ts", "unsigned", "event_id"}
	if v.EventFormat() == gomatrixserverlib.EventFormatV1 {
		foreign = foreign[:4]
	}
	if pdu, err = matrix.CanonicalObject(raw, strict(v.Version()), foreign...); err != nil {
		return nil, false, err
	}
	hashed, err := matrix.CanonicalObject(pdu, false, "signatures", "hashes")
	if err != nil {
		return nil, false, err
	}
	sum := sha256.Sum256(hashed)
	claimed := strings.TrimRight(gjson.GetBytes(pdu, "hashes.sha256").Str, "=")
	if claimed == base64.RawStdEncoding.EncodeToString(sum[:]) {
		return pdu, false, nil
	}
	r, err := RedactPDU(pdu, v.Version())
	return r, err == nil && !bytes.Equal(r, pdu), err
}

// IDOf is the ID of a PDU in canonical form.
func IDOf(pdu []byte, version gomatrixserverlib.RoomVersion) (matrix.EventID, error) {
	v, err := RoomVersion(version)
	if err != nil {
		return "", matrix.UnsupportedRoomVersion(string(version))
	}
	if v.EventFormat() == gomatrixserverlib.EventFormatV1 {
		return matrix.EventID(gjson.GetBytes(pdu, "event_id").Str), nil
	}
	return referenceID(pdu, v)
}

// referenceID is the ID of an event whose room version derives it.
// Spec: server-server-api#calculating-the-reference-hash-for-an-event
func referenceID(pdu []byte, v gomatrixserverlib.IRoomVersion) (matrix.EventID, error) {
	r, err := RedactPDU(pdu, v.Version())
	if err != nil {
		return "", err
	}
	if r, err = matrix.CanonicalObject(r, false, "signatures"); err != nil {
		return "", err
	}
	sum := sha256.Sum256(r)
	enc := base64.RawURLEncoding
	if v.EventIDFormat() == gomatrixserverlib.EventIDFormatV2 {
		enc = base64.RawStdEncoding
	}
	return matrix.EventID("$" + enc.EncodeToString(sum[:])), nil
}

// Signers names the servers that must have signed a PDU in canonical form, and
// the time at which their keys must have been valid. An invitation is the inviter's:
// that the invited server signs it, too, is for others who ask for more.
//
// Spec: server-server-api#validating-hashes-and-signatures-on-received-events,
// rooms/v8#authorization-rules (the server that authorised a restricted join)
func Signers(pdu []byte, version gomatrixserverlib.RoomVersion) (servers []matrix.ServerName, at spec.Timestamp, err error) {
	f := gjson.GetManyBytes(pdu, "sender", "origin_server_ts", "event_id", "type", "state_key",
		"content.membership", "content.join_authorised_via_users_server")
	if f[1].Type != gjson.Number || f[1].Num < 0 {
		return nil, 0, matrix.BadJSON("the event has no time")
	}
	add := func(name matrix.ServerName) {
		if !slices.Contains(servers, name) {
			servers = append(servers, name)
		}
	}
	user := func(v gjson.Result) error {
		u, err := matrix.ParseUserID(v.Str)
		if err != nil {
			return matrix.BadJSON("malformed event: %s", err)
		}
		add(u.Server())
		return nil
	}
	if err := user(f[0]); err != nil {
		return nil, 0, err
	}
	if !since(version, 3) {
		_, name, ok := strings.Cut(f[2].Str, ":")
		if !ok || !matrix.ValidServerName(name) {
			return nil, 0, matrix.BadJSON("the event has no ID with a server's name")
		}
		add(matrix.ServerName(name))
	}
	if f[3].Str == spec.MRoomMember {
		if f[4].Type != gjson.String || f[5].Type != gjson.String {
			return nil, 0, matrix.BadJSON("a membership event without a member or a membership")
		}
		if f[5].Str == spec.Join && since(version, 8) && f[6].Exists() {
			err = user(f[6])
		}
	}
	return servers, spec.Timestamp(f[1].Int()), err
}

// libraryNames are the keys that gomatrixserverlib reads of events.
var libraryNames = []string{
	"additional_creators", "allow", "auth_events", "ban", "content", "creator", "depth", "display_name", "event_id", "events",
	"events_default", "hashes", "history_visibility", "invite", "join_authorised_via_users_server", "join_rule", "key_validity_url",
	"kick", "m.federate", "membership", "mxid", "notifications", "origin", "origin_server_ts", "predecessor", "prev_events",
	"prev_state", "public_key", "public_keys", "redact", "redacts", "room_id", "room_version", "sender", "signatures", "signed",
	"state_default", "state_key", "third_party_invite", "token", "type", "unsigned", "users", "users_default",
}

// libraryForm is a PDU as gomatrixserverlib must see it. The library takes keys
// that differ in the case of letters for the same one ("ſender" for "sender"),
// so that it could read another event than the one that was signed: such keys
// are left out.
func libraryForm(pdu []byte) []byte {
	form, changed := unambiguous(gjson.ParseBytes(pdu), 0)
	if !changed {
		return pdu
	}
	return form
}

// unambiguous copies a value without the ambiguous keys, if it has any. The
// library reads no deeper than the levels that are looked at here.
func unambiguous(v gjson.Result, depth int) (form []byte, changed bool) {
	const levels = 6
	if depth == levels || !v.IsObject() && !v.IsArray() {
		return nil, false
	}
	isObject := v.IsObject()
	var b []byte
	v.ForEach(func(k, e gjson.Result) bool {
		if isObject && ambiguous(k.Str) {
			changed = true
			return true
		}
		raw := []byte(e.Raw)
		if f, c := unambiguous(e, depth+1); c {
			raw, changed = f, true
		}
		b = append(b, ',')
		if isObject {
			b = append(matrix.AppendJSONString(b, k.Str), ':')
		}
		b = append(b, raw...)
		return true
	})
	if !changed {
		return nil, false
	}
	open, end := byte('['), byte(']')
	if isObject {
		open, end = '{', '}'
	}
	if len(b) == 0 {
		return []byte{open, end}, true
	}
	b[0] = open
	return append(b, end), true
}

func ambiguous(key string) bool {
	for i := 0; i < len(key); i++ {
		if c := key[i]; c >= 'A' && c <= 'Z' || c >= 0x80 {
			return slices.ContainsFunc(libraryNames, func(n string) bool { return strings.EqualFold(n, key) })
		}
	}
	return false
}
