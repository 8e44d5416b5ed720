package soak_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// A slow link passes slowChunk bytes each slowPause in either direction.
	slowChunk = 8 << 10
	slowPause = 150 * time.Millisecond
)

// way is the road of requests from one site to another.
type way struct{ from, to int }

// network is between the sites. The federation port of each is reached through a door, which knows who comes, so
// that single roads can be cut or slowed.
type network struct {
	sites []*site

	mu   sync.Mutex
	cut  map[way]int // how many harms want it cut
	slow map[way]int
	open map[net.Conn]way
}

func newNetwork() *network {
	return &network{cut: map[way]int{}, slow: map[way]int{}, open: map[net.Conn]way{}}
}

// door lets others reach a site at addr, which listens at to.
func (n *network) door(t *testing.T, st int, addr, to string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go n.pass(c, st, to)
			}
		}
	}()
}

// pass carries one connection.
func (n *network) pass(in net.Conn, st int, to string) {
	defer in.Close()
	w := way{n.who(in), st}
	n.mu.Lock()
	shut := n.cut[w] > 0
	if !shut {
		n.open[in] = w
	}
	n.mu.Unlock()
	if shut {
		return
	}
	defer func() {
		n.mu.Lock()
		delete(n.open, in)
		n.mu.Unlock()
	}()
	out, err := net.DialTimeout("tcp", to, time.Second)
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{}, 2)
	go func() { n.carry(out, in, w); done <- struct{}{} }()
	go func() { n.carry(in, out, w); done <- struct{}{} }()
	<-done
}

// carry copies one direction of a connection.
func (n *network) carry(dst io.Writer, src io.Reader, w way) {
	buf := make([]byte, slowChunk)
	for {
		k, err := src.Read(buf)
		if k > 0 {
			n.mu.Lock()
			slow := n.slow[w] > 0
			n.mu.Unlock()
			if slow {
				time.Sleep(slowPause)
			}
			if _, err := dst.Write(buf[:k]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// who finds the site whose process holds the other end of a connection; -1 if none does. All sites have the same
// address as clients, so the kernel's tables have to tell.
func (n *network) who(c net.Conn) int {
	peer, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return -1
	}
	ip := peer.IP.To4()
	local := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], peer.Port)
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return -1
	}
	defer f.Close()
	inode := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 9 && fields[1] == local {
			inode = "socket:[" + fields[9] + "]"
			break
		}
	}
	if inode == "" {
		return -1
	}
	for i, st := range n.sites {
		dir := fmt.Sprintf("/proc/%d/fd/", st.pid())
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if link, err := os.Readlink(dir + e.Name()); err == nil && link == inode {
				return i
			}
		}
	}
	return -1
}

// shut cuts roads and whatever goes over them; what it returns repairs them.
func (n *network) shut(ways []way) (repair func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	wanted := map[way]bool{}
	for _, w := range ways {
		n.cut[w]++
		wanted[w] = true
	}
	for c, w := range n.open {
		if wanted[w] {
			c.Close()
		}
	}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, w := range ways {
			n.cut[w]--
		}
	}
}

// delay makes roads slow; what it returns makes them fast again.
func (n *network) delay(ways []way) (repair func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range ways {
		n.slow[w]++
	}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, w := range ways {
			n.slow[w]--
		}
	}
}

// between are the roads between two groups of sites, both directions.
func between(a, b []int) (ways []way) {
	for _, x := range a {
		for _, y := range b {
			if x != y {
				ways = append(ways, way{x, y}, way{y, x})
			}
		}
	}
	return ways
}
