package sso_test

import (
	"net"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
)

func newAuthority(t testing.TB) *httpapitest.Authority { return httpapitest.NewAuthority(t) }

// listen takes an address that was just let go.
func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}
