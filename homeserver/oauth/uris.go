package oauth

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// maxURI bounds an address of a client, in bytes.
const maxURI = 2000

// parseURI reads an absolute address of printable ASCII, nil when it is none.
func parseURI(s string) *url.URL {
	if s == "" || len(s) > maxURI {
		return nil
	}
	for i := range len(s) {
		if s[i] <= 0x20 || s[i] > 0x7e || s[i] == '\\' || s[i] == '"' || s[i] == '<' || s[i] == '>' {
			return nil
		}
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" {
		return nil
	}
	return u
}

// httpsURI reads an https address without user and password.
func httpsURI(s string) *url.URL {
	u := parseURI(s)
	if u == nil || u.Scheme != "https" || u.Opaque != "" || u.Hostname() == "" || u.User != nil {
		return nil
	}
	return u
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// below says whether an https address is on the host of the client's page or a subdomain of it.
func below(u, base *url.URL) bool {
	host, of := strings.ToLower(u.Hostname()), strings.ToLower(base.Hostname())
	if host == of {
		return true
	}
	if _, err := netip.ParseAddr(of); err == nil {
		return false
	}
	return strings.HasSuffix(host, "."+of)
}

// redirectProblem says what is wrong with a redirect address of a client, "" for nothing.
// Spec: client-server-api#redirect-uri-validation
func redirectProblem(s string, base *url.URL, native bool) string {
	u := parseURI(s)
	switch {
	case u == nil:
		return "it is no address"
	case u.Fragment != "" || strings.Contains(s, "#"):
		return "it has a fragment"
	case u.Scheme == "https":
		if h := httpsURI(s); h == nil || !below(h, base) {
			return "it is not on the host of client_uri"
		}
		return ""
	case !native:
		return "it is not https"
	case u.Scheme == "http":
		if u.User != nil || u.Port() != "" || strings.HasSuffix(u.Host, ":") || !slices.Contains(loopbackHosts, strings.ToLower(u.Hostname())) {
			return "http is for localhost, 127.0.0.1 and [::1] without a port"
		}
		return ""
	}
	return schemeProblem(s, u, base)
}

var loopbackHosts = []string{"localhost", "127.0.0.1", "::1"}

// schemeProblem checks an address of a scheme of an application's own, as com.example.app:/callback.
func schemeProblem(s string, u, base *url.URL) string {
	labels := strings.Split(strings.ToLower(base.Hostname()), ".")
	slices.Reverse(labels)
	prefix := strings.Join(labels, ".")
	rest := s[len(u.Scheme)+1:]
	switch {
	case u.Host != "" || u.User != nil || strings.HasPrefix(rest, "//"):
		return "a scheme of its own has no host"
	case !strings.Contains(prefix, ".") || u.Scheme != prefix && !strings.HasPrefix(u.Scheme, prefix+"."):
		return "its scheme does not begin with the host of client_uri, written backwards"
	}
	return ""
}

// sameRedirect compares an address with a registered one. Of an http address on loopback the port is free.
func sameRedirect(registered, given string) bool {
	if registered == given {
		return true
	}
	r, g := parseURI(registered), parseURI(given)
	if r == nil || g == nil || r.Scheme != "http" || g.Scheme != "http" || r.Port() != "" || g.Port() == "" || g.User != nil {
		return false
	}
	if !strings.HasSuffix(g.Host, ":"+g.Port()) {
		return false
	}
	g.Host = strings.TrimSuffix(g.Host, ":"+g.Port())
	return g.String() == r.String() && !strings.Contains(given, "#")
}

// withParams adds parameters to an address: to its query, or as its fragment.
func withParams(address string, add url.Values, fragment bool) string {
	if fragment {
		base, _, _ := strings.Cut(address, "#")
		return base + "#" + add.Encode()
	}
	sep := "?"
	if base, query, has := strings.Cut(address, "?"); has {
		if sep = "&"; query == "" {
			address, sep = base, "?"
		}
	}
	return address + sep + add.Encode()
}
