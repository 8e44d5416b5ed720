package mail_test

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"

	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/mail"
	"github.com/carillon-chat/carillon/homeserver/mail/mailtest"
)

func letter() mail.Letter {
	return mail.Letter{
		Lang: "zh", Title: "确认邮箱 <b>", Small: []string{"由 Carillon 发送"},
		Parts: []mail.Part{
			{Text: "您好"},
			{Code: "123456"},
			{Text: "确认", Link: "https://a.example/x?a=1&b=2"},
			{Text: "房间", Lines: []mail.Line{{Who: "小明", What: "<script>"}}},
		},
	}
}

func TestSendsOverEachProtection(t *testing.T) {
	ca := httpapitest.NewAuthority(t)
	conf := &tls.Config{Certificates: []tls.Certificate{ca.Certificate("127.0.0.1")}, MinVersion: tls.VersionTLS12}
	for _, tc := range []struct {
		security mail.Security
		server   mailtest.Options
	}{
		{mail.Plain, mailtest.Options{}},
		{mail.Plain, mailtest.Options{User: "u", Password: "p"}}, // to this machine
		{mail.StartTLS, mailtest.Options{TLS: conf, User: "u", Password: "p"}},
		{mail.TLS, mailtest.Options{TLS: conf, Implicit: true, User: "u", Password: "p"}},
	} {
		srv := mailtest.New(t, tc.server)
		o := srv.Options()
		o.Security, o.ExtraCAs, o.User, o.Password = tc.security, ca.PEM, tc.server.User, tc.server.Password
		s, err := mail.New(o)
		if err != nil {
			t.Fatal(err)
		}
		m, err := letter().To("alice@b.example", "您好\r\nBcc: eve@evil.example")
		if err != nil {
			t.Fatal(err)
		}
		m.Headers = map[string]string{"List-Unsubscribe": "<https://a.example/u>\r\nX-Evil: 1"}
		if err := s.Send(t.Context(), m); err != nil {
			t.Fatalf("%s: %v", tc.security, err)
		}
		got := srv.Wait(t, "alice@b.example", 1)
		if got.From != "noreply@a.example" || got.TLS != (tc.security != mail.Plain) || got.User != tc.server.User {
			t.Errorf("%s: %+v", tc.security, got)
		}
		if got.Header.Get("Bcc") != "" || got.Header.Get("X-Evil") != "" || !strings.HasPrefix(got.Subject, "您好") {
			t.Errorf("headers: %v", got.Header)
		}
		for _, want := range []string{"您好\n", "    123456\n", "确认:\nhttps://a.example/x?a=1&b=2\n", "小明: <script>\n", "-- \n"} {
			if !strings.Contains(got.Text, want) {
				t.Errorf("%q is not in the text:\n%s", want, got.Text)
			}
		}
		if !strings.Contains(got.HTML, "&lt;script&gt;") || !strings.Contains(got.HTML, "a=1&amp;b=2") || strings.Contains(got.HTML, "<script>") {
			t.Error(got.HTML)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, o := range []mail.Options{
		{},
		{Host: "mail.example"},
		{Host: "mail.example", From: "nobody"},
		{Host: "mail.example", From: "a@b.example", Security: "maybe"},
		{Host: "mail.example", From: "a@b.example", ExtraCAs: []byte("x")},
		{Host: "mail.example", From: "a@b.example", Security: mail.Plain, User: "u", Password: "p"},
	} {
		if _, err := mail.New(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
	srv := mailtest.New(t, mailtest.Options{User: "u", Password: "p"})
	o := srv.Options()
	o.User, o.Password = "u", "wrong"
	s, err := mail.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), mail.Message{To: "a@b.example", Text: "x"}); err == nil {
		t.Error("a wrong password sends")
	}

	srv = mailtest.New(t, mailtest.Options{})
	// Its certificate is nobody's, and it has no TLS: nothing is sent without.
	o = srv.Options()
	o.Security = mail.StartTLS
	if s, err = mail.New(o); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), mail.Message{To: "a@b.example", Text: "x"}); err == nil || len(srv.All("")) != 0 {
		t.Error("sent without TLS")
	}

	if s, err = mail.New(srv.Options()); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), mail.Message{To: "a@b.example\r\nBcc: c@d.example", Text: "x"}); err == nil || strings.Contains(err.Error(), "b.example") {
		t.Error(err)
	}
	for code, temporary := range map[int]bool{451: true, 550: false} {
		srv.Refuse(&smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, 1, 1}, Message: "no a@b.example here"})
		err := s.Send(t.Context(), mail.Message{To: "a@b.example", Text: "x"})
		var e *mail.Error
		if !errors.As(err, &e) || e.Temporary() != temporary || strings.Contains(err.Error(), "@") {
			t.Errorf("%d: %v", code, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Send(ctx, mail.Message{To: "a@b.example", Text: "x"}); err == nil {
		t.Error("sent though nobody waits")
	}
}
