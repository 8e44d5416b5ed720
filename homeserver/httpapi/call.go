package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Call is one request on its way through a handler.
type Call struct {
	W      http.ResponseWriter
	R      *http.Request
	Caller *Caller           // nil on routes without authentication
	Origin matrix.ServerName // the verified server on AuthServer routes

	api    *API
	route  *Route
	ctx    context.Context //nolint:containedctx // a Call is the context of one request
	match  match
	query  url.Values
	plain  [mostPlain]param // the parameters, where there are few
	plains int
	body   []byte

	isSplit, isRead bool

	parked bool // the connection was taken over; see parked.go
	serial uint64
	start  time.Time
}

// Ctx ends when the client goes away or the server is told to stop at once.
func (c *Call) Ctx() context.Context { return c.ctx }

// SetCtx replaces the context of the call, for example with one that has a deadline.
func (c *Call) SetCtx(ctx context.Context) { c.ctx = ctx }

// Draining is closed when the server begins to shut down: a waiting handler should answer with what it has.
func (c *Call) Draining() <-chan struct{} { return c.api.Draining() }

// ID names the request in the log.
func (c *Call) ID() string { return c.api.prefix + strconv.FormatUint(c.serial, 36) }

// Now is the time by the API's clock.
func (c *Call) Now() time.Time { return c.api.now() }

// Route is the path as it was registered.
func (c *Call) Route() string { return c.route.Path }

// Var is a variable of the path, unescaped; empty if the route has none of that name.
func (c *Call) Var(name string) string {
	v := c.match.value(name)
	if strings.IndexByte(v, '%') < 0 {
		return v
	}
	u, err := url.PathUnescape(v)
	if err != nil {
		return v
	}
	return u
}

// UserVar is a path variable that must be a user ID.
func (c *Call) UserVar(name string) (matrix.UserID, error) { return matrix.ParseUserID(c.Var(name)) }

// RoomVar is a path variable that must be a room ID.
func (c *Call) RoomVar(name string) (matrix.RoomID, error) { return matrix.ParseRoomID(c.Var(name)) }

// Values are all query parameters.
func (c *Call) Values() url.Values {
	if c.query == nil {
		if c.R.URL.RawQuery == "" {
			c.query = url.Values{}
		} else {
			c.query = c.R.URL.Query()
		}
	}
	return c.query
}

// param is a query parameter whose name has no escapes; its value is as it was sent.
type param struct{ key, value string }

// mostPlain is how many parameters a request may have to be read without a map of them.
const mostPlain = 6

// Query is the first value of a query parameter, or "".
func (c *Call) Query(name string) string {
	if c.query == nil && !c.isSplit {
		c.split()
	}
	if c.query != nil {
		return c.query.Get(name)
	}
	for _, p := range c.plain[:c.plains] {
		if p.key != name {
			continue
		}
		if strings.IndexByte(p.value, '%') < 0 && strings.IndexByte(p.value, '+') < 0 {
			return p.value
		}
		if value, err := url.QueryUnescape(p.value); err == nil {
			return value
		}
	}
	return ""
}

// split takes the parameters apart: most requests have few and plain ones.
func (c *Call) split() {
	c.isSplit = true
	rest := c.R.URL.RawQuery
	for rest != "" {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		key, value, _ := strings.Cut(pair, "=")
		if c.plains == mostPlain || strings.ContainsAny(key, "%+;") || strings.IndexByte(value, ';') >= 0 {
			c.Values()
			return
		}
		c.plain[c.plains] = param{key, value}
		c.plains++
	}
}

// QueryInt is a whole number of the query: def when absent, M_INVALID_PARAM when it is no number or below minV,
// and maxV when above it (asking for too much gives as much as there is).
func (c *Call) QueryInt(name string, def, minV, maxV int) (int, error) {
	s := c.Query(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, matrix.InvalidParam("%s must be a whole number", name)
	}
	if n < minV {
		return 0, matrix.InvalidParam("%s must be at least %d", name, minV)
	}
	return min(n, maxV), nil
}

// Bool is a true/false query parameter; false when absent.
func (c *Call) Bool(name string) (bool, error) {
	switch c.Query(name) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, matrix.InvalidParam("%s must be true or false", name)
}

// RemoteIP is the address of the client, through trusted proxies.
func (c *Call) RemoteIP() string {
	host, _, err := net.SplitHostPort(c.R.RemoteAddr)
	if err != nil {
		return c.R.RemoteAddr
	}
	if len(c.api.opts.TrustedProxies) == 0 {
		return host
	}
	hops := strings.Split(strings.Join(c.R.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && c.trusted(host); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		host = hop.Unmap().String()
	}
	return host
}

func (c *Call) trusted(host string) bool {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	for _, p := range c.api.opts.TrustedProxies {
		if p.Contains(ip.Unmap()) {
			return true
		}
	}
	return false
}

// read returns the whole body, once read from the network and limited.
func (c *Call) read() ([]byte, error) {
	if c.isRead {
		return c.body, nil
	}
	limit := c.route.MaxBody
	if limit == 0 {
		limit = DefaultMaxBody
	}
	if c.R.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	if c.R.ContentLength > 0 {
		done := c.slowBody(c.R.ContentLength)
		body, err := readAll(c.R.Body, c.R.ContentLength)
		done(err)
		if err != nil {
			return nil, matrix.NotJSON("the body could not be read")
		}
		c.body = body
	} else if c.R.Body != nil && c.R.Body != http.NoBody && c.R.ContentLength != 0 {
		done := c.slowBody(limit)
		body, err := io.ReadAll(http.MaxBytesReader(c.W, c.R.Body, limit))
		done(err)
		if err != nil {
			var over *http.MaxBytesError
			if errors.As(err, &over) {
				return nil, tooLarge(limit)
			}
			return nil, matrix.NotJSON("the body could not be read")
		}
		c.body = body
	}
	c.isRead = true
	return c.body, nil
}

func tooLarge(limit int64) *matrix.Error {
	return matrix.NewError(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "the body is larger than %d bytes", limit)
}

// BodyReader is the body as a stream of at most the route's MaxBody bytes, for uploads. Reading beyond gives an
// *http.MaxBytesError.
func (c *Call) BodyReader() io.Reader {
	if c.isRead {
		return bytes.NewReader(c.body)
	}
	limit := c.route.MaxBody
	if limit == 0 {
		limit = DefaultMaxBody
	}
	return &slowReader{http.MaxBytesReader(c.W, c.R.Body, limit), c}
}

// RawBody is the body when it is one valid JSON object, byte for byte.
func (c *Call) RawBody() ([]byte, error) {
	b, err := c.read()
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(b) || !json.Valid(b) {
		return nil, matrix.NotJSON("the body is not valid JSON")
	}
	if err := c.checkDepth(b); err != nil {
		return nil, err
	}
	if !isObject(b) {
		return nil, matrix.BadJSON("the body must be a JSON object")
	}
	return b, nil
}

// Body reads the JSON object of the body into v. An empty body is an empty object.
func (c *Call) Body(v any) error {
	b, err := c.read()
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	if err := c.checkDepth(b); err != nil {
		return err
	}
	return Decode(b, v)
}

// Decode reads a JSON object into v with the errors of the specification: M_NOT_JSON when it is no JSON,
// M_BAD_JSON when it does not fit.
func Decode(b []byte, v any) error {
	if !utf8.Valid(b) {
		return matrix.NotJSON("the body is not valid UTF-8")
	}
	if !isObject(b) {
		if !json.Valid(b) {
			return matrix.NotJSON("the body is not valid JSON")
		}
		return matrix.BadJSON("the body must be a JSON object")
	}
	err := json.Unmarshal(b, v)
	if err == nil {
		return nil
	}
	var (
		syntax *json.SyntaxError
		typ    *json.UnmarshalTypeError
		e      *matrix.Error
	)
	switch {
	case errors.As(err, &syntax):
		return matrix.NotJSON("the body is not valid JSON")
	case errors.As(err, &e):
		return e
	case errors.As(err, &typ):
		return matrix.BadJSON("%s has the wrong type: %s", typ.Field, typ.Value)
	}
	return matrix.BadJSON("the body does not fit this endpoint")
}

func isObject(b []byte) bool {
	for _, ch := range b {
		switch ch {
		case ' ', '\t', '\r', '\n':
			continue
		}
		return ch == '{'
	}
	return false
}
