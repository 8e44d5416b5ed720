package httpapi

import (
	"errors"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// serve is the life of one request.
func (a *API) serve(w http.ResponseWriter, r *http.Request, only []string) {
	start := a.now()
	path := r.URL.EscapedPath()
	if wantsCORS(path) {
		setCORS(w.Header())
	}
	if r.Method == http.MethodOptions {
		allow(w, a.patience(), 0)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if !a.drain.enter() {
		w.Header().Set("Connection", "close")
		allow(w, a.patience(), 0)
		writeError(w, errDraining())
		return
	}
	rec := statusWriter{ResponseWriter: w, patience: a.patience()}
	c := &Call{W: &rec, R: r, ctx: r.Context(), api: a, serial: a.serial.Add(1), start: start}
	defer func() {
		if !c.parked {
			a.drain.leave()
		}
	}()
	c.match.path = path
	var allow []string
	if only == nil || hasAnyPrefix(path, only) {
		if allow = a.table.find(r, &c.match); c.match.target != nil {
			c.route = c.match.target.Route
		}
	}
	switch {
	case !cleanURL(r, path):
		writeError(&rec, matrix.InvalidParam("the address holds bytes that are no text"))
	case c.route != nil:
		a.run(c, only)
	case allow != nil:
		rec.Header().Set("Allow", strings.Join(allow, ", "))
		writeError(&rec, matrix.NewError(http.StatusMethodNotAllowed, "M_UNRECOGNIZED", "method not allowed"))
	default:
		writeError(&rec, matrix.NewError(http.StatusNotFound, "M_UNRECOGNIZED", "unrecognized request"))
	}
	if !c.parked {
		a.finish(c, &rec)
	}
}

// cleanURL says whether path and query are text once unescaped: UTF-8 without NUL, which every database can hold.
func cleanURL(r *http.Request, escaped string) bool {
	if strings.IndexByte(escaped, '%') >= 0 && !isText(r.URL.Path) {
		return false
	}
	if !isText(r.URL.RawQuery) {
		return false
	}
	if plainEscapes(r.URL.RawQuery) {
		return true
	}
	q, err := url.QueryUnescape(r.URL.RawQuery)
	return err != nil || isText(q) // parameters that cannot be unescaped are dropped when they are read
}

// plainEscapes reports whether s holds no escape but of ASCII characters other than NUL.
func plainEscapes(s string) bool {
	for {
		i := strings.IndexByte(s, '%')
		if i < 0 {
			return true
		}
		if i+2 >= len(s) || s[i+1] < '0' || s[i+1] > '7' || s[i+1] == '0' && s[i+2] == '0' {
			return false
		}
		s = s[i+3:]
	}
}

func isText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// run has the handler answer, and writes what it returns.
func (a *API) run(c *Call, only []string) {
	v, err := a.call(c)
	h, held := v.(Held)
	if !held || err != nil {
		a.reply(c, v, err)
		return
	}
	if h.Timeout > 0 && a.park(c, h, only) {
		return
	}
	v, err = a.await(c, h)
	a.reply(c, v, err)
	h.End()
}

// call authenticates, limits and calls the handler.
func (a *API) call(c *Call) (v any, err error) {
	defer a.recovered(c, &err)
	if err := a.admit(c); err != nil {
		return nil, err
	}
	return c.route.Handler(c)
}

// attempt asks a held answer whether it is there now.
func (a *API) attempt(c *Call, h Held, last bool) (v any, err error) {
	defer a.recovered(c, &err)
	return h.Answer(c.ctx, last)
}

// recovered makes an error of a handler's panic.
func (a *API) recovered(c *Call, err *error) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it the same way
		panic(p)
	}
	a.panics.Add(1)
	log.WithFields(log.Fields{"request": c.ID(), "route": c.route.Path, "panic": p}).
		Errorf("handler panicked\n%s", debug.Stack())
	*err = errPanicked
}

// reply writes what a handler returned.
func (a *API) reply(c *Call, v any, err error) {
	if err == nil {
		err = writeValue(c.W, v)
	}
	if err != nil {
		a.fail(c, err)
	}
}

var errPanicked = errors.New("handler panicked")

// admit authenticates the caller and applies the rules that stand before every handler.
func (a *API) admit(c *Call) error {
	r := c.route
	switch r.Auth {
	case AuthNone:
	case AuthServer:
		if err := a.admitServer(c); err != nil {
			return err
		}
	default:
		if err := a.admitUser(c); err != nil {
			return err
		}
	}
	if r.RateLimit && a.limits != nil {
		return a.limit(c)
	}
	return nil
}

func (a *API) admitServer(c *Call) error {
	if a.opts.OriginVerifier == nil {
		return matrix.NewError(http.StatusUnauthorized, "M_UNAUTHORIZED", "this server does not federate")
	}
	body, err := c.read()
	if err != nil {
		return err
	}
	c.Origin, err = a.opts.OriginVerifier.VerifyOrigin(c.R, body)
	return err
}

func (a *API) admitUser(c *Call) error {
	r := c.route
	if a.opts.Authenticator == nil {
		return errors.New("no authenticator")
	}
	caller, err := a.opts.Authenticator.Authenticate(c.R)
	if err != nil {
		var e *matrix.Error
		if r.Auth == AuthOptional && errors.As(err, &e) && e.Code == "M_MISSING_TOKEN" {
			return nil
		}
		return err
	}
	c.Caller = caller
	if a.onAdmit != nil {
		a.onAdmit.Admitted(c)
	}
	switch {
	case r.Auth == AuthAppService && caller.AppService == "":
		return matrix.Forbidden("only an application service may do this")
	case r.Auth == AuthAdmin && !caller.Admin:
		return matrix.Forbidden("only an administrator may do this")
	case caller.Suspended && !r.AllowSuspended:
		return matrix.NewError(http.StatusForbidden, "M_USER_SUSPENDED", "this account is suspended")
	case caller.Guest && !r.AllowGuest && r.Auth != AuthOptional:
		return matrix.NewError(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "guests may not do this")
	}
	return nil
}

// fail writes an error and logs it if it is the server's.
func (a *API) fail(c *Call, err error) {
	var e *matrix.Error
	if !errors.As(err, &e) {
		entry := log.WithFields(log.Fields{"request": c.ID(), "route": c.route.Path, "method": c.R.Method})
		if c.Caller != nil {
			entry = entry.WithField("user_id", c.Caller.User)
		}
		switch {
		case c.ctx.Err() != nil:
			entry.WithError(err).Debug("the client went away")
		case !errors.Is(err, errPanicked):
			entry.WithError(err).Error("request failed")
		}
		e = matrix.NewError(http.StatusInternalServerError, "M_UNKNOWN", "internal error, request %s", c.ID())
	}
	if rec, ok := c.W.(*statusWriter); ok && rec.status != 0 {
		return // the answer has begun; nothing sensible can follow
	}
	writeError(c.W, e)
}

// finish logs and counts an answered request.
func (a *API) finish(c *Call, rec *statusWriter) {
	failed := rec.status >= http.StatusInternalServerError
	if !failed && a.opts.Observe == nil && !log.IsLevelEnabled(log.DebugLevel) {
		return
	}
	took := a.now().Sub(c.start)
	if a.opts.Observe != nil {
		route := ""
		if c.route != nil {
			route = c.route.Path
		}
		a.opts.Observe(c.R.Method, route, rec.status, took)
	}
	level := log.DebugLevel
	if failed {
		level = log.WarnLevel
	}
	if !log.IsLevelEnabled(level) {
		return
	}
	f := log.Fields{
		"request": c.ID(), "method": c.R.Method, "url": loggedURL(c.R), "status": rec.status,
		"took_ms": took.Milliseconds(), "bytes": rec.bytes,
	}
	if c.Caller != nil {
		f["user_id"] = c.Caller.User
	}
	if c.Origin != "" {
		f["origin"] = c.Origin
	}
	log.WithFields(f).Log(level, "request")
}

// secretParams are query parameters whose values are never logged.
var secretParams = [...]string{"access_token", "loginToken", "token", "client_secret", "mac", "code", "user_code", "session"}

// loggedURL is the request's path and query without secrets.
func loggedURL(r *http.Request) string {
	if r.URL.RawQuery == "" {
		return r.URL.EscapedPath()
	}
	q := r.URL.Query()
	for _, p := range secretParams {
		if q.Has(p) {
			q.Set(p, "-")
		}
	}
	return r.URL.EscapedPath() + "?" + q.Encode()
}

func hasAnyPrefix(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// wantsCORS says whether browsers may call the path: everything but what servers say to each other.
func wantsCORS(path string) bool {
	return !strings.HasPrefix(path, "/_matrix/federation/") && !strings.HasPrefix(path, "/_matrix/key/")
}

var (
	corsOrigin  = []string{"*"}
	corsMethods = []string{"GET, POST, PUT, DELETE, OPTIONS"}
	corsHeaders = []string{"X-Requested-With, Content-Type, Authorization"}
	corsExpose  = []string{"Retry-After"}
	corsMaxAge  = []string{strconv.Itoa(int((24 * time.Hour).Seconds()))}
)

// setCORS sets the headers of client-server-api#web-browser-clients.
func setCORS(h http.Header) {
	h["Access-Control-Allow-Origin"] = corsOrigin
	h["Access-Control-Allow-Methods"] = corsMethods
	h["Access-Control-Allow-Headers"] = corsHeaders
	h["Access-Control-Expose-Headers"] = corsExpose
	h["Access-Control-Max-Age"] = corsMaxAge
}

// statusWriter remembers what was answered.
type statusWriter struct {
	http.ResponseWriter
	status   int
	bytes    int64
	patience time.Duration
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
	allow(w.ResponseWriter, w.patience, 0)
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	allow(w.ResponseWriter, w.patience, len(p))
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the writer beneath.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush implements http.Flusher.
func (w *statusWriter) Flush() {
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}
