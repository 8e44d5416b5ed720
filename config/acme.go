package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// CertificateNames are the names that automatic certificates are for.
func (c *Config) CertificateNames() []string {
	if len(c.ACME.Names) > 0 {
		return c.ACME.Names
	}
	var names []string
	add := func(host string) {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if host != "" && !slices.Contains(names, host) {
			names = append(names, host)
		}
	}
	if u, err := url.Parse(c.PublicBaseURL); err == nil {
		add(u.Host)
	}
	add(c.Homeserver.Federation.WellKnown)
	add(c.ServerName)
	return names
}

func (c *Config) checkACME(bad report) {
	a := &c.ACME
	if !a.Enabled {
		return
	}
	if !a.AcceptTerms {
		bad("acme.accept_terms", "certificates are only given to those who agree to the authority's terms", "read them at the authority and set acme.accept_terms: true")
	}
	if c.TLSCert != "" {
		bad("tls_cert", "acme.enabled gives the certificate of the listening address", "remove tls_cert and tls_key, or acme.enabled")
	}
	checkURL(bad, "acme.directory", a.Directory)
	if !strings.HasPrefix(a.Directory, "https://") {
		bad("acme.directory", "it must be an https address", "ask the authority for the address of its directory")
	}
	if a.CAFile != "" {
		checkExists(bad, "acme.ca_file", a.CAFile)
	}
	if a.HTTPListen != "" {
		checkListen(bad, "acme.http_listen", a.HTTPListen)
	}
	if (a.KeyID == "") != (a.Key == "") {
		bad("acme.key_id", "key_id and key belong together", "set both, as the authority has given them, or none")
	}
	for _, n := range c.CertificateNames() {
		if _, err := netip.ParseAddr(n); err == nil || !strings.Contains(n, ".") {
			bad("acme.names", fmt.Sprintf("there are no certificates for %q", n), "name hosts such as chat.example.org in acme.names")
		}
	}
}
