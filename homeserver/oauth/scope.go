package oauth

import (
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// The scopes that clients ask for, and the names they had before.
// Spec: client-server-api#scope
const (
	scopeAPI       = "urn:matrix:client:api:*"
	scopeOldAPI    = "urn:matrix:org.matrix.msc2967.client:api:*"
	scopeDevice    = "urn:matrix:client:device:"
	scopeOldDevice = "urn:matrix:org.matrix.msc2967.client:device:"
	scopeOpenID    = "openid"
)

// scope is what is granted: all of the client API, on one device.
type scope struct {
	text   string // as it is told to the client, in its own names
	device matrix.DeviceID
	openID bool
}

// parseScope reads what a client asks for. Scopes that are not known are left out of what is granted, as RFC 6749
// allows; a session needs the API and exactly one device.
func parseScope(s string) (scope, error) {
	var (
		sc      scope
		granted []string
		api     bool
	)
	for token := range strings.FieldsSeq(s) {
		if !scopeToken(token) {
			return sc, bad("invalid_scope", "the scope holds characters that no scope may have")
		}
		switch {
		case token == scopeAPI || token == scopeOldAPI:
			api = true
		case token == scopeOpenID:
			sc.openID = true
		default:
			id, ok := strings.CutPrefix(token, scopeDevice)
			if !ok {
				if id, ok = strings.CutPrefix(token, scopeOldDevice); !ok {
					continue
				}
			}
			switch {
			case id == "" || len(id) > 255:
				return sc, bad("invalid_scope", "a device ID has 1 to 255 characters")
			case sc.device != "" && string(sc.device) != id:
				return sc, bad("invalid_scope", "the scope names two devices")
			}
			sc.device = matrix.DeviceID(id)
		}
		if !slices.Contains(granted, token) {
			granted = append(granted, token)
		}
	}
	if !api || sc.device == "" {
		return sc, bad("invalid_scope", "the scope must name "+scopeAPI+" and one "+scopeDevice+"…")
	}
	sc.text = strings.Join(granted, " ")
	return sc, nil
}

// scopeToken is the grammar of RFC 6749, section 3.3.
func scopeToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}
