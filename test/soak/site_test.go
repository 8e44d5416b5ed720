package soak_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// program builds the binary, or takes the one that CARILLON_BIN names.
func program(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("CARILLON_BIN"); bin != "" {
		return bin
	}
	bin := filepath.Join(t.TempDir(), "carillon")
	if out, err := exec.Command("go", "build", "-tags", "goolm", "-o", bin, "github.com/carillon-chat/carillon/cmd/carillon").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return bin
}

// site is a homeserver in a process of its own, on a loopback address of its own.
type site struct {
	t      *testing.T
	n      int
	name   string // address and port of federation, where the door stands
	url    string
	dir    string
	bin    string
	config string
	db     string
	door   *door

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// freePort is a port that is free on an address.
func freePort(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func newSite(t *testing.T, n int, bin string, ca *httpapitest.Authority) *site {
	t.Helper()
	ip := fmt.Sprintf("127.0.%d.%d", 10+n/200, 1+n%200)
	s := &site{t: t, n: n, dir: t.TempDir(), bin: bin, name: ip + ":" + freePort(t, ip)}
	client, federation := ip+":"+freePort(t, ip), ip+":"+freePort(t, ip)
	s.url = "http://" + client
	s.door = newDoor(t, s.name, federation)
	s.db = filepath.Join(s.dir, "homeserver.db")
	if os.Getenv("CARILLON_TEST_POSTGRES") != "" {
		s.db = sqldbtest.DSN(t)
	}
	cert := ca.Certificate(ip)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writeRaw := func(name string, b []byte) string {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write := func(name, kind string, der []byte) string {
		return writeRaw(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	s.config = filepath.Join(s.dir, "carillon.yaml")
	text := fmt.Sprintf(`server_name: %q
data_dir: %s
listen: %s
homeserver:
  database: %q
  presence: false
  passwords: {memory: 64KiB, time: 1}
  rate_limits: {enabled: false}
  registration: {enabled: true, open: true}
  federation: {listen: %q, tls_cert: %s, tls_key: %s, ca_file: %s, allow_private_networks: true}
log: {level: warn}
`, s.name, s.dir, client, s.db, federation, write("cert.pem", "CERTIFICATE", cert.Certificate[0]), write("key.pem", "PRIVATE KEY", key), writeRaw("ca.pem", ca.PEM))
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

// start starts the process and waits until it answers.
func (s *site) start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd, done := exec.Command(s.bin, "homeserver", "-c", s.config), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait(); log.Close(); close(done) }()
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	for range 600 {
		select {
		case <-done:
			return fmt.Errorf("site %d ended: %s", s.n, s.tail())
		case <-time.After(50 * time.Millisecond):
		}
		resp, err := http.Get(s.url + "/_matrix/client/versions")
		if err == nil {
			resp.Body.Close()
			return nil
		}
	}
	return fmt.Errorf("site %d does not answer: %s", s.n, s.tail())
}

func (s *site) tail() []byte {
	b, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return b[max(0, len(b)-2000):]
}

// kill ends the process as a power cut would.
func (s *site) kill() { s.signal(syscall.SIGKILL, true) }

func (s *site) signal(sig os.Signal, wait bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig)
	if wait {
		<-s.done
		s.cmd = nil
	}
}

// door is where the federation port of a site is reached; it can be shut.
type door struct {
	to   string
	shut atomic.Bool
	mu   sync.Mutex
	open map[net.Conn]bool
}

func newDoor(t *testing.T, addr, to string) *door {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{to: to, open: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go d.pass(c)
			}
		}
	}()
	return d
}

func (d *door) pass(in net.Conn) {
	defer in.Close()
	if d.shut.Load() {
		return
	}
	out, err := net.DialTimeout("tcp", d.to, time.Second)
	if err != nil {
		return
	}
	defer out.Close()
	d.mu.Lock()
	d.open[in], d.open[out] = true, true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.open, in)
		delete(d.open, out)
	}()
	done := make(chan struct{}, 2)
	copyTo := func(dst, src net.Conn) { _, _ = io.Copy(dst, src); done <- struct{}{} }
	go copyTo(in, out)
	go copyTo(out, in)
	<-done
}

// close shuts the door and cuts what goes through it.
func (d *door) close() {
	d.shut.Store(true)
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.open {
		c.Close()
	}
}

func (d *door) reopen() { d.shut.Store(false) }
