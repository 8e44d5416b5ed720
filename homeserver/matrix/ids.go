// Package matrix holds what every floor of the homeserver speaks of: the
// identifiers of the specification as named string types and the error that a
// client may see. It knows nothing of rooms, storage or HTTP handling.
//
// Spec: appendices#identifier-grammar, client-server-api#standard-error-response
package matrix

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"time"
	"unicode/utf8"
)

// Identifiers of the specification. They are compared byte for byte.
type (
	// UserID is "@localpart:server".
	UserID string
	// RoomID is "!opaque:server", or "!hash" from room version 12 on: it names
	// no server that could be relied on.
	RoomID string
	// EventID is "$opaque:server" in room versions 1 and 2, "$hash" after.
	EventID string
	// RoomAlias is "#name:server".
	RoomAlias string
	// ServerName is a host name with an optional port.
	ServerName string
	// DeviceID is chosen by the client or the server; any string.
	DeviceID string
)

// maxID is the longest identifier allowed, in bytes.
// Spec: appendices#common-identifier-format
const maxID = 255

// Localpart is the part between "@" and the first ":".
func (u UserID) Localpart() string {
	s := string(u)
	if i := strings.IndexByte(s, ':'); i > 0 && s[0] == '@' {
		return s[1:i]
	}
	return ""
}

// Server is the part after the first ":".
func (u UserID) Server() ServerName { return serverOf(string(u)) }

// Server is the part after the first ":".
func (a RoomAlias) Server() ServerName { return serverOf(string(a)) }

// Server is the part after the first ":" or "", which is usual from room
// version 12 on; use it for routing hints only.
func (r RoomID) Server() ServerName { return serverOf(string(r)) }

func serverOf(s string) ServerName {
	if i := strings.IndexByte(s, ':'); i >= 0 {
		return ServerName(s[i+1:])
	}
	return ""
}

// NewUserID joins a localpart and a server name.
func NewUserID(localpart string, server ServerName) UserID {
	return UserID("@" + localpart + ":" + string(server))
}

// ParseUserID checks the form "@localpart:server". Historical localparts (any
// printable character) are accepted, as the specification asks.
func ParseUserID(s string) (UserID, error) {
	i := strings.IndexByte(s, ':')
	if len(s) < 4 || len(s) > maxID || s[0] != '@' || i < 1 || !ValidServerName(s[i+1:]) || !printable(s) {
		return "", InvalidParam("%q is not a user ID such as @name:example.org", clip(s))
	}
	return UserID(s), nil
}

// ParseRoomID checks the sigil, the length and that no control characters occur.
func ParseRoomID(s string) (RoomID, error) {
	if len(s) < 2 || len(s) > maxID || s[0] != '!' || !printable(s) {
		return "", InvalidParam("%q is not a room ID", clip(s))
	}
	if i := strings.IndexByte(s, ':'); i >= 0 && !ValidServerName(s[i+1:]) {
		return "", InvalidParam("%q is not a room ID: its server name is malformed", clip(s))
	}
	return RoomID(s), nil
}

// ParseRoomAlias checks the form "#name:server".
func ParseRoomAlias(s string) (RoomAlias, error) {
	i := strings.IndexByte(s, ':')
	if len(s) < 4 || len(s) > maxID || s[0] != '#' || i < 2 || !ValidServerName(s[i+1:]) || !printable(s) {
		return "", InvalidParam("%q is not a room alias such as #name:example.org", clip(s))
	}
	return RoomAlias(s), nil
}

// ParseEventID checks the sigil and the length.
func ParseEventID(s string) (EventID, error) {
	if len(s) < 2 || len(s) > maxID || s[0] != '$' || !printable(s) {
		return "", InvalidParam("%q is not an event ID", clip(s))
	}
	return EventID(s), nil
}

// ValidServerName checks a host name, IPv4 or bracketed IPv6 literal with an
// optional port.
// Spec: appendices#server-name
func ValidServerName(s string) bool {
	if s == "" || len(s) > 230 {
		return false
	}
	host, port := s, ""
	if s[0] == '[' {
		i := strings.IndexByte(s, ']')
		if i < 3 {
			return false
		}
		for _, c := range s[1:i] {
			if !strings.ContainsRune("0123456789abcdefABCDEF:.", c) {
				return false
			}
		}
		if rest := s[i+1:]; rest != "" {
			if rest[0] != ':' {
				return false
			}
			port = rest[1:]
			return validPort(port)
		}
		return true
	}
	if i := strings.IndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
		if !validPort(port) {
			return false
		}
	}
	if host == "" {
		return false
	}
	for i := 0; i < len(host); i++ {
		c := host[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}

func validPort(p string) bool {
	if len(p) < 1 || len(p) > 5 {
		return false
	}
	for i := 0; i < len(p); i++ {
		if p[i] < '0' || p[i] > '9' {
			return false
		}
	}
	return true
}

func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
	}
	return utf8.ValidString(s)
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// Now is a clock; tests give their own.
type Now func() time.Time

// Millis is a time as the protocol writes it: milliseconds since the epoch.
func Millis(t time.Time) int64 { return t.UnixMilli() }

// RandomString returns n characters of [A-Za-z0-9_-] from the system's
// cryptographic source: 6 bits each.
func RandomString(n int) string {
	b := make([]byte, (n*6+7)/8)
	rand.Read(b) // never fails: it ends the program instead
	return base64.RawURLEncoding.EncodeToString(b)[:n]
}
