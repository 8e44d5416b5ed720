package sso

import (
	"net/url"
	"slices"
	"strings"
)

// neverClients are schemes that do something else than opening a client.
var neverClients = []string{"javascript", "data", "vbscript", "file", "blob", "about", "view-source", "filesystem", "intent", "content", "chrome", "ws", "wss", "mailto"}

// ClientAddress says whether an address can be that of a client which wants a log-in token.
func ClientAddress(s string) bool {
	if s == "" || len(s) > 2000 {
		return false
	}
	for i := range len(s) {
		if s[i] <= 0x20 || s[i] == 0x7f || s[i] == '\\' {
			return false
		}
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.User != nil || slices.Contains(neverClients, u.Scheme) {
		return false
	}
	return u.Scheme != "http" && u.Scheme != "https" || u.Hostname() != ""
}

// shownAddress is the part of a client's address by which people can judge it.
func shownAddress(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return s
	}
	if u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") {
		return u.Host
	}
	return u.Scheme + ":"
}

// trusted says whether a client gets its token without the person being asked: pages of this server, and those that
// the administrator names.
func (s *SSO) trusted(target string) bool {
	t, err := url.Parse(target)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(append([]string{s.opts.BaseURL}, s.opts.TrustedClients...), func(rule string) bool {
		r, err := url.Parse(rule)
		if err != nil || r.Scheme == "" || r.Scheme != t.Scheme || !strings.EqualFold(r.Host, t.Host) || strings.Contains(t.Path, "..") {
			return false
		}
		if r.Host == "" {
			return r.Scheme != "http" && r.Scheme != "https"
		}
		dir := strings.TrimSuffix(r.Path, "/")
		return dir == "" || t.Path == dir || strings.HasPrefix(t.Path, dir+"/")
	})
}

// addToken adds the parameter loginToken to an address, and takes out what it had of that name.
func addToken(target, token string) string {
	rest, fragment, hasFragment := strings.Cut(target, "#")
	base, query, _ := strings.Cut(rest, "?")
	var kept []string
	for _, pair := range strings.Split(query, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if n, err := url.QueryUnescape(name); pair != "" && (err != nil || n != "loginToken") {
			kept = append(kept, pair)
		}
	}
	to := base + "?" + strings.Join(append(kept, "loginToken="+url.QueryEscape(token)), "&")
	if hasFragment {
		to += "#" + fragment
	}
	return to
}
