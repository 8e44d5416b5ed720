// Package ldapsync reads the company from an LDAP directory, such as Active Directory or OpenLDAP.
//
// What it finds is written as the sheets of a company file and read as such, so every check of a file holds for a
// directory too, and a column that the directory has no attribute for keeps its stored values: those belong to whoever
// else writes them. Units are organisational units of the tree of names, or groups, also nested ones; their IDs come
// from entryUUID or objectGUID, which stay when an entry is renamed or moved.
//
// It owns no tables and changes nothing in the directory. Source: RFC 4511, RFC 2696 (paged results), RFC 4530
// (entryUUID); for Active Directory MS-ADTS 3.1.1 (objectGUID, userAccountControl, highestCommittedUSN).
//
// Invariants: a read that breaks gives nothing, never half a company; the password is sent over TLS alone, unless the
// directory is on this machine or the operator says otherwise; no personal data is logged.
package ldapsync

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/go-ldap/ldap/v3"
	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/gate"
)

// Options say where the directory is and what it calls things. Zero fields take the defaults in brackets.
type Options struct {
	URL      string // ldaps://host[:636], or ldap://host[:389] with StartTLS
	StartTLS bool
	Plain    bool   // ldap:// without TLS, other than on this machine
	ExtraCAs []byte // PEM; certificates trusted besides the system's
	BindDN   string
	Password string

	Units  Units
	People People

	Poll    time.Duration // how often the directory is asked whether it has changed [3 s]
	Every   time.Duration // how often it is read in any case [10 min]
	Page    int           // entries of one answer [500]
	Most    int           // entries of one search; more are an error [200,000]
	Timeout time.Duration // of one request [30 s]
}

// Units say which entries are units. An empty attribute is one that the directory does not have.
type Units struct {
	Base   string // nothing: the directory has no units, people alone
	Filter string // [(objectClass=organizationalUnit)]
	Groups bool   // they are groups: whoever is a member has a post, a group that is a member is the unit below
	ID     string // [entryUUID or objectGUID]
	Name   string // [ou; cn for groups]
	Code   string
	Order  string
	Site   string
	// Manager holds names of entries of people.
	Manager string
}

// People say which entries are people. An empty attribute is one that the directory does not have.
type People struct {
	Base   string
	Filter string // [(objectClass=person)]
	ID     string // [employeeNumber]
	Name   string // [displayName]; cn where an entry has none
	Mobile string
	Email  string
	Title  string
	// Manager holds the name of the line manager's entry.
	Manager string
	// Unit holds the IDs or codes of units, the main one first; nothing: the unit is the entry's place, or its groups.
	Unit  string
	Hired string
	Left  string
}

// Source is a directory.
type Source struct {
	o     Options
	host  string
	roots *x509.CertPool
}

// New checks the options.
func New(o Options) (*Source, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Hostname() == "" || u.Scheme != "ldap" && u.Scheme != "ldaps" {
		return nil, errors.New("the address of the directory is none: write ldaps://host")
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "ldap" && !o.StartTLS && !o.Plain && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, errors.New("the directory's answers and the password would go unprotected: use ldaps:// or StartTLS")
	}
	if o.People.Base == "" {
		return nil, errors.New("people's base is missing, such as ou=people,dc=example,dc=org")
	}
	name := "ou"
	if o.Units.Groups {
		name = "cn"
	}
	o.Units.Filter, o.Units.Name = cmp.Or(o.Units.Filter, "(objectClass=organizationalUnit)"), cmp.Or(o.Units.Name, name)
	p := &o.People
	p.Filter, p.ID, p.Name = cmp.Or(p.Filter, "(objectClass=person)"), cmp.Or(p.ID, "employeeNumber"), cmp.Or(p.Name, "displayName")
	o.Poll, o.Every, o.Timeout = cmp.Or(o.Poll, 3*time.Second), cmp.Or(o.Every, 10*time.Minute), cmp.Or(o.Timeout, 30*time.Second)
	o.Page, o.Most = cmp.Or(o.Page, 500), cmp.Or(o.Most, 200_000)
	for _, f := range []string{o.Units.Filter, p.Filter} {
		if _, err := ldap.CompileFilter(f); err != nil {
			return nil, fmt.Errorf("the filter %s: %w", f, err)
		}
	}
	for _, dn := range []string{o.Units.Base, p.Base, o.BindDN} {
		if _, err := ldap.ParseDN(dn); err != nil && dn != o.BindDN { // Active Directory lets people bind by other names
			return nil, fmt.Errorf("%s is no name of an entry: %w", dn, err)
		}
	}
	s := &Source{o: o, host: u.Hostname()}
	if s.roots, err = x509.SystemCertPool(); err != nil {
		return nil, fmt.Errorf("the system's certificates: %w", err)
	}
	if len(o.ExtraCAs) > 0 && !s.roots.AppendCertsFromPEM(o.ExtraCAs) {
		return nil, errors.New("the certificates for the directory are no PEM")
	}
	return s, nil
}

// dial connects and binds. The caller closes the connection.
func (s *Source) dial(ctx context.Context) (*ldap.Conn, error) {
	conf := &tls.Config{RootCAs: s.roots, ServerName: s.host, MinVersion: tls.VersionTLS12}
	d := &net.Dialer{Timeout: s.o.Timeout}
	c, err := ldap.DialURL(s.o.URL, ldap.DialWithTLSConfig(conf), ldap.DialWithDialer(d))
	if err != nil {
		return nil, fmt.Errorf("reaching the directory: %w", err)
	}
	c.SetTimeout(s.o.Timeout)
	context.AfterFunc(ctx, func() { _ = c.Close() }) // a request under way ends
	if s.o.StartTLS {
		if err := c.StartTLS(conf); err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("starting TLS with the directory: %w", err)
		}
	}
	if s.o.BindDN != "" {
		if err := c.Bind(s.o.BindDN, s.o.Password); err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("logging in to the directory: %w", err)
		}
	}
	return c, nil
}

// Watch calls read at the start, whenever the directory says that it has changed, and Every, until ctx ends. Where read
// fails it is called again, ever more slowly.
func (s *Source) Watch(ctx context.Context, read func(context.Context) error) {
	retry := gate.Backoff{Min: s.o.Poll, Max: s.o.Every}
	for ctx.Err() == nil {
		mark := s.mark(ctx)
		if err := read(ctx); err != nil {
			if ctx.Err() == nil {
				log.WithError(err).Warn("the company could not be taken from the directory; it is tried again")
			}
			if retry.Wait(ctx) != nil {
				return
			}
			continue
		}
		retry.Reset()
		s.await(ctx, mark)
	}
}

// await waits until the directory has another mark, or for Every.
func (s *Source) await(ctx context.Context, mark string) {
	end := time.NewTimer(s.o.Every)
	defer end.Stop()
	poll := time.NewTicker(s.o.Poll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			return
		case <-poll.C:
			if mark == "" { // it does not say when it changes
				continue
			}
			if now := s.mark(ctx); now != "" && now != mark {
				return
			}
		}
	}
}

// mark is what the directory changes with every write: highestCommittedUSN of Active Directory, contextCSN of OpenLDAP
// with its overlay syncprov; "" where it has none or cannot be reached.
func (s *Source) mark(ctx context.Context) string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := s.dial(ctx)
	if err != nil {
		return ""
	}
	one := func(dn string, attrs ...string) string {
		r, err := c.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, int(s.o.Timeout.Seconds()), false, "(objectClass=*)", attrs, nil))
		if err != nil || len(r.Entries) != 1 {
			return ""
		}
		out := ""
		for _, a := range attrs {
			for _, v := range r.Entries[0].GetAttributeValues(a) {
				out += v + "\n"
			}
		}
		return out
	}
	if usn := one("", "highestCommittedUSN"); usn != "" {
		return usn
	}
	suffix := one("", "namingContexts")
	out := ""
	for _, dn := range splitLines(suffix) {
		out += one(dn, "contextCSN")
	}
	return out
}
