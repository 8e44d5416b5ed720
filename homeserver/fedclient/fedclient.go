// Package fedclient sends requests to other homeservers: it finds them, checks their certificate, signs the
// request, and bounds what comes back.
//
// It owns no tables. Spec: server-server-api#server-discovery, server-server-api#request-authentication
//
// Invariants: nothing is sent before the certificate is proved; no address in a private or local network is
// dialled unless it is configured; an answer is never read beyond its limit; a server that failed is left alone
// for a growing time by all but the outbound queue, which has its own clock.
package fedclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
)

const (
	dialTimeout    = 5 * time.Second
	defaultTimeout = 30 * time.Second
	defaultMax     = 32 << 20  // bytes of an answer
	stateMax       = 512 << 20 // of an answer with the state of a room
	connsPerHost   = 10
	restFirst      = time.Second
	restMax        = 5 * time.Minute
)

// Options of a Client.
type Options struct {
	// Own signs the requests.
	Own *serverkeys.Own
	// Guard says which addresses may be dialled. The zero value permits public ones only.
	Guard Guard
	// Allow says which servers may be talked to; all when nil. See AllowList.
	Allow func(server matrix.ServerName) bool
	// ExtraCAs are PEM certificates trusted besides the system's.
	ExtraCAs []byte
	// UserAgent is sent with each request.
	UserAgent string
	// Resolver looks names up; net.DefaultResolver when nil.
	Resolver *net.Resolver
	// Dial replaces the guarded dialer, for tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Now is the clock; time.Now when nil.
	Now matrix.Now
}

// Client sends signed requests. It may be used concurrently.
type Client struct {
	opts   Options
	http   *http.Client
	places *http.Client // for addresses that are no servers
	finder *resolver
	roots  *x509.CertPool
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)

	mu    sync.Mutex
	rests map[matrix.ServerName]rest
}

// rest says until when a server that failed is left alone.
type rest struct {
	until time.Time
	wait  time.Duration
}

// New makes a client.
func New(opts Options) (*Client, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Resolver == nil {
		opts.Resolver = net.DefaultResolver
	}
	if opts.UserAgent == "" {
		opts.UserAgent = "Carillon"
	}
	c := &Client{opts: opts, rests: map[matrix.ServerName]rest{}}
	c.dial = opts.Dial
	if c.dial == nil {
		c.dial = opts.Guard.Dialer().DialContext
	}
	if len(opts.ExtraCAs) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(opts.ExtraCAs) {
			return nil, errors.New("no certificate found in the extra certificate authorities")
		}
		c.roots = pool
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialTLSContext:      c.dialServer,
			MaxConnsPerHost:     connsPerHost,
			MaxIdleConnsPerHost: 2,
			MaxIdleConns:        256,
			IdleConnTimeout:     2 * time.Minute,
			DisableCompression:  false,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	plain := &http.Transport{
		DialContext:       c.dial,
		TLSClientConfig:   &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true, TLSHandshakeTimeout: dialTimeout,
	}
	c.places = &http.Client{
		Transport:     plain,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.finder = &resolver{opts: &c.opts, places: map[matrix.ServerName]*place{}, plain: &http.Client{
		Transport: plain,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > 5 || req.URL.Scheme != "https" {
				return errNoDelegation
			}
			return nil
		},
	}}
	return c, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections(); c.finder.plain.CloseIdleConnections() }

// Server is the name of this server.
func (c *Client) Server() matrix.ServerName { return c.opts.Own.Server() }

// Allowed reports whether a server may be talked to.
func (c *Client) Allowed(server matrix.ServerName) bool {
	return c.opts.Allow == nil || c.opts.Allow(server)
}

// AllowList makes a function for Options.Allow: "a.example" names one server, "*.example.org" all below
// example.org. Ports are part of the name; letter case is not. An empty list allows all.
func AllowList(list []string) func(matrix.ServerName) bool {
	if len(list) == 0 {
		return nil
	}
	names, below := map[string]bool{}, []string{}
	for _, l := range list {
		l = strings.ToLower(strings.TrimSpace(l))
		if rest, ok := strings.CutPrefix(l, "*"); ok {
			below = append(below, rest)
		} else {
			names[l] = true
		}
	}
	return func(server matrix.ServerName) bool {
		s := strings.ToLower(string(server))
		for _, b := range below {
			if strings.HasSuffix(s, b) {
				return true
			}
		}
		return names[s]
	}
}

// Connections are pooled by server name, which may stand for any address. The transport pools by the URL's host,
// so the server name is written there in a form that is always a legal host.
func poolHost(server matrix.ServerName) string { return hex.EncodeToString([]byte(server)) + ".server" }

func fromPoolHost(addr string) (matrix.ServerName, error) {
	h, _, _ := strings.Cut(addr, ".server")
	b, err := hex.DecodeString(h)
	return matrix.ServerName(b), err
}

func (c *Client) dialServer(ctx context.Context, network, addr string) (net.Conn, error) {
	server, err := fromPoolHost(addr)
	if err != nil {
		return nil, err
	}
	p, err := c.finder.resolve(ctx, server)
	if err != nil {
		return nil, err
	}
	var last error
	for _, a := range p.addrs {
		raw, err := c.dial(ctx, network, a)
		if err != nil {
			last = err
			continue
		}
		conn := tls.Client(raw, &tls.Config{
			ServerName: p.tlsName, RootCAs: c.roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		})
		hctx, cancel := context.WithTimeout(ctx, dialTimeout)
		err = conn.HandshakeContext(hctx)
		cancel()
		if err == nil {
			return conn, nil
		}
		raw.Close()
		last = err
	}
	c.finder.failed(server)
	return nil, last
}

// Request is one request to a server.
type Request struct {
	Method string
	Server matrix.ServerName
	// Path with every segment escaped, such as Path("_matrix", "federation", …) gives.
	Path  string
	Query url.Values
	// Body is sent as JSON; json.RawMessage as it is. Nil sends none.
	Body any
	// Unsigned leaves the signature away.
	Unsigned bool
	// Patient ignores that the server has just failed: for the outbound queue.
	Patient bool
	// Timeout of the whole request, 30 s when zero.
	Timeout time.Duration
	// MaxBody bounds the answer, 32 MiB when zero.
	MaxBody int64
}

// Path escapes and joins path segments.
func Path(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

// Do sends a request and returns the body of a 2xx answer. Any other outcome is an *Error.
func (c *Client) Do(ctx context.Context, r Request) ([]byte, error) {
	timeout := r.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	limit := r.MaxBody
	if limit == 0 {
		limit = defaultMax
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, c.broken(ctx, r.Server, fmt.Errorf("reading the answer: %w", err))
	}
	if int64(len(body)) > limit {
		return nil, &Error{Server: r.Server, cause: fmt.Errorf("the answer is larger than %d bytes", limit)}
	}
	return body, nil
}

// JSON is Do with the answer decoded into out, which may be nil.
func (c *Client) JSON(ctx context.Context, r Request, out any) error {
	body, err := c.Do(ctx, r)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return &Error{Server: r.Server, cause: fmt.Errorf("decoding the answer: %w", err)}
	}
	return nil
}

// send does everything up to the status line; a response that is returned has a 2xx or 3xx status.
func (c *Client) send(ctx context.Context, r Request) (*http.Response, error) {
	if r.Server == c.Server() {
		return nil, &Error{Server: r.Server, cause: errors.New("a request to this server itself")}
	}
	if !c.Allowed(r.Server) {
		return nil, &Error{Server: r.Server, cause: errors.New("it is not on the list of servers to talk to")}
	}
	if !r.Patient && c.resting(r.Server) {
		return nil, &Error{Server: r.Server, cause: errors.New("it failed a moment ago")}
	}
	p, err := c.finder.resolve(ctx, r.Server)
	if err != nil {
		return nil, c.broken(ctx, r.Server, err)
	}
	req, err := c.build(ctx, r)
	if err != nil {
		return nil, err
	}
	req.Host = p.host
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // its URL is our pool's, and may hold a token
		}
		return nil, c.broken(ctx, r.Server, err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, c.refused(r.Server, resp)
	}
	c.Alive(r.Server)
	return resp, nil
}

func (c *Client) build(ctx context.Context, r Request) (*http.Request, error) {
	target := r.Path
	if len(r.Query) > 0 {
		target += "?" + r.Query.Encode()
	}
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = encode(r.Body); err != nil {
			return nil, fmt.Errorf("encoding a request: %w", err)
		}
	}
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://"+poolHost(r.Server)+target, rd)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.Method == http.MethodPut {
		// A PUT of federation may be repeated, so the transport may do so when an idle connection was just cut.
		req.Header["Idempotency-Key"] = []string{}
	}
	req.Header.Set("User-Agent", c.opts.UserAgent)
	if !r.Unsigned {
		auth, err := c.authorization(r.Method, r.Server, req.URL.RequestURI(), body)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", auth)
	}
	return req, nil
}

func encode(v any) ([]byte, error) {
	switch b := v.(type) {
	case json.RawMessage:
		return b, nil
	case []byte:
		return b, nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(buf.Bytes()), err
}

// authorization signs a request. Spec: server-server-api#request-authentication
func (c *Client) authorization(method string, server matrix.ServerName, uri string, body []byte) (string, error) {
	own := c.opts.Own
	doc := struct {
		Method      string          `json:"method"`
		URI         string          `json:"uri"`
		Origin      string          `json:"origin"`
		Destination string          `json:"destination"`
		Content     json.RawMessage `json:"content,omitempty"`
	}{method, uri, string(own.Server()), string(server), body}
	raw, err := encode(doc)
	if err != nil {
		return "", fmt.Errorf("encoding a request to sign: %w", err)
	}
	sig, err := own.Signature(raw)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(`X-Matrix origin="%s",destination="%s",key="%s",sig="%s"`, own.Server(), server, own.KeyID(), sig), nil
}

func (c *Client) resting(server matrix.ServerName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opts.Now().Before(c.rests[server].until)
}

// Alive notes that a server works, also when it has just sent something by itself.
func (c *Client) Alive(server matrix.ServerName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.rests, server)
}

// broken makes the error of a request without an answer, and lets the server rest.
func (c *Client) broken(ctx context.Context, server matrix.ServerName, cause error) error {
	if !errors.Is(ctx.Err(), context.Canceled) { // the caller's haste is not the server's fault
		c.tire(server)
	}
	return &Error{Server: server, cause: cause}
}

func (c *Client) tire(server matrix.ServerName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.opts.Now()
	if len(c.rests) >= maxPlaces {
		for s, r := range c.rests {
			if now.After(r.until) {
				delete(c.rests, s)
			}
		}
	}
	r := c.rests[server]
	if now.Before(r.until) {
		return // several requests under way count once
	}
	wait := min(max(2*r.wait, restFirst), restMax)
	c.rests[server] = rest{until: now.Add(wait), wait: wait}
}

// refused makes the error of an answer with a status of 400 or more.
func (c *Client) refused(server matrix.ServerName, resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	e := &Error{Server: server, Status: resp.StatusCode}
	var fields map[string]any
	if json.Unmarshal(body, &fields) == nil {
		e.Code, _ = fields["errcode"].(string)
		e.Msg, _ = fields["error"].(string)
		delete(fields, "errcode")
		delete(fields, "error")
		e.Extra = fields
	}
	switch {
	case resp.StatusCode == http.StatusBadGateway, resp.StatusCode == http.StatusServiceUnavailable, resp.StatusCode == http.StatusGatewayTimeout:
		c.tire(server)
	default:
		c.Alive(server)
	}
	return e
}
