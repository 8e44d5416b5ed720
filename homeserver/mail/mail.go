// Package mail sends e-mails through the company's SMTP server.
//
// It owns no tables. RFC 5321, RFC 8314 (TLS), RFC 8058 (one-click unsubscription).
//
// Invariants: a certificate is always checked; a password is never sent over a connection without TLS, except to this
// machine itself; addresses and texts cannot smuggle headers in; a bounded number of messages is sent at a time, and
// each takes no longer than its time-out. Addresses and texts are never logged.
package mail

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/carillon-chat/carillon/homeserver/gate"
)

// Security says how a connection to the SMTP server is protected.
type Security string

// The kinds of protection.
const (
	StartTLS Security = "starttls" // usual on port 587
	TLS      Security = "tls"      // from the first byte, usual on port 465
	Plain    Security = "none"     // for a server on this machine or inside a protected network
)

const (
	defaultTimeout = 20 * time.Second
	atOnce         = 4 // messages under way; more wait
)

// Options of a Sender.
type Options struct {
	Host     string
	Port     int // 0: 587, 465 with TLS, 25 without protection
	Security Security
	User     string // empty: no log-in
	Password string
	From     string // "Name <address>" or an address
	ExtraCAs []byte // PEM certificates trusted besides the system's
	Hello    string // how this machine calls itself; empty: its host name
	Timeout  time.Duration
}

// Sender sends messages. It may be used concurrently.
type Sender struct {
	opts Options
	from *netmail.Address
	tls  *tls.Config
	sem  *gate.Semaphore
}

// Message is an e-mail to one person.
type Message struct {
	To      string // the bare address
	Subject string
	Text    string
	HTML    string            // empty: text alone
	Headers map[string]string // further headers, such as List-Unsubscribe
}

// New checks the options. Nothing is connected yet.
func New(o Options) (*Sender, error) {
	if o.Host == "" {
		return nil, errors.New("the SMTP server's host is missing")
	}
	from, err := netmail.ParseAddress(o.From)
	if err != nil {
		return nil, fmt.Errorf("the sender's address cannot be read: %w", err)
	}
	switch o.Security {
	case "":
		o.Security = StartTLS
	case StartTLS, TLS, Plain:
	default:
		return nil, fmt.Errorf("%q is no way to protect a connection: use starttls, tls or none", o.Security)
	}
	if o.Port == 0 {
		o.Port = map[Security]int{StartTLS: 587, TLS: 465, Plain: 25}[o.Security]
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	s := &Sender{opts: o, from: from, sem: gate.NewSemaphore(atOnce), tls: &tls.Config{ServerName: o.Host, MinVersion: tls.VersionTLS12}}
	if len(o.ExtraCAs) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(o.ExtraCAs) {
			return nil, errors.New("no certificate found in the extra certificate authorities")
		}
		s.tls.RootCAs = pool
	}
	_, err = s.client()
	return s, err
}

// client makes a connection's settings; each message has a connection of its own, as they are few.
func (s *Sender) client() (*gomail.Client, error) {
	o := s.opts
	opts := []gomail.Option{gomail.WithPort(o.Port), gomail.WithTimeout(o.Timeout), gomail.WithTLSConfig(s.tls)}
	switch o.Security {
	case TLS:
		opts = append(opts, gomail.WithSSL())
	case StartTLS:
		opts = append(opts, gomail.WithTLSPolicy(gomail.TLSMandatory))
	case Plain:
		opts = append(opts, gomail.WithTLSPolicy(gomail.NoTLS))
	}
	if o.Hello != "" {
		opts = append(opts, gomail.WithHELO(o.Hello))
	}
	if o.User != "" {
		auth := gomail.SMTPAuthAutoDiscover
		if o.Security == Plain {
			if !local(o.Host) {
				return nil, errors.New("a password is not sent over a connection without TLS")
			}
			auth = gomail.SMTPAuthPlainNoEnc
		}
		opts = append(opts, gomail.WithSMTPAuth(auth), gomail.WithUsername(o.User), gomail.WithPassword(o.Password))
	}
	c, err := gomail.NewClient(o.Host, opts...)
	if err != nil {
		return nil, fmt.Errorf("preparing SMTP: %w", err)
	}
	return c, nil
}

func local(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Send hands a message to the SMTP server and returns when that has taken it.
func (s *Sender) Send(ctx context.Context, m Message) error {
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	msg.FromMailAddress(s.from)
	if err := msg.To(m.To); err != nil {
		return errors.New("the recipient's address cannot be used") // the address itself goes into no log
	}
	msg.Subject(oneLine(m.Subject))
	msg.SetDate()
	msg.SetMessageID()
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	for k, v := range m.Headers {
		msg.SetGenHeader(gomail.Header(oneLine(k)), oneLine(v))
	}
	msg.SetBodyString(gomail.TypeTextPlain, m.Text)
	if m.HTML != "" {
		msg.AddAlternativeString(gomail.TypeTextHTML, m.HTML)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*s.opts.Timeout)
	defer cancel()
	return s.sem.Do(ctx, func() error {
		c, err := s.client()
		if err != nil {
			return err
		}
		if err := c.DialAndSendWithContext(ctx, msg); err != nil {
			return &Error{temporary: temporary(err), host: s.opts.Host, cause: err}
		}
		return nil
	})
}

// Error is a message that was not sent. Its text has no address in it.
type Error struct {
	temporary bool
	host      string
	cause     error
}

// Error says what kind of failure it was.
func (e *Error) Error() string {
	var send *gomail.SendError
	if errors.As(e.cause, &send) {
		return fmt.Sprintf("the SMTP server %s did not take a message: code %d %s", e.host, send.ErrorCode(), send.EnhancedStatusCode())
	}
	return fmt.Sprintf("the SMTP server %s could not be used: %s", e.host, e.cause)
}

// Temporary says that it is worth trying again.
func (e *Error) Temporary() bool { return e.temporary }

// temporary is true of all but what the server has refused for good.
func temporary(err error) bool {
	var send *gomail.SendError
	return !errors.As(err, &send) || send.IsTemp() || send.ErrorCode() == 0
}

// oneLine keeps a header from becoming two.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
