// Package mailtest is a real SMTP server for tests, which keeps what it is given.
package mailtest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	netmail "net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/carillon-chat/carillon/homeserver/mail"
)

// Server is an SMTP server.
type Server struct {
	Addr string

	mu     sync.Mutex
	mails  []Mail
	refuse error
	user   string
	pass   string
}

// Mail is a message that has arrived.
type Mail struct {
	From, To string
	Header   netmail.Header
	Subject  string
	Text     string
	HTML     string
	TLS      bool
	User     string // who had logged in
}

// Options of a server.
type Options struct {
	TLS            *tls.Config // nil: none
	Implicit       bool        // TLS from the first byte
	User, Password string      // a log-in that is needed
}

// New starts a server that lives as long as the test.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Addr: l.Addr().String(), user: o.User, pass: o.Password}
	srv := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &session{s: s, c: c}, nil }))
	srv.Domain, srv.TLSConfig, srv.AllowInsecureAuth = "mail.test", o.TLS, true
	srv.ReadTimeout, srv.WriteTimeout = 10*time.Second, 10*time.Second
	srv.ErrorLog = quiet{}
	if o.Implicit {
		l = tls.NewListener(l, o.TLS)
	}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	return s
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

// Options are those of a sender to this server, without TLS.
func (s *Server) Options() mail.Options {
	host, port, _ := net.SplitHostPort(s.Addr)
	n := 0
	for _, c := range port {
		n = 10*n + int(c-'0')
	}
	return mail.Options{Host: host, Port: n, Security: mail.Plain, From: "Carillon 公司 <noreply@a.example>", Timeout: 5 * time.Second}
}

// Refuse makes the server answer with an error from now on; nil ends that.
func (s *Server) Refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// All are the messages to an address, "" for any, the oldest first.
func (s *Server) All(to string) []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Mail
	for _, m := range s.mails {
		if to == "" || m.To == to {
			list = append(list, m)
		}
	}
	return list
}

// Wait waits until n messages to an address have arrived and gives the last of them.
func (s *Server) Wait(t testing.TB, to string, n int) Mail {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if list := s.All(to); len(list) >= n {
			return list[n-1]
		}
		if time.Now().After(end) {
			t.Fatalf("%d messages to %s, want %d", len(s.All(to)), to, n)
		}
	}
}

type session struct {
	s        *Server
	c        *smtp.Conn
	from, to string
	user     string
}

func (x *session) AuthMechanisms() []string {
	if x.s.user == "" {
		return nil
	}
	return []string{sasl.Plain}
}

func (x *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, pass string) error {
		if user != x.s.user || pass != x.s.pass {
			return smtp.ErrAuthFailed
		}
		x.user = user
		return nil
	}), nil
}

func (x *session) Mail(from string, _ *smtp.MailOptions) error {
	if x.s.user != "" && x.user == "" {
		return smtp.ErrAuthRequired
	}
	x.from = from
	return nil
}

func (x *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.to = to
	return x.s.refuse
}

func (x *session) Reset()        { x.from, x.to = "", "" }
func (x *session) Logout() error { return nil }

func (x *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	m := Mail{From: x.from, To: x.to, User: x.user}
	_, m.TLS = x.c.TLSConnectionState()
	if err := m.parse(b); err != nil {
		return &smtp.SMTPError{Code: 554, Message: err.Error()}
	}
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.s.mails = append(x.s.mails, m)
	return nil
}

func (m *Mail) parse(b []byte) error {
	msg, err := netmail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		return err
	}
	m.Header = msg.Header
	if m.Subject, err = new(mime.WordDecoder).DecodeHeader(msg.Header.Get("Subject")); err != nil {
		return err
	}
	kind, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	if kind == "text/plain" {
		text, err := io.ReadAll(decode(msg.Header.Get("Content-Transfer-Encoding"), msg.Body))
		m.Text = string(text)
		return err
	}
	parts := multipart.NewReader(msg.Body, params["boundary"])
	for {
		p, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		text, err := io.ReadAll(decode(p.Header.Get("Content-Transfer-Encoding"), p))
		if err != nil {
			return err
		}
		if strings.HasPrefix(p.Header.Get("Content-Type"), "text/html") {
			m.HTML = string(text)
		} else {
			m.Text = strings.ReplaceAll(string(text), "\r\n", "\n")
		}
	}
}

func decode(encoding string, r io.Reader) io.Reader {
	if strings.EqualFold(encoding, "quoted-printable") {
		return quotedprintable.NewReader(r)
	}
	return r
}
