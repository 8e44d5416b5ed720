package main

import (
	"fmt"
	"os"

	"github.com/carillon-chat/carillon/config"
	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/mail"
	"github.com/carillon-chat/carillon/homeserver/pages"
	"github.com/carillon-chat/carillon/homeserver/threepids"
)

// setContacts fills in how people register and are reached.
func setContacts(opts *homeserver.Options, cfg *config.Config) error {
	h := &cfg.Homeserver
	for _, f := range cfg.RegistrationFlows() {
		opts.Registration.Flows = append(opts.Registration.Flows, accounts.Flow(f))
	}
	p := &h.Registration.Policies
	for _, d := range []accounts.Policy{
		{ID: "terms_of_service", Name: pages.Text{ZH: "服务条款", EN: "Terms of Service"}, URL: pages.Text{ZH: p.TermsZH, EN: p.TermsEN}},
		{ID: "privacy_policy", Name: pages.Text{ZH: "隐私政策", EN: "Privacy Policy"}, URL: pages.Text{ZH: p.PrivacyZH, EN: p.PrivacyEN}},
	} {
		if d.URL.ZH+d.URL.EN != "" {
			d.Version = p.Version
			opts.Registration.Policies = append(opts.Registration.Policies, d)
		}
	}
	e, k := &h.Email, &h.Contacts
	opts.Contacts = homeserver.Contacts{
		Company: cfg.AppService.Company, Signature: pages.Text{ZH: e.SignatureZH, EN: e.SignatureEN}, Language: k.Language,
		Fixed: !k.Changes, Domains: k.EmailDomains, Prefixes: k.PhonePrefixes, NextHosts: k.NextLinkHosts,
		PerAddress: float64(k.PerAddress), PerClient: float64(k.PerClient),
		NoIdentity: !k.IdentityEnabled, IdentityServers: k.IdentityServers,
		Notify: e.Notify, NotifyAfter: e.NotifyAfter.Std(), NotifyEvery: e.NotifyEvery.Std(),
	}
	if e.Host != "" {
		opts.Contacts.Mail = mail.Options{
			Host: e.Host, Port: e.Port, Security: mail.Security(e.Security), User: e.User, Password: e.Password.Value(), From: e.From,
		}
		if e.CAFile != "" {
			var err error
			if opts.Contacts.Mail.ExtraCAs, err = os.ReadFile(e.CAFile); err != nil {
				return fmt.Errorf("reading homeserver.email.ca_file: %w", err)
			}
		}
	}
	if h.SMS.WebhookURL != "" {
		var err error
		if opts.Contacts.SMS, err = threepids.WebhookSMS(h.SMS.WebhookURL, h.SMS.WebhookSecret.Value()); err != nil {
			return fmt.Errorf("homeserver.sms: %w", err)
		}
	}
	return nil
}
