package soak_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// serviceToken is the application service of the tests, through which most people act.
const serviceToken = "soak-service-token"

const registration = `id: soak
url: null
as_token: ` + serviceToken + `
hs_token: soak-homeserver-token
sender_localpart: soakbot
rate_limited: false
namespaces: {users: [{exclusive: true, regex: "@p[0-9]+:.*"}], aliases: [], rooms: []}
`

// Ports of each address. They are below those that the kernel gives to whoever asks for any.
const (
	federationPort = "8448" // the door
	behindPort     = "8449" // what is behind it
	clientPort     = "8008"
)

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
	kind   string // of database

	harm sync.Mutex // held by whoever kills or freezes it

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
	used time.Duration // processor time of earlier processes
	peak int64         // largest resident memory, bytes
	last int64         // resident memory when it was last looked at, bytes
	slow time.Duration // longest start
}

// newSite configures site n on an address of net, such as 127.20.30.
func newSite(t *testing.T, n int, prefix, bin string, ca *httpapitest.Authority, wires *network) *site {
	t.Helper()
	ip := fmt.Sprintf("%s.%d", prefix, n+1)
	s := &site{t: t, n: n, dir: t.TempDir(), bin: bin, name: ip + ":" + federationPort, url: "http://" + ip + ":" + clientPort, kind: "SQLite"}
	wires.door(t, n, s.name, ip+":"+behindPort)
	s.db = filepath.Join(s.dir, "homeserver.db")
	if os.Getenv("CARILLON_TEST_POSTGRES") != "" && n%2 == 1 {
		s.db, s.kind = sqldbtest.DSN(t), "PostgreSQL"
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
  admins: ["@p0:%s"]
  appservices: [%q]
  presence: false
  rate_limits: {enabled: false}
  federation: {listen: %q, tls_cert: %s, tls_key: %s, ca_file: %s, allow_private_networks: true}
log: {level: warn}
`, s.name, s.dir, ip+":"+clientPort, s.db, s.name, writeRaw("soak.yaml", []byte(registration)), ip+":"+behindPort,
		write("cert.pem", "CERTIFICATE", cert.Certificate[0]), write("key.pem", "PRIVATE KEY", key), writeRaw("ca.pem", ca.PEM))
	writeRaw("carillon.yaml", []byte(text))
	t.Cleanup(s.kill)
	return s
}

// start starts the process and waits until it answers.
func (s *site) start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	began := time.Now()
	cmd, done := exec.Command(s.bin, "homeserver", "-c", s.config), make(chan struct{})
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, child()
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait(); log.Close(); close(done) }()
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	for time.Since(began) < 2*time.Minute {
		select {
		case <-done:
			return fmt.Errorf("site %d ended: %s", s.n, s.tail())
		case <-time.After(30 * time.Millisecond):
		}
		resp, err := client.Get(s.url + "/_matrix/client/versions")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				s.mu.Lock()
				s.slow = max(s.slow, time.Since(began))
				s.mu.Unlock()
				return nil
			}
		}
	}
	return fmt.Errorf("site %d does not answer: %s", s.n, s.tail())
}

// tail is the end of its log.
func (s *site) tail() []byte {
	b, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return b[max(0, len(b)-2000):]
}

// complaint is the first line of its log that tells of a fault of its own.
func (s *site) complaint() string {
	b, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "panic") || strings.Contains(line, "level=error") || strings.Contains(line, "level=fatal") {
			return line[:min(len(line), 500)]
		}
	}
	return ""
}

func (s *site) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// kill ends the process as a power cut would.
func (s *site) kill() { s.end(syscall.SIGKILL) }

// end sends a signal and waits until the process is gone; it gives the time that this took.
func (s *site) end(sig os.Signal) time.Duration {
	began := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	s.used += s.look()
	_ = s.cmd.Process.Signal(sig)
	<-s.done
	s.cmd = nil
	return time.Since(began)
}

func (s *site) signal(sig os.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(sig)
	}
}

// look reads what the process has used; s.mu is held.
func (s *site) look() (processor time.Duration) {
	if s.cmd == nil {
		return 0
	}
	dir := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	if b, err := os.ReadFile(dir + "stat"); err == nil {
		// Fields 14 and 15 are ticks of a hundredth second in user and kernel mode; the name in field 2 may hold spaces.
		if fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]); len(fields) > 12 {
			user, _ := strconv.ParseInt(string(fields[11]), 10, 64)
			kernel, _ := strconv.ParseInt(string(fields[12]), 10, 64)
			processor = time.Duration(user+kernel) * 10 * time.Millisecond
		}
	}
	if b, err := os.ReadFile(dir + "status"); err == nil {
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
				s.last = kb << 10
				s.peak = max(s.peak, s.last)
			}
		}
	}
	return processor
}

// usage is the processor time so far, and the memory now and at most, in bytes.
func (s *site) usage() (processor time.Duration, now, peak int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	processor = s.used + s.look()
	return processor, s.last, s.peak
}
