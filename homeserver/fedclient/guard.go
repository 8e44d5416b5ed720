package fedclient

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// Guard decides to which addresses requests may go, so that a server name given by a stranger cannot be used to
// reach into the own network. It is checked on the address that is dialled, after name resolution.
type Guard struct {
	// Allow are networks that are reached although they are private or local.
	Allow []netip.Prefix
	// Deny are networks that are not reached although they are public. It wins over Allow.
	Deny []netip.Prefix
	// Only must permit a place as well, if it is set.
	Only func(netip.AddrPort) bool
}

// closed are the ranges that no public server lives in.
// Written out where the standard library has no word for them.
var closed = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), // IPv4 addresses in an old form
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), // tunnels (Teredo) and the like
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("3fff::/20"),
	netip.MustParsePrefix("5f00::/16"),
	netip.MustParsePrefix("fec0::/10"),
}

// Permits reports whether an address may be dialled.
func (g Guard) Permits(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	for _, p := range g.Deny {
		if p.Contains(ip) {
			return false
		}
	}
	for _, p := range g.Allow {
		if p.Contains(ip) {
			return true
		}
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range closed {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// Dialer is a net.Dialer that refuses addresses which the guard does not permit.
func (g Guard) Dialer() *net.Dialer {
	return &net.Dialer{
		Timeout: dialTimeout,
		ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil || (network != "tcp4" && network != "tcp6") {
				return fmt.Errorf("%s %s is not an address to dial", network, address)
			}
			if !g.Permits(ap.Addr()) || g.Only != nil && !g.Only(ap) {
				return fmt.Errorf("%s is in a network that requests are not sent to", ap.Addr())
			}
			return nil
		},
	}
}

// Everywhere permits every address: for tests and closed networks.
func Everywhere() Guard {
	return Guard{Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}
}
