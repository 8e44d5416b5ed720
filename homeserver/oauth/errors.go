package oauth

import (
	"errors"
	"net/http"
	"net/url"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Error is an error of RFC 6749 and its kin.
type Error struct {
	Status int
	Code   string // invalid_grant, …
	Text   string
}

// Error implements error.
func (e *Error) Error() string { return e.Code + ": " + e.Text }

func bad(code, text string) *Error { return &Error{http.StatusBadRequest, code, text} }

// answer makes errors of an endpoint what its RFC wants.
func answer(v any, err error) (any, error) {
	var e *Error
	var m *matrix.Error
	switch {
	case err == nil:
		return v, nil
	case errors.As(err, &e):
	case errors.As(err, &m) && m.Code == "M_USER_LOCKED":
		// A client takes any 4xx as the end of its session; this one only rests.
		e = &Error{http.StatusServiceUnavailable, "temporarily_unavailable", m.Msg}
	case errors.As(err, &m) && m.Status < 500 && m.Status != http.StatusTooManyRequests:
		e = bad("invalid_request", m.Msg)
	default:
		return nil, err
	}
	return httpapi.Status{Code: e.Status, Body: map[string]string{"error": e.Code, "error_description": e.Text}}, nil
}

// params reads parameters, none of which may come twice.
func params(q url.Values) (map[string]string, error) {
	m := make(map[string]string, len(q))
	for k, list := range q {
		if len(list) > 1 {
			return nil, bad("invalid_request", "a parameter is given twice")
		}
		if len(list[0]) > maxParam || !utf8.ValidString(list[0]) {
			return nil, bad("invalid_request", "a parameter is too long or no text")
		}
		for _, c := range list[0] {
			if c == 0 {
				return nil, bad("invalid_request", "a parameter holds a NUL")
			}
		}
		m[k] = list[0]
	}
	return m, nil
}

// maxParam bounds a parameter, in bytes.
const maxParam = 4096
