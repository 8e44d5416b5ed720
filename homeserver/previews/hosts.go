package previews

import (
	"net/url"
	"strings"

	"golang.org/x/net/idna"
)

// hosts are names of hosts, "*.example.org" for all below one.
type hosts struct {
	exact map[string]bool
	below []string // ".example.org"
}

func newHosts(names []string) hosts {
	h := hosts{exact: map[string]bool{}}
	for _, n := range names {
		if rest, ok := strings.CutPrefix(n, "*."); ok {
			h.below = append(h.below, "."+canonical(rest))
		} else {
			h.exact[canonical(n)] = true
		}
	}
	return h
}

func (h hosts) empty() bool { return len(h.exact) == 0 && len(h.below) == 0 }

func (h hosts) has(host string) bool {
	if h.exact[host] {
		return true
	}
	for _, end := range h.below {
		if strings.HasSuffix(host, end) {
			return true
		}
	}
	return false
}

// canonical is a host as it is looked up: one name has many spellings.
func canonical(host string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if a, err := idna.Lookup.ToASCII(host); err == nil {
		return a
	}
	return host
}

// permits says that a host may be visited.
func (p *Previews) permits(u *url.URL) bool {
	host := canonical(u.Hostname())
	return !p.deny.has(host) && (p.allow.empty() || p.allow.has(host))
}
