package events

import (
	"errors"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// RedactPDU reduces a PDU in canonical form to what redaction leaves of it, in
// canonical form: what is signed, and hashed for the event's ID, besides the
// signatures themselves.
//
// Spec: rooms/v1#redactions, rooms/v6#redactions, rooms/v8#redactions,
// rooms/v9#redactions, rooms/v11#redactions
func RedactPDU(pdu []byte, version gomatrixserverlib.RoomVersion) ([]byte, error) {
	doc := gjson.ParseBytes(pdu)
	typ := doc.Get("type")
	if typ.Type != gjson.String {
		return nil, errors.New("the event has no type")
	}
	content := doc.Get("content")
	if content.Exists() && !content.IsObject() {
		return nil, errors.New("the event's content is not an object")
	}
	kept := appendKept(nil, typ.Str, content, version)
	b := append(make([]byte, 0, len(pdu)-len(content.Raw)+len(kept)+16), '{')
	written := false
	entry := func(key string, raw []byte) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(matrix.AppendJSONString(b, key), ':')
		b = append(b, raw...)
	}
	doc.ForEach(func(k, v gjson.Result) bool {
		if k.Str >= "content" && !written { // where it stands, or belongs if there is none
			entry("content", kept)
			written = true
		}
		if k.Str != "content" && keepsField(k.Str, version) {
			entry(k.Str, []byte(v.Raw))
		}
		return true
	})
	return append(b, '}'), nil
}

// since reports whether a room version is n or a later one.
func since(v gomatrixserverlib.RoomVersion, n int) bool {
	older := []gomatrixserverlib.RoomVersion{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"}
	return !slices.Contains(older[:n-1], base(v))
}

// keepsField reports whether redaction keeps a field of the event itself.
func keepsField(key string, v gomatrixserverlib.RoomVersion) bool {
	switch key {
	case "event_id", "type", "room_id", "sender", "state_key", "hashes", "signatures",
		"depth", "prev_events", "auth_events", "origin_server_ts":
		return true
	case "prev_state", "origin", "membership":
		return !since(v, 11)
	}
	return false
}

// appendKept writes what redaction keeps of the content.
func appendKept(b []byte, typ string, content gjson.Result, v gomatrixserverlib.RoomVersion) []byte {
	if typ == spec.MRoomCreate && since(v, 11) && content.Exists() {
		return append(b, content.Raw...)
	}
	b = append(b, '{')
	start := len(b)
	content.ForEach(func(k, e gjson.Result) bool {
		raw := e.Raw
		switch {
		case typ == spec.MRoomMember && k.Str == "third_party_invite" && since(v, 11) && e.IsObject():
			raw = "{}"
			if signed := e.Get("signed"); signed.Exists() {
				raw = `{"signed":` + signed.Raw + `}`
			}
		case !keepsContent(typ, k.Str, v):
			return true
		}
		if len(b) > start {
			b = append(b, ',')
		}
		b = append(matrix.AppendJSONString(b, k.Str), ':')
		b = append(b, raw...)
		return true
	})
	return append(b, '}')
}

// keepsContent reports whether redaction keeps a field of the content whole.
func keepsContent(typ, key string, v gomatrixserverlib.RoomVersion) bool {
	switch typ {
	case spec.MRoomMember:
		return key == "membership" || key == "join_authorised_via_users_server" && since(v, 9)
	case spec.MRoomCreate:
		return key == "creator"
	case spec.MRoomJoinRules:
		return key == "join_rule" || key == "allow" && since(v, 8)
	case spec.MRoomPowerLevels:
		switch key {
		case "ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default":
			return true
		}
		return key == "invite" && since(v, 11)
	case spec.MRoomAliases:
		return key == "aliases" && !since(v, 6)
	case spec.MRoomHistoryVisibility:
		return key == "history_visibility"
	case spec.MRoomRedaction:
		return key == "redacts" && since(v, 11)
	}
	return false
}
