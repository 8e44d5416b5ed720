package matrix

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"
)

// Error is what a client may see: an HTTP status, an errcode of the
// specification, a sentence for people, and further fields of the body.
//
// Spec: client-server-api#standard-error-response
type Error struct {
	Status int
	Code   string
	Msg    string
	Extra  map[string]any
}

// Error is the code with its sentence.
func (e *Error) Error() string { return e.Code + ": " + e.Msg }

// Is reports whether target is an Error with the same code.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Code == e.Code
}

// MarshalJSON writes the standard error body.
func (e *Error) MarshalJSON() ([]byte, error) {
	body := make(map[string]any, len(e.Extra)+2)
	maps.Copy(body, e.Extra)
	body["errcode"], body["error"] = e.Code, e.Msg
	return json.Marshal(body)
}

// With returns a copy with one more field in its body.
func (e *Error) With(key string, value any) *Error {
	c := *e
	c.Extra = maps.Clone(e.Extra)
	if c.Extra == nil {
		c.Extra = map[string]any{}
	}
	c.Extra[key] = value
	return &c
}

// NewError makes an Error with any status and code.
func NewError(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Msg: fmt.Sprintf(format, args...)}
}

// IsCode reports whether err is, or wraps, an Error with this code.
func IsCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// Forbidden is 403 M_FORBIDDEN.
func Forbidden(format string, args ...any) *Error {
	return NewError(http.StatusForbidden, "M_FORBIDDEN", format, args...)
}

// NotFound is 404 M_NOT_FOUND.
func NotFound(format string, args ...any) *Error {
	return NewError(http.StatusNotFound, "M_NOT_FOUND", format, args...)
}

// BadJSON is 400 M_BAD_JSON: well-formed JSON with the wrong shape.
func BadJSON(format string, args ...any) *Error {
	return NewError(http.StatusBadRequest, "M_BAD_JSON", format, args...)
}

// NotJSON is 400 M_NOT_JSON.
func NotJSON(format string, args ...any) *Error {
	return NewError(http.StatusBadRequest, "M_NOT_JSON", format, args...)
}

// InvalidParam is 400 M_INVALID_PARAM.
func InvalidParam(format string, args ...any) *Error {
	return NewError(http.StatusBadRequest, "M_INVALID_PARAM", format, args...)
}

// MissingParam is 400 M_MISSING_PARAM.
func MissingParam(format string, args ...any) *Error {
	return NewError(http.StatusBadRequest, "M_MISSING_PARAM", format, args...)
}

// Unknown is 400 M_UNKNOWN, for a client's mistake that has no code of its own.
func Unknown(format string, args ...any) *Error {
	return NewError(http.StatusBadRequest, "M_UNKNOWN", format, args...)
}

// Unrecognized is 404 M_UNRECOGNIZED: no such endpoint.
func Unrecognized() *Error {
	return NewError(http.StatusNotFound, "M_UNRECOGNIZED", "no such endpoint")
}

// TooLarge is 413 M_TOO_LARGE.
func TooLarge(format string, args ...any) *Error {
	return NewError(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", format, args...)
}

// MissingToken is 401 M_MISSING_TOKEN.
func MissingToken() *Error {
	return NewError(http.StatusUnauthorized, "M_MISSING_TOKEN", "an access token is needed")
}

// UnknownToken is 401 M_UNKNOWN_TOKEN; softLogout tells the client to log in
// again without throwing its data away.
func UnknownToken(softLogout bool) *Error {
	e := NewError(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "the access token is not known or no longer valid")
	if softLogout {
		e = e.With("soft_logout", true)
	}
	return e
}

// LimitExceeded is 429 M_LIMIT_EXCEEDED.
func LimitExceeded(retry time.Duration) *Error {
	return NewError(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "too many requests").
		With("retry_after_ms", max(retry.Milliseconds(), 1))
}

// IncompatibleRoomVersion is 400 M_INCOMPATIBLE_ROOM_VERSION.
func IncompatibleRoomVersion(version string) *Error {
	return NewError(http.StatusBadRequest, "M_INCOMPATIBLE_ROOM_VERSION", "your server does not support room version %s", version).
		With("room_version", version)
}

// UnsupportedRoomVersion is 400 M_UNSUPPORTED_ROOM_VERSION.
func UnsupportedRoomVersion(version string) *Error {
	return NewError(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "room version %q is not supported", version)
}

// KeyError says that a signature cannot be judged now: the key of the server that
// made it is not known, or has run out, and cannot be had. Later it may be.
type KeyError struct {
	Server ServerName
	Why    error
}

func (e *KeyError) Error() string {
	return fmt.Sprintf("the keys of %s cannot be had now: %s", e.Server, e.Why)
}

// Unwrap gives what is known of the signature without the key.
func (e *KeyError) Unwrap() error { return e.Why }
