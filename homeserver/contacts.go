package homeserver

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/mail"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/threepids"
)

// Contacts says how people are reached by e-mail and telephone. The zero value reaches nobody.
type Contacts struct {
	Mail      mail.Options  // without a host: no e-mail
	SMS       threepids.SMS // nil: no telephone
	Company   string        // how messages call this server
	Signature pages.Text    // the small print below e-mails
	Language  string        // of messages to who names none: zh or en

	// The rest is as in threepids.Options.
	Fixed      bool
	Domains    []string
	Prefixes   []string
	NextHosts  []string
	PerAddress float64
	PerClient  float64

	Notify                   bool          // unread messages are told by e-mail to who wants that
	NotifyAfter, NotifyEvery time.Duration // as in push.Email

	NoIdentity      bool     // identity servers are not used
	IdentityServers []string // the only ones to use; empty: those that clients name
}

// sender is the way to the SMTP server, nil if there is none.
func (c Contacts) sender() (*mail.Sender, error) {
	if c.Mail.Host == "" {
		return nil, nil
	}
	return mail.New(c.Mail)
}

// notifier is how people are told of unread messages by e-mail, nil if they are not.
func (s *Server) notifier(sender *mail.Sender, own *serverkeys.Own, owns func(context.Context, matrix.UserID, string) (bool, error)) *push.Email {
	o := s.opts.Contacts
	if sender == nil || !o.Notify {
		return nil
	}
	// Links in e-mails stay good over restarts, so their key comes from the one that the server keeps anyway.
	key := sha256.Sum256(append([]byte("links in e-mails\x00"), own.Private().Seed()...))
	company := o.Company
	if company == "" {
		company = "Carillon"
	}
	return &push.Email{
		Send: sender.Send, Owns: owns, PublicURL: s.opts.PublicURL, Key: key[:], Company: company, Signature: o.Signature,
		After: o.NotifyAfter, Every: o.NotifyEvery,
	}
}

// contacts builds the keeper of addresses, and connects it with those who ask it.
func (s *Server) contacts(ctx context.Context, db *sqldb.DB, acc *accounts.Accounts, r *rooms.Rooms, sender *mail.Sender, removed func(context.Context, matrix.UserID, string, string) error) (*threepids.Threepids, error) {
	o := s.opts.Contacts
	opts := threepids.Options{
		Server: s.opts.ServerName, PublicURL: s.opts.PublicURL, Mail: sender, SMS: o.SMS, Company: o.Company, Signature: o.Signature,
		Language: o.Language, Fixed: o.Fixed, Domains: o.Domains, Prefixes: o.Prefixes, NextHosts: o.NextHosts,
		PerAddress: o.PerAddress, PerClient: o.PerClient, Removed: removed, Now: s.opts.Now,
	}
	if !o.NoIdentity {
		opts.Identity, opts.Trusted = s.client, fedclient.AllowList(o.IdentityServers)
	}
	t, err := threepids.New(ctx, db, acc, r, opts)
	if err != nil {
		return nil, err
	}
	if !o.NoIdentity {
		r.SetIdentity(t)
	}
	acc.OnDeactivate(func(ctx context.Context, u matrix.UserID, _ bool) error { return t.DeleteUser(ctx, u) })
	return t, nil
}
