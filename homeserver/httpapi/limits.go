package httpapi

import (
	"net/netip"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Class is a kind of request with a limit of its own. Requests without a log-in count by their address as
// ClassAddresses, whatever the class of their route, but for those to log in and to register.
type Class uint8

// The classes.
const (
	ClassGeneral       Class = iota // what is nothing of the below: by device, and thrice as much by user
	ClassMessages                   // sending, by user
	ClassJoins                      // creating, joining and knocking at rooms, by user
	ClassInvites                    // by the user who invites
	ClassMedia                      // files and previews, by user
	ClassLogIns                     // by address
	ClassRegistrations              // by address
	ClassAddresses                  // what needs no log-in, by address; what other servers ask, by server
	classes
)

// Rate is a token bucket: so many requests a second for long, and so many at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// RateLimits are the limits of routes with RateLimit. The zero value switches limits off.
type RateLimits struct {
	PerSecond float64 // of ClassGeneral
	Burst     int
	Classes   map[Class]Rate // of the others; a class that is missing has the limit of ClassGeneral
	MaxKeys   int            // buckets kept for each class; 0 is 20,000
}

// userShare is how many devices' worth of requests one user may make.
const userShare = 3

// limits are the token buckets.
type limits struct {
	classes [classes]*gate.Limiter[string]
	users   *gate.Limiter[string] // ClassGeneral over all devices of a user
}

// newLimits is nil where nothing is limited.
func newLimits(o RateLimits, now matrix.Now) *limits {
	if o.PerSecond <= 0 {
		return nil
	}
	if o.MaxKeys == 0 {
		o.MaxKeys = 20_000
	}
	l := &limits{users: gate.NewLimiter[string](userShare*o.PerSecond, userShare*o.Burst, o.MaxKeys, now)}
	for c := range l.classes {
		r, ok := o.Classes[Class(c)]
		if !ok {
			r = Rate{o.PerSecond, o.Burst}
		}
		if r.PerSecond > 0 {
			l.classes[c] = gate.NewLimiter[string](r.PerSecond, r.Burst, o.MaxKeys, now)
		}
	}
	return l
}

// limit takes a token for the call, or says when to come again.
func (a *API) limit(c *Call) error {
	class, l := c.route.Class, a.limits
	switch {
	case c.Caller != nil && c.Caller.Unlimited:
		return nil
	case class == ClassLogIns || class == ClassRegistrations:
		if c.Caller == nil && a.unlimitedService(c) {
			return nil
		}
		return take(l.classes[class], addressKey(c.RemoteIP()))
	case c.Caller == nil && c.Origin != "":
		return take(l.classes[ClassAddresses], "server "+string(c.Origin))
	case c.Caller == nil:
		return take(l.classes[ClassAddresses], addressKey(c.RemoteIP()))
	case class != ClassGeneral:
		return take(l.classes[class], string(c.Caller.User))
	}
	user := string(c.Caller.User)
	if err := take(l.classes[ClassGeneral], user+"|"+string(c.Caller.Device)); err != nil {
		return err
	}
	return take(l.users, user)
}

func take(l *gate.Limiter[string], key string) error {
	if l == nil {
		return nil
	}
	if ok, retry := l.Allow(key); !ok {
		return matrix.LimitExceeded(retry)
	}
	return nil
}

// unlimitedService says whether a request that needs no log-in comes from an application service without limits,
// which registers all its people and logs them in.
func (a *API) unlimitedService(c *Call) bool {
	if a.opts.Authenticator == nil || c.R.Header.Get("Authorization") == "" && !c.Values().Has("access_token") {
		return false
	}
	caller, err := a.opts.Authenticator.Authenticate(c.R)
	return err == nil && caller.Unlimited
}

// addressKey is the part of an address that one client has for itself: an IPv6 network of 64 bits, else all of it.
func addressKey(ip string) string {
	a, err := netip.ParseAddr(ip)
	if err != nil || !a.Is6() || a.Is4In6() {
		return ip
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return ip
	}
	return p.String()
}
