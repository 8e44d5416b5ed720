// Package mxclient speaks the Matrix client-server API as an application service: as its bot or as any user of its
// namespaces. It owns no tables and keeps no state but connections.
//
// Types and the full client come from mautrix-go (Client.As); the calls the enterprise service makes by the ten
// thousand go through Client.Do, which builds a request without copying what never changes.
//
// Spec: application-service-api#identity-assertion. Invariants: a call is repeated only where repeating it cannot
// double an effect; 429 is waited for as the server asks; every wait ends with the context.
package mxclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// Config says which homeserver is spoken to, and as whom.
type Config struct {
	// HomeserverURL is the base address of the client-server API; with a handler transport any http address will do.
	HomeserverURL string
	// ServerName is the part of user IDs after the colon.
	ServerName string
	// ASToken is the application service's token.
	ASToken string
	// BotLocalpart is the sender_localpart of the registration.
	BotLocalpart string
	// Transport carries the requests; nil means a pooled HTTP transport.
	Transport http.RoundTripper
	// Attempts is how often a failing call is tried before its error is returned; 0 means 6.
	Attempts int
	// MinBackoff and MaxBackoff bound the wait between tries; 0 means 100 ms and 10 s.
	MinBackoff, MaxBackoff time.Duration
	// Timeout bounds a single try; 0 means one minute.
	Timeout time.Duration
}

// maxResponse bounds what is read of a response: the members of a room of 100,000 fit.
const maxResponse = 64 << 20

// maxLimited bounds how often one call waits for a rate limit.
const maxLimited = 100

// Client makes calls as the service's bot or as users of its namespace. It is safe for concurrent use.
type Client struct {
	cfg    Config
	base   url.URL
	bot    id.UserID
	header http.Header // shared by all requests without a body of their own type

	mu      sync.Mutex
	clients map[id.UserID]*mautrix.Client // bounded by maxClients
}

// maxClients bounds the cache of full clients; beyond it an arbitrary one is dropped, they are cheap to build.
const maxClients = 1024

// New builds a client; it makes no call.
func New(cfg Config) (*Client, error) {
	if cfg.HomeserverURL == "" && cfg.Transport != nil {
		cfg.HomeserverURL = "http://homeserver.invalid"
	}
	u, err := url.Parse(cfg.HomeserverURL)
	if err != nil {
		return nil, fmt.Errorf("reading the homeserver's address: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("the homeserver's address %q is not an http or https URL", cfg.HomeserverURL)
	}
	if cfg.ServerName == "" || cfg.ASToken == "" || cfg.BotLocalpart == "" {
		return nil, errors.New("the Matrix client needs a server name, an application service token and a bot name")
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	u.RawPath, u.RawQuery, u.Fragment = "", "", ""
	if cfg.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost, t.MaxIdleConns = 64, 64
		cfg.Transport = t
	}
	setDefault(&cfg.Attempts, 6)
	setDefault(&cfg.MinBackoff, 100*time.Millisecond)
	setDefault(&cfg.MaxBackoff, 10*time.Second)
	setDefault(&cfg.Timeout, time.Minute)
	return &Client{
		cfg: cfg, base: *u, bot: id.NewUserID(cfg.BotLocalpart, cfg.ServerName),
		header:  http.Header{"Authorization": {"Bearer " + cfg.ASToken}, "Content-Type": {"application/json"}, "User-Agent": {"Carillon"}},
		clients: map[id.UserID]*mautrix.Client{},
	}, nil
}

func setDefault[T int | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// BotID is the user ID of the service's bot.
func (c *Client) BotID() id.UserID { return c.bot }

// ServerName is the name of the homeserver spoken to.
func (c *Client) ServerName() string { return c.cfg.ServerName }

// UserID is the local user of that localpart.
func (c *Client) UserID(localpart string) id.UserID { return id.NewUserID(localpart, c.cfg.ServerName) }

// Bot is a full mautrix client that acts as the bot.
func (c *Client) Bot() *mautrix.Client { return c.As(c.bot) }

// As is a full mautrix client that acts as user. Clients are cached.
func (c *Client) As(user id.UserID) *mautrix.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl := c.clients[user]; cl != nil {
		return cl
	}
	if len(c.clients) >= maxClients {
		for u := range c.clients {
			delete(c.clients, u)
			break
		}
	}
	cl, err := mautrix.NewClient(c.base.String(), user, c.cfg.ASToken)
	if err != nil { // New has parsed the same address
		panic(err)
	}
	cl.Client = &http.Client{Transport: c.cfg.Transport, Timeout: 3 * time.Minute}
	cl.SetAppServiceUserID = user != c.bot
	cl.DefaultHTTPRetries = c.cfg.Attempts - 1
	cl.DefaultHTTPBackoff = c.cfg.MinBackoff
	cl.MaxHTTPBackoff = c.cfg.MaxBackoff
	c.clients[user] = cl
	return cl
}

// Request is one call. Path starts with "/" and is already escaped (see Path); As "" is the bot; Token overrides the
// service's token and makes the call as that token's owner; Once forbids repeating it after an unclear failure.
type Request struct {
	Method string
	Path   string
	Query  url.Values
	As     id.UserID
	Token  string
	Body   any
	Once   bool
}

// Path joins the parts with "/", each escaped as one path segment.
func Path(prefix string, parts ...string) string {
	var b strings.Builder
	b.WriteString(prefix)
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}

// Do makes the call and decodes the answer into out unless out is nil. An answer that is an error comes back as a
// mautrix.RespError, so errors.Is(err, mautrix.MNotFound) works.
func (c *Client) Do(ctx context.Context, r Request, out any) error {
	var body []byte
	switch b := r.Body.(type) {
	case nil:
		if r.Method == http.MethodPost || r.Method == http.MethodPut {
			body = []byte("{}")
		}
	case json.RawMessage:
		body = b
	default:
		var err error
		if body, err = json.Marshal(b); err != nil {
			return fmt.Errorf("encoding a request body: %w", err)
		}
	}
	limited := 0
	for attempt := 1; ; attempt++ {
		wait, err := c.try(ctx, &r, body, out)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if wait < 0 {
			return err
		}
		if wait > 0 || errors.Is(err, mautrix.MLimitExceeded) {
			if limited++; limited > maxLimited {
				return err
			}
			attempt--
		} else if r.Once || attempt >= c.cfg.Attempts {
			return err
		}
		if !sleep(ctx, max(wait, c.backoff(max(attempt, 1)))) {
			return err
		}
	}
}

// try makes the call once. wait is negative when repeating is pointless, positive when the server has named a time.
func (c *Client) try(ctx context.Context, r *Request, body []byte, out any) (wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	req := c.build(r, body).WithContext(ctx)
	resp, err := c.cfg.Transport.RoundTrip(req)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", r.Method, r.Path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if err != nil {
		return 0, fmt.Errorf("reading the answer to %s %s: %w", r.Method, r.Path, err)
	}
	if resp.StatusCode/100 == 2 {
		if out == nil {
			return 0, nil
		}
		if err := json.Unmarshal(data, out); err != nil {
			return -1, fmt.Errorf("decoding the answer to %s %s: %w", r.Method, r.Path, err)
		}
		return 0, nil
	}
	return readError(resp, data)
}

func (c *Client) build(r *Request, body []byte) *http.Request {
	u := c.base
	raw := u.Path + r.Path
	if path, err := url.PathUnescape(raw); err == nil {
		u.Path, u.RawPath = path, raw
	} else {
		u.Path = raw
	}
	h := c.header
	if r.Token != "" {
		h = h.Clone()
		h.Set("Authorization", "Bearer "+r.Token)
	}
	switch q := r.Query; {
	case r.Token != "" || r.As == "" || r.As == c.bot:
		u.RawQuery = q.Encode()
	case len(q) == 0:
		u.RawQuery = "user_id=" + url.QueryEscape(string(r.As))
	default:
		u.RawQuery = q.Encode() + "&user_id=" + url.QueryEscape(string(r.As))
	}
	req := &http.Request{
		Method: r.Method, URL: &u, Host: u.Host, Header: h,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if body != nil {
		req.ContentLength = int64(len(body))
		req.Body = io.NopCloser(bytes.NewReader(body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	return req
}

// readError makes an error of an answer that is not a success, and says whether and when to try again.
func readError(resp *http.Response, data []byte) (time.Duration, error) {
	var e mautrix.RespError
	if json.Unmarshal(data, &e) != nil || e.ErrCode == "" {
		e = mautrix.RespError{ErrCode: "M_BAD_STATUS", Err: "HTTP status " + strconv.Itoa(resp.StatusCode)}
	}
	e.StatusCode = resp.StatusCode
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		return retryAfter(resp, e.ExtraData), e
	case resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented:
		return 0, e
	}
	return -1, e
}

// retryAfter reads how long the server wants to be left alone, at most one minute.
func retryAfter(resp *http.Response, extra map[string]any) time.Duration {
	wait := time.Duration(0)
	if ms, ok := extra["retry_after_ms"].(float64); ok && ms > 0 {
		wait = time.Duration(ms) * time.Millisecond
	} else if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		wait = time.Duration(s) * time.Second
	}
	return min(wait, time.Minute)
}

// backoff doubles from MinBackoff to MaxBackoff; half of it is random so that callers spread.
func (c *Client) backoff(attempt int) time.Duration {
	d := c.cfg.MaxBackoff
	if attempt < 16 {
		d = min(c.cfg.MinBackoff<<(attempt-1), c.cfg.MaxBackoff)
	}
	return d/2 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// IsCode reports whether err is the homeserver's answer with one of these errcodes.
func IsCode(err error, codes ...string) bool {
	var e mautrix.RespError
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.ErrCode == c {
			return true
		}
	}
	return false
}

// IsPermanent reports whether err is the homeserver's refusal, which repeating the call would not change.
func IsPermanent(err error) bool {
	var e mautrix.RespError
	return errors.As(err, &e) && e.StatusCode/100 == 4 && e.StatusCode != http.StatusTooManyRequests
}
