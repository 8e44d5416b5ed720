package fedclient

import (
	"fmt"
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Error is a request that did not succeed: an answer with an error status, or no answer at all.
type Error struct {
	Server matrix.ServerName
	// Status is 0 when there was no answer.
	Status int
	// Code, Msg and Extra are the other server's words.
	Code  string
	Msg   string
	Extra map[string]any
	cause error
}

// Error says what happened.
func (e *Error) Error() string {
	if e.Status == 0 {
		return fmt.Sprintf("request to %s: %v", e.Server, e.cause)
	}
	return fmt.Sprintf("request to %s: status %d %s: %s", e.Server, e.Status, e.Code, e.Msg)
}

// Unreachable reports that the server gave no answer of its own.
func (e *Error) Unreachable() bool {
	return e.Status == 0 || e.Status == http.StatusBadGateway || e.Status == http.StatusServiceUnavailable || e.Status == http.StatusGatewayTimeout
}

// passed are the codes that mean the same to our client as to us. Others, above all those that speak of tokens
// and limits, were meant for this server.
var passed = map[string]int{
	"M_FORBIDDEN":                  http.StatusForbidden,
	"M_NOT_FOUND":                  http.StatusNotFound,
	"M_UNABLE_TO_AUTHORISE_JOIN":   http.StatusBadRequest,
	"M_UNABLE_TO_GRANT_JOIN":       http.StatusBadRequest,
	"M_INCOMPATIBLE_ROOM_VERSION":  http.StatusBadRequest,
	"M_UNSUPPORTED_ROOM_VERSION":   http.StatusBadRequest,
	"M_INVITE_BLOCKED":             http.StatusForbidden,
	"M_CANNOT_LEAVE_SERVER_NOTICE": http.StatusForbidden,
	"M_TOO_LARGE":                  http.StatusRequestEntityTooLarge,
	"M_BAD_STATE":                  http.StatusBadRequest,
}

// Unwrap is what a client of ours may see of it.
func (e *Error) Unwrap() []error {
	m := matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the server %s did not do what was asked", e.Server)
	if status, ok := passed[e.Code]; ok && e.Status != 0 {
		m = matrix.NewError(status, e.Code, "%s says: %s", e.Server, e.Msg)
		if v, ok := e.Extra["room_version"].(string); ok {
			m = m.With("room_version", v)
		}
	} else if e.Status == http.StatusForbidden {
		m = matrix.Forbidden("%s says: %s", e.Server, e.Msg)
	} else if e.Status == http.StatusNotFound && e.Code != "M_UNRECOGNIZED" {
		m = matrix.NotFound("%s says: %s", e.Server, e.Msg)
	} else if e.Unreachable() {
		m = matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the server %s cannot be reached", e.Server)
	}
	if e.cause != nil {
		return []error{m, e.cause}
	}
	return []error{m}
}
