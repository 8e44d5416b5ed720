// Package interop_test has Carillon federate with Dendrite, another homeserver in Go, over real TLS: what one
// server's tests cannot find is where two servers read the specification differently.
//
// Dendrite is built from its module, at an exact version, into the user's cache folder. That takes some minutes, so
// it is done only when CARILLON_INTEROP is "on" (make interop); after that the tests run whenever it is there.
// CARILLON_INTEROP=off leaves them out in any case.
package interop_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix"

	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/test/freeport"
	"github.com/carillon-chat/carillon/test/peer"
)

var command = peer.Command{Module: "github.com/element-hq/dendrite", Path: "/cmd/dendrite", Version: "v0.15.2"}

// patience is how long something is waited for that has to come.
const patience = 20 * time.Second

// dendrite is a running Dendrite.
type dendrite struct {
	name string // of the server: 127.0.0.1:port, where it federates
	url  string // for clients
}

// program gives the path of Dendrite's program, or skips the test.
func program(t *testing.T) string {
	t.Helper()
	mode := os.Getenv("CARILLON_INTEROP")
	if mode == "off" {
		t.Skip("interoperation is switched off: CARILLON_INTEROP=off")
	}
	if mode != "on" && !command.Built(t) {
		t.Skipf("Dendrite %s is not built yet: make interop does it, which takes some minutes", command.Version)
	}
	return command.Program(t)
}

// startDendrite runs Dendrite, on SQLite, until the test ends.
func startDendrite(t *testing.T, authority *httpapitest.Authority) *dendrite {
	t.Helper()
	path, dir := program(t), t.TempDir()
	http, fed := freeport.Address(t), freeport.Address(t)
	d := &dendrite{name: fed, url: "http://" + http}
	write := func(name string, data []byte) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	seed := make([]byte, 32)
	_, _ = rand.Read(seed)
	write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "MATRIX PRIVATE KEY", Headers: map[string]string{"Key-ID": "ed25519:a1"}, Bytes: seed}))
	cert := authority.Certificate("127.0.0.1")
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write("tls.crt", chain)
	write("tls.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	ca := write("ca.pem", authority.PEM)
	write("dendrite.yaml", []byte(settings(d.name)))
	logs, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-config", "dendrite.yaml", "-http-bind-address", http, "-https-bind-address", fed,
		"-tls-cert", "tls.crt", "-tls-key", "tls.key", "-really-enable-open-registration")
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, logs, logs
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+ca)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(logs.Name())
			t.Logf("Dendrite says:\n%s", b[max(0, len(b)-6000):])
		}
		logs.Close()
	})
	d.waitFor(t)
	return d
}

func (d *dendrite) waitFor(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		r, err := http.Get(d.url + "/_matrix/client/versions")
		if err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
			err = errors.New(r.Status)
		}
		if time.Now().After(end) {
			t.Fatalf("Dendrite does not come up: %v", err)
		}
	}
}

// settings is Dendrite's configuration. Certificates are checked as ever.
func settings(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `version: 2
global:
  server_name: %q
  private_key: key.pem
  trusted_third_party_id_servers: []
  presence: {enable_inbound: true, enable_outbound: true}
  jetstream: {storage_path: ./js}
client_api:
  registration_disabled: false
  rate_limiting: {enabled: false}
`, name)
	for _, c := range []struct{ section, more string }{
		{"federation_api", "  key_perspectives: []\n  deny_networks: []\n  allow_networks: [0.0.0.0/0]\n"},
		{"sync_api", ""},
		{"room_server", ""},
		{"key_server", ""},
		{"relay_api", ""},
		{"mscs", "  mscs: []\n"},
		{"media_api", "  base_path: ./media\n"},
	} {
		fmt.Fprintf(&b, "%s:\n  database: {connection_string: \"file:%s.db\"}\n%s", c.section, c.section, c.more)
	}
	b.WriteString("user_api:\n  bcrypt_cost: 4\n  account_database: {connection_string: \"file:accounts.db\"}\nlogging:\n- {type: std, level: warn}\n")
	return b.String()
}

// person registers somebody on Dendrite.
func (d *dendrite) person(t *testing.T, name string) *person {
	t.Helper()
	c, err := mautrix.NewClient(d.url, "", "")
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.RegisterDummy(context.WithoutCancel(t.Context()), &mautrix.ReqRegister[any]{Username: name, Password: "password of " + name})
	if err != nil {
		t.Fatalf("registering %s: %v", name, err)
	}
	c.UserID, c.AccessToken, c.DeviceID = r.UserID, r.AccessToken, r.DeviceID
	u := newPerson(t, c)
	u.onDendrite = true
	return u
}

// token is a name that nobody has used.
func token() string {
	b := make([]byte, 6)
	_, _ = rand.Read(b)
	return strings.ToLower(base64.RawURLEncoding.EncodeToString(b))
}
