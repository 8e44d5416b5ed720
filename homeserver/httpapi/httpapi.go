// Package httpapi is the door between HTTP and the packages that answer: the shape of a handler, routing, who is
// calling, limits, reading and writing JSON, errors, the request log, and the end of requests at shutdown.
//
// A package offers []Route; homeserver adds them to one API before it serves. Handlers are
// func(*Call) (any, error): what they return is written as JSON, an error that is a *matrix.Error is what the
// client sees, any other becomes 500 M_UNKNOWN and its text goes to the log alone.
//
// It implements the API standards of the client-server and server-server specifications (CORS, errcodes, 404 and
// 405 as M_UNRECOGNIZED, rate limits) and owns no tables. Invariants: a body is never read beyond its route's
// limit; no token is ever logged; a panic in a handler costs that request alone.
package httpapi

import (
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Caller is the authenticated user or application service behind a request.
type Caller struct {
	User       matrix.UserID
	Device     matrix.DeviceID // empty for an application service that does not act as a device
	TokenID    int64           // the access token's row; 0 for an application service's own token
	Guest      bool
	Admin      bool
	Suspended  bool
	AppService string        // ID of the application service whose token was used
	Service    matrix.UserID // that service's own user
	Unlimited  bool          // rate limits do not apply (an application service with rate_limited: false)

	// Seen is when the authenticator last noted the use of the device, in milliseconds; for its own use, may be nil.
	Seen *atomic.Int64
}

// Authenticator finds the caller of a request by its access token. Without a token it returns M_MISSING_TOKEN.
type Authenticator interface {
	Authenticate(r *http.Request) (*Caller, error)
}

// Admitter is an Authenticator that wants to be told of each call by a user that was let in.
type Admitter interface {
	Admitted(c *Call)
}

// OriginVerifier checks the signature of a request from another server; body is the whole request body.
type OriginVerifier interface {
	VerifyOrigin(r *http.Request, body []byte) (matrix.ServerName, error)
}

// Auth says who may call a route.
type Auth uint8

// The kinds of authentication.
const (
	AuthNone       Auth = iota // anybody
	AuthOptional               // anybody; Caller is set when a token came along
	AuthUser                   // a user's access token, or an application service acting as a user
	AuthAppService             // an application service's token
	AuthAdmin                  // a user who is a server administrator
	AuthServer                 // another server, by its signature; Origin is set
)

// Handler answers one call. The value is written as JSON with status 200: nil as {}, Raw as it is, Status with
// its own code; Held an answer that is not there yet; Done means the handler wrote the answer itself.
type Handler func(c *Call) (any, error)

// Route is one endpoint. Path has variables in braces; see API.Add for the forms it may take.
type Route struct {
	Method         string
	Path           string
	Auth           Auth
	MaxBody        int64 // largest body in bytes; 0 is DefaultMaxBody
	RateLimit      bool  // counts against the limit of its class
	Class          Class // see RateLimits
	AllowSuspended bool  // suspended users may call it
	AllowGuest     bool  // guests may call it
	Deep           bool  // the body may be nested as deeply as the parser takes: it holds what others have written
	Holds          bool  // its answer may have to wait: the handler returns Held
	Handler        Handler
}

// DefaultMaxBody is the body limit of routes that name none.
const DefaultMaxBody = 1 << 20

// Raw is JSON that is written as it is.
type Raw []byte

// Status is an answer with a code other than 200.
type Status struct {
	Code int
	Body any
}

type done struct{}

// Done is returned by a handler that has written its answer to Call.W.
var Done any = done{}

// Options are what an API needs from outside. All fields may be left empty.
type Options struct {
	Authenticator  Authenticator  // needed by routes with AuthUser, AuthOptional, AuthAppService, AuthAdmin
	OriginVerifier OriginVerifier // needed by routes with AuthServer
	RateLimits     RateLimits
	TrustedProxies []netip.Prefix // peers whose X-Forwarded-For is believed
	Now            matrix.Now     // nil: time.Now
	Patience       time.Duration  // with a peer that stands still in a body or an answer; 0: 30 seconds
	// Observe is told of every answered request; route is the path as registered, empty if there was none.
	Observe func(method, route string, status int, took time.Duration)
}

// API routes requests to handlers. Add all routes before serving; it is then safe for concurrent use.
type API struct {
	opts    Options
	now     matrix.Now
	table   table
	limits  *limits // nil: none
	prefix  string  // of request IDs, new at each start
	serial  atomic.Uint64
	panics  atomic.Uint64
	drain   drain
	runners runners
	onAdmit Admitter // the authenticator, if it wants to be told
}

// New builds an API without routes.
func New(opts Options) *API {
	a := &API{opts: opts, now: opts.Now, prefix: matrix.RandomString(6)}
	if a.now == nil {
		a.now = time.Now
	}
	a.limits = newLimits(opts.RateLimits, a.now)
	a.onAdmit, _ = opts.Authenticator.(Admitter)
	a.drain.init()
	return a
}

// SetOriginVerifier gives the API its verifier when federation is built after it. Call it before serving.
func (a *API) SetOriginVerifier(v OriginVerifier) { a.opts.OriginVerifier = v }

// SetAuthenticator gives the API its authenticator when it is built after it. Call it before serving.
func (a *API) SetAuthenticator(v Authenticator) {
	a.opts.Authenticator = v
	a.onAdmit, _ = v.(Admitter)
}

// Panics is the number of handlers that have panicked since the start.
func (a *API) Panics() uint64 { return a.panics.Load() }

// Only is the API with nothing but the paths that begin with one of the prefixes, for a second listener.
func (a *API) Only(prefixes ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.serve(w, r, prefixes)
	})
}

// ServeHTTP answers a request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.serve(w, r, nil) }

// Paths lists the registered routes as "METHOD /path", aliases not included, in the order they were added.
func (a *API) Paths() []string { return append([]string(nil), a.table.paths...) }
