package fedclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const (
	wellKnownDefault = 24 * time.Hour
	wellKnownMax     = 48 * time.Hour
	wellKnownMin     = 5 * time.Minute
	wellKnownFailed  = time.Hour
	wellKnownSize    = 64 << 10
	wellKnownTimeout = 10 * time.Second
	srvTimeout       = 2 * time.Second
	srvKept          = 5 * time.Minute
	staleAfter       = 30 * time.Second // a place that fails is looked up again if it is older than this
	maxPlaces        = 10_000
)

// place is where a server is reached.
type place struct {
	addrs   []string // "host:port" in order of preference
	host    string   // Host header
	tlsName string   // name that the certificate must be for
	found   time.Time
	until   time.Time
}

type resolver struct {
	opts   *Options
	plain  *http.Client // for .well-known
	mu     sync.Mutex
	places map[matrix.ServerName]*place
}

// resolve finds a server, from memory while the finding is good.
// Spec: server-server-api#resolving-server-names
func (r *resolver) resolve(ctx context.Context, server matrix.ServerName) (*place, error) {
	now := r.opts.Now()
	r.mu.Lock()
	p := r.places[server]
	r.mu.Unlock()
	if p != nil && now.Before(p.until) {
		return p, nil
	}
	if !matrix.ValidServerName(string(server)) {
		return nil, fmt.Errorf("%q is not a server name", string(server))
	}
	p, err := r.look(ctx, server)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.places) >= maxPlaces {
		for s := range r.places { // any: it can be found again
			delete(r.places, s)
			break
		}
	}
	r.places[server] = p
	return p, nil
}

// failed forgets a finding that did not lead anywhere, unless it is fresh.
func (r *resolver) failed(server matrix.ServerName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.places[server]; p != nil && r.opts.Now().Sub(p.found) > staleAfter {
		delete(r.places, server)
	}
}

func (r *resolver) look(ctx context.Context, server matrix.ServerName) (*place, error) {
	now := r.opts.Now()
	host, port := splitName(string(server))
	if p := direct(host, port, string(server), now); p != nil { // steps 1 and 2
		return p, nil
	}
	delegated, keep, err := r.wellKnown(ctx, host) // step 3
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		p := r.srv(ctx, host, now) // steps 4 to 6
		p.until = minTime(p.until, now.Add(keep))
		return p, ctx.Err()
	}
	dhost, dport := splitName(delegated)
	p := direct(dhost, dport, delegated, now) // steps 3.1 and 3.2
	if p == nil {
		p = r.srv(ctx, dhost, now) // steps 3.3 to 3.5
	}
	p.until = minTime(p.until, now.Add(keep))
	return p, ctx.Err()
}

// direct is the place of an IP literal or of a name with a port; nil if neither.
func direct(host, port, hostHeader string, now time.Time) *place {
	bare := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	_, err := netip.ParseAddr(bare)
	isIP := err == nil
	if !isIP && port == "" {
		return nil
	}
	if port == "" {
		port = "8448"
	}
	return &place{
		addrs: []string{net.JoinHostPort(bare, port)}, host: hostHeader, tlsName: bare,
		found: now, until: now.Add(wellKnownDefault),
	}
}

// srv looks for SRV records, both kinds at once, and falls back to port 8448 of the name itself.
func (r *resolver) srv(ctx context.Context, host string, now time.Time) *place {
	ctx, cancel := context.WithTimeout(ctx, srvTimeout)
	defer cancel()
	services := [2]string{"matrix-fed", "matrix"}
	var found [2][]*net.SRV
	var wg sync.WaitGroup
	for i, s := range services {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, recs, err := r.opts.Resolver.LookupSRV(ctx, s, "tcp", host)
			if err == nil {
				found[i] = recs
			}
		}()
	}
	wg.Wait()
	p := &place{host: host, tlsName: host, found: now, until: now.Add(srvKept)}
	for _, recs := range found {
		for _, rec := range recs { // the resolver has ordered them by priority and weight
			if target := strings.TrimSuffix(rec.Target, "."); target != "" {
				p.addrs = append(p.addrs, net.JoinHostPort(target, strconv.Itoa(int(rec.Port))))
			}
		}
		if len(p.addrs) > 0 {
			return p
		}
	}
	p.addrs = []string{net.JoinHostPort(host, "8448")}
	return p
}

var errNoDelegation = errors.New("no delegation")

// wellKnown asks for the delegation of a host. keep is for how long the answer, also a failure, is good.
func (r *resolver) wellKnown(ctx context.Context, host string) (delegated string, keep time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, wellKnownTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/.well-known/matrix/server", nil)
	if err != nil {
		return "", wellKnownFailed, err
	}
	req.Header.Set("User-Agent", r.opts.UserAgent)
	resp, err := r.plain.Do(req)
	if err != nil {
		return "", wellKnownFailed, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", wellKnownFailed, errNoDelegation
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, wellKnownSize+1))
	if err != nil || len(body) > wellKnownSize {
		return "", wellKnownFailed, errNoDelegation
	}
	var doc struct {
		Server string `json:"m.server"`
	}
	if json.Unmarshal(body, &doc) != nil || !matrix.ValidServerName(doc.Server) {
		return "", wellKnownFailed, errNoDelegation
	}
	return doc.Server, cacheTime(resp.Header, r.opts.Now()), nil
}

// cacheTime reads how long an answer may be kept.
func cacheTime(h http.Header, now time.Time) time.Duration {
	keep := wellKnownDefault
	if t, err := http.ParseTime(h.Get("Expires")); err == nil {
		keep = t.Sub(now)
	}
	for _, part := range strings.Split(h.Get("Cache-Control"), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch strings.ToLower(name) {
		case "max-age":
			if n, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 64); err == nil && n >= 0 {
				keep = time.Duration(min(n, int64(wellKnownMax/time.Second))) * time.Second
			}
		case "no-store", "no-cache":
			keep = 0
		}
	}
	return min(max(keep, wellKnownMin), wellKnownMax)
}

// splitName splits a valid server name into host and port.
func splitName(s string) (host, port string) {
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		return s[:i], s[i+1:]
	}
	return s, ""
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
