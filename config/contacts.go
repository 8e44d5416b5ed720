package config

import (
	"fmt"
	"net/mail"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Email says how e-mails are sent.
type Email struct {
	Host        string   `yaml:"host" doc:"The SMTP server. Empty: no e-mail is sent, so people can neither prove an e-mail address nor reset a lost password by one. Needs public_base_url."`
	Port        int      `yaml:"port" doc:"Its port. 0: 587 for starttls, 465 for tls, 25 for none."`
	Security    string   `yaml:"security" default:"starttls" doc:"How the connection is protected: starttls, tls (from the first byte) or none (a server on this machine or inside a protected network)."`
	CAFile      string   `yaml:"ca_file" doc:"PEM certificates of authorities that are trusted besides the system's, for the company's own SMTP server."`
	User        string   `yaml:"user" doc:"User name for the SMTP server. Empty: no log-in."`
	Password    Secret   `yaml:"password" doc:"Password for the SMTP server."`
	From        string   `yaml:"from" doc:"Sender of the e-mails, such as Example Ltd <noreply@example.org>. Needed with host."`
	SignatureZH string   `yaml:"signature_zh" doc:"Small print below e-mails in Chinese, such as whom to ask."`
	SignatureEN string   `yaml:"signature_en" doc:"Small print below e-mails in English."`
	Notify      bool     `yaml:"notifications" default:"true" doc:"People may have unread messages told by e-mail to an address of their account."`
	NotifyAfter Duration `yaml:"notify_after" default:"10m" doc:"How long a message stays unread before it is told by e-mail."`
	NotifyEvery Duration `yaml:"notify_every" default:"1h" doc:"The shortest time between two such e-mails to one person."`
}

// SMS says how texts to telephones are sent.
type SMS struct {
	WebhookURL    string `yaml:"webhook_url" doc:"A program of yours that sends texts: it gets POST requests with {\"to\": \"+8613800138000\", \"text\": \"...\"}. Empty: no texts are sent, so people cannot prove a telephone number. Needs public_base_url."`
	WebhookSecret Secret `yaml:"webhook_secret" doc:"Sent with each request as Authorization: Bearer. Needed with webhook_url."`
}

// Contacts bounds the addresses of accounts.
type Contacts struct {
	Changes         bool     `yaml:"changes" default:"true" doc:"People may add and remove e-mail addresses and telephone numbers of their account themselves. Off where the company's own directory has them."`
	EmailDomains    []string `yaml:"email_domains" doc:"The only domains of new e-mail addresses; *.example.org covers all below it. Empty: every domain."`
	PhonePrefixes   []string `yaml:"phone_prefixes" doc:"The only beginnings of new telephone numbers, such as +86. Empty: every country, at your cost."`
	NextLinkHosts   []string `yaml:"next_link_hosts" doc:"Hosts, besides that of public_base_url, to whose pages people go at once after they have proven an address. To others they are shown a link."`
	PerAddress      int      `yaml:"messages_per_address" default:"6" doc:"Messages with a code that may go to one address in an hour."`
	PerClient       int      `yaml:"messages_per_client" default:"60" doc:"Messages with a code that one client's network address may cause in an hour."`
	Language        string   `yaml:"language" default:"zh" doc:"Language of pages and messages for people whose client names none: zh or en."`
	IdentityEnabled bool     `yaml:"identity_servers_enabled" default:"true" doc:"Use the identity servers that clients name, to publish addresses and to invite people by them."`
	IdentityServers []string `yaml:"identity_servers" doc:"The only identity servers to use. Empty: every one that a client names."`
}

// Policies are the documents that people accept when they register.
type Policies struct {
	Version   string `yaml:"version" default:"1" doc:"Version of the documents; it is kept with the account of who accepted them."`
	TermsZH   string `yaml:"terms_zh" doc:"Address of the terms of service in Chinese."`
	TermsEN   string `yaml:"terms_en" doc:"Address of the terms of service in English."`
	PrivacyZH string `yaml:"privacy_zh" doc:"Address of the privacy policy in Chinese."`
	PrivacyEN string `yaml:"privacy_en" doc:"Address of the privacy policy in English."`
}

// flowWords are the short names of stages of a registration.
var flowWords = map[string]string{
	"token": "m.login.registration_token", "email": "m.login.email.identity", "phone": "m.login.msisdn", "terms": "m.login.terms", "nothing": "m.login.dummy",
}

// RegistrationFlows are the stages of homeserver.registration.flows.
func (c *Config) RegistrationFlows() [][]string {
	var flows [][]string
	for _, f := range c.Homeserver.Registration.Flows {
		var stages []string
		for _, w := range strings.Fields(f) {
			stages = append(stages, flowWords[w])
		}
		flows = append(flows, stages)
	}
	return flows
}

func (c *Config) checkContacts(bad report) {
	h := &c.Homeserver
	h.Email.check(bad)
	h.Registration.checkFlows(bad, h)
	if (h.Email.Host != "" || h.SMS.WebhookURL != "") && c.PublicBaseURL == "" {
		bad("public_base_url", "it is missing, as homeserver.email or homeserver.sms is set", "write the address that clients use: links in messages begin with it")
	}
	checkURL(bad, "homeserver.sms.webhook_url", h.SMS.WebhookURL)
	if (h.SMS.WebhookURL == "") != (h.SMS.WebhookSecret == "") {
		bad("homeserver.sms", "webhook_url and webhook_secret go together", "set both or none")
	}
	k := &h.Contacts
	checkRange(bad, "homeserver.contacts.messages_per_address", int64(k.PerAddress), 1, 1000, "messages; 6 is usual")
	checkRange(bad, "homeserver.contacts.messages_per_client", int64(k.PerClient), 1, 100_000, "messages; 60 is usual")
	checkWord(bad, "homeserver.contacts.language", k.Language, "zh", "en")
	for _, p := range k.PhonePrefixes {
		if !strings.HasPrefix(p, "+") || strings.Trim(p[1:], "0123456789") != "" {
			bad("homeserver.contacts.phone_prefixes", fmt.Sprintf("%q is not the beginning of a number", p), `write it such as "+86"`)
		}
	}
	for _, s := range k.IdentityServers {
		if !serverName.MatchString(strings.TrimPrefix(s, "*.")) {
			bad("homeserver.contacts.identity_servers", fmt.Sprintf("%q is not a server name", s), "write names such as id.example.org")
		}
	}
}

func (e *Email) check(bad report) {
	checkWord(bad, "homeserver.email.security", e.Security, "starttls", "tls", "none")
	checkRange(bad, "homeserver.email.port", int64(e.Port), 0, 65535, "or 0 for the usual one")
	if e.CAFile != "" {
		checkExists(bad, "homeserver.email.ca_file", e.CAFile)
	}
	if e.Host != "" {
		if _, err := mail.ParseAddress(e.From); err != nil {
			bad("homeserver.email.from", fmt.Sprintf("%q is not a sender", e.From), "write it such as Example Ltd <noreply@example.org>")
		}
	}
	if e.User != "" && e.Password == "" {
		bad("homeserver.email.password", "it is missing, as user is set", "write file:PATH or env:NAME")
	}
	if e.NotifyAfter.Std() < time.Minute || e.NotifyEvery.Std() < time.Minute {
		bad("homeserver.email", "notify_after and notify_every must be a minute at least", "write them such as 10m and 1h")
	}
}

func (r *Registration) checkFlows(bad report, h *Homeserver) {
	const field = "homeserver.registration.flows"
	p := &r.Policies
	for name, u := range map[string]string{"terms_zh": p.TermsZH, "terms_en": p.TermsEN, "privacy_zh": p.PrivacyZH, "privacy_en": p.PrivacyEN} {
		if u == "" {
			continue
		}
		if a, err := url.Parse(u); err != nil || a.Host == "" || a.Scheme != "https" && a.Scheme != "http" {
			bad("homeserver.registration.policies."+name, fmt.Sprintf("%q is not an address", u), "write it such as https://example.org/terms")
		}
	}
	for _, f := range r.Flows {
		words := strings.Fields(f)
		for i, w := range words {
			if flowWords[w] == "" || slices.Contains(words[:i], w) {
				bad(field, fmt.Sprintf("%q cannot be part of a flow", w), "write each of token, email, phone, terms and nothing at most once, with spaces between them")
			}
		}
		switch {
		case len(words) == 0:
			bad(field, "a flow is empty", `write "nothing" for a registration that asks for nothing`)
		case slices.Contains(words, "email") && h.Email.Host == "":
			bad(field, "e-mail is not set up", "set homeserver.email, or take email away")
		case slices.Contains(words, "phone") && h.SMS.WebhookURL == "":
			bad(field, "texts are not set up", "set homeserver.sms, or take phone away")
		case slices.Contains(words, "terms") && p.TermsZH+p.TermsEN+p.PrivacyZH+p.PrivacyEN == "":
			bad(field, "there are no policies", "set homeserver.registration.policies, or take terms away")
		}
	}
	if len(r.Flows) > 0 && r.Open {
		bad(field, "open is set too", "remove one of them")
	}
}
