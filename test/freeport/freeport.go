// Package freeport finds ports for tests that let go of one and take it again, or hand it to a program.
//
// They lie below those that the system gives to outgoing connections: one of these would else sit on the port now and
// then just when it is wanted again.
package freeport

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"
	"testing"
)

const (
	first = 20_000
	count = 12_000
)

// Listen listens at a port that nobody else takes while it is closed and opened again, until the test ends: other tests
// see it by the same port of a second address of this machine, where nobody listens but to say so.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(first + rand.N(count))
		taken, err := net.Listen("tcp", net.JoinHostPort("127.0.0.9", port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		l, lerr := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
		if err == nil {
			if lerr != nil {
				taken.Close()
				continue
			}
			t.Cleanup(func() { taken.Close() })
		}
		if lerr == nil {
			return l
		}
	}
	t.Fatal("no port is free")
	return nil
}

// Address is one with such a port.
func Address(t testing.TB) string {
	t.Helper()
	l := Listen(t)
	defer l.Close()
	return l.Addr().String()
}

// Number is such a port for a program that listens at all addresses of the machine. Another test may take it once the
// program has ended.
func Number(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := first + rand.N(count)
		if l, err := net.Listen("tcp", ":"+strconv.Itoa(port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}
