// Package freeport finds ports for tests that let go of one and take it again, or hand it to a program.
//
// They lie below those that the system gives to outgoing connections: one of these would else sit on the port now and
// then just when it is wanted again.
package freeport

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

const (
	first = 20_000
	count = 12_000
)

// Listen listens at a port that nobody else takes while it is closed and opened again.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	for range 1000 {
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.N(count)))); err == nil {
			return l
		}
	}
	t.Fatal("no port is free")
	return nil
}

// Address is one with such a port.
func Address(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(Number(t)))
}

// Number is such a port.
func Number(t testing.TB) int {
	t.Helper()
	l := Listen(t)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
