// Package smpp brings texts to a carrier's SMSC by SMPP 3.4: one bound session at a time, in whose window several texts
// wait for their answers, and which is bound anew when it breaks.
//
// It owns no tables. Source: Short Message Peer to Peer Protocol Specification v3.4.
//
// Invariants: a delivery receipt is answered once it is recorded, so the carrier keeps it until then; neither number
// nor text nor password is logged.
package smpp

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/linxGnu/gosmpp/data"
	"github.com/linxGnu/gosmpp/pdu"
	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/bridges/sms"
	"github.com/carillon-chat/carillon/homeserver/gate"
)

// Options say where the SMSC is and what it asks for. Zero fields take the defaults in brackets.
type Options struct {
	Address    string // host:port
	TLS        bool
	ExtraCAs   []byte // PEM; certificates trusted besides the system's
	SystemID   string
	Password   string
	SystemType string

	// Source is the sender that people see: a number, a short code or a name, by its type (TON) and plan (NPI).
	Source    string
	SourceTON byte
	SourceNPI byte
	Service   string

	Window    int           // texts without an answer [10]
	PerSecond float64       // parts a second [no limit of ours]
	Timeout   time.Duration // of an answer [10 s]
	Enquire   time.Duration // how often an idle link is tried [30 s]
	// IDs says how the carrier writes the ID of a text in its receipts: "" as in its answer, "decimal" or "hex" where it
	// writes the answer's ID, which is in the other base, so.
	IDs string
}

// Client is a way to an SMSC. It implements sms.Provider.
type Client struct {
	o       Options
	roots   *x509.CertPool
	window  chan struct{}
	limiter *gate.Limiter[struct{}]
	ref     atomic.Uint32 // of texts in several parts
	events  sms.Events

	mu    sync.Mutex
	bound *session
	ready chan struct{} // closed when bound is set
}

// New checks the options.
func New(o Options) (*Client, error) {
	if _, _, err := net.SplitHostPort(o.Address); err != nil {
		return nil, fmt.Errorf("the address of the SMSC: %w", err)
	}
	switch {
	case len(o.SystemID) == 0 || len(o.SystemID) > 15:
		return nil, errors.New("the system ID has 1 to 15 characters")
	case len(o.Password) > 8:
		return nil, errors.New("SMPP has passwords of at most 8 characters")
	case len(o.SystemType) > 12:
		return nil, errors.New("the system type has at most 12 characters")
	case len(o.Source) > 20:
		return nil, errors.New("the source address has at most 20 characters")
	case o.IDs != "" && o.IDs != "decimal" && o.IDs != "hex":
		return nil, errors.New(`receipt IDs are "decimal", "hex" or as they are`)
	}
	o.Window, o.Timeout, o.Enquire = cmp.Or(o.Window, 10), cmp.Or(o.Timeout, 10*time.Second), cmp.Or(o.Enquire, 30*time.Second)
	c := &Client{o: o, window: make(chan struct{}, o.Window), ready: make(chan struct{})}
	c.ref.Store(uint32(time.Now().UnixNano())) // so that two runs of the program rarely use the same
	if o.PerSecond > 0 {
		c.limiter = gate.NewLimiter[struct{}](o.PerSecond, max(int(o.PerSecond), 1), 1, time.Now)
	}
	if o.TLS {
		var err error
		if c.roots, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("the system's certificates: %w", err)
		}
		if len(o.ExtraCAs) > 0 && !c.roots.AppendCertsFromPEM(o.ExtraCAs) {
			return nil, errors.New("the certificates for the SMSC are no PEM")
		}
	}
	return c, nil
}

// Capacity is the window.
func (c *Client) Capacity() int { return c.o.Window }

// Run binds, and binds anew when the session breaks, until ctx ends.
func (c *Client) Run(ctx context.Context, e sms.Events) error {
	c.events = e
	wait := gate.Backoff{Min: time.Second, Max: time.Minute}
	for ctx.Err() == nil {
		began := time.Now()
		err := c.serve(ctx)
		if ctx.Err() != nil {
			return nil
		}
		log.WithError(err).WithField("smsc", c.o.Address).Warn("the session with the SMSC ended")
		if time.Since(began) > time.Minute {
			wait.Reset()
		}
		if wait.Wait(ctx) != nil {
			return nil
		}
	}
	return nil
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	d := &net.Dialer{Timeout: c.o.Timeout}
	if !c.o.TLS {
		return d.DialContext(ctx, "tcp", c.o.Address)
	}
	return (&tls.Dialer{NetDialer: d, Config: &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS12}}).DialContext(ctx, "tcp", c.o.Address)
}

// serve is one session, from its bind to its end.
func (c *Client) serve(ctx context.Context) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return fmt.Errorf("dialling: %w", err)
	}
	s := newSession(c, conn)
	defer s.close(errors.New("the session has ended"))
	stop := context.AfterFunc(ctx, s.unbind)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- s.read(ctx) }()
	bind, _ := pdu.NewBindTransceiver().(*pdu.BindRequest)
	bind.SystemID, bind.Password, bind.SystemType = c.o.SystemID, c.o.Password, c.o.SystemType
	resp, err := s.ask(ctx, bind)
	if err != nil {
		return fmt.Errorf("binding: %w", err)
	}
	if status := resp.GetHeader().CommandStatus; status != data.ESME_ROK {
		return fmt.Errorf("binding: the SMSC refuses with status %#x", uint32(status))
	}
	c.set(s)
	defer c.set(nil)
	log.WithField("smsc", c.o.Address).Info("bound to the SMSC")
	t := time.NewTicker(c.o.Enquire)
	defer t.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-t.C:
			if _, err := s.ask(ctx, pdu.NewEnquireLink()); err != nil {
				return fmt.Errorf("trying the link: %w", err)
			}
		}
	}
}

// set tells whoever waits of a session, or of its end.
func (c *Client) set(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bound = s
	if s != nil {
		close(c.ready)
	} else {
		c.ready = make(chan struct{})
	}
}

// session waits for one that is bound.
func (c *Client) session(ctx context.Context) (*session, error) {
	for {
		c.mu.Lock()
		s, ready := c.bound, c.ready
		c.mu.Unlock()
		if s != nil {
			return s, nil
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the SMSC: %w", ctx.Err())
		}
	}
}

// Send sends a text in as many parts as it needs. The last part's receipt stands for the text.
func (c *Client) Send(ctx context.Context, m *sms.Message) (sms.Accepted, error) {
	parts, err := c.parts(m)
	if err != nil {
		return sms.Accepted{}, bridge.Permanent(err)
	}
	select {
	case c.window <- struct{}{}:
		defer func() { <-c.window }()
	case <-ctx.Done():
		return sms.Accepted{}, ctx.Err()
	}
	id := ""
	for i, p := range parts {
		if id, err = c.submit(ctx, p); err != nil {
			if i > 0 && !errors.Is(err, sms.ErrUnsure) { // a part has gone: all of it again would be twice
				return sms.Accepted{}, bridge.Permanent(fmt.Errorf("after %d of %d parts: %w", i, len(parts), err))
			}
			return sms.Accepted{}, err
		}
	}
	return sms.Accepted{ID: c.receiptID(id), Parts: len(parts)}, nil
}

// submit sends a part and gives the carrier's ID of it; where the carrier asks for time, within ctx, it waits.
func (c *Client) submit(ctx context.Context, p *pdu.SubmitSM) (string, error) {
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		if err := c.pace(ctx); err != nil {
			return "", err
		}
		s, err := c.session(ctx)
		if err != nil {
			return "", err
		}
		p.AssignSequenceNumber()
		resp, err := s.ask(ctx, p)
		if err != nil {
			return "", err
		}
		status := resp.GetHeader().CommandStatus
		ok, is := resp.(*pdu.SubmitSMResp)
		switch {
		case is && status == data.ESME_ROK:
			return ok.MessageID, nil
		case status == data.ESME_RTHROTTLED || status == data.ESME_RMSGQFUL:
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
				return "", bridge.RetryAfter(errors.New("the SMSC asks for time"), wait)
			}
		case status == data.ESME_RSYSERR:
			return "", errors.New("the SMSC has an error of its own")
		}
		return "", bridge.Permanent(fmt.Errorf("the SMSC refuses with status %#x", uint32(status)))
	}
}

// pace keeps to PerSecond.
func (c *Client) pace(ctx context.Context) error {
	for c.limiter != nil {
		ok, retry := c.limiter.Allow(struct{}{})
		if ok {
			break
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
