// Package slapd starts OpenLDAP's server for tests: a real directory, empty, with an entry for the company.
package slapd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/carillon-chat/carillon/test/freeport"
	"github.com/carillon-chat/carillon/test/peer"
)

// The directory's root and who may write.
const (
	Suffix   = "dc=example,dc=org"
	Admin    = "cn=admin," + Suffix
	Password = "directory password"
)

// activeDirectory are attributes that Active Directory has.
const activeDirectory = `attributetype ( 1.2.840.113556.1.4.8 NAME 'userAccountControl' EQUALITY integerMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.159 NAME 'accountExpires' EQUALITY integerMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
objectclass ( 1.2.840.113556.1.5.9 NAME 'user' SUP top AUXILIARY MAY ( userAccountControl $ accountExpires ) )
`

// Server is a running slapd.
type Server struct {
	Plain string // ldap://127.0.0.1:port
	TLS   string // ldaps://127.0.0.1:port
	Conn  *ldap.Conn

	t    testing.TB
	cmd  *exec.Cmd
	args []string
	env  []string
}

// New starts one. cert and key are PEM files for 127.0.0.1; without them it speaks no TLS. The test is skipped where slapd is neither installed nor to
// be had from Debian's archive.
func New(t testing.TB, cert, key string) *Server {
	t.Helper()
	root := program(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	var conf strings.Builder
	for _, s := range []string{"core", "cosine", "inetorgperson"} {
		fmt.Fprintf(&conf, "include %s/etc/ldap/schema/%s.schema\n", root, s)
	}
	conf.WriteString(activeDirectory)
	tls, listen := "", "ldap://"+freeport.Address(t)
	s := &Server{t: t, Plain: listen}
	if cert != "" {
		tls = "TLSCertificateFile " + cert + "\nTLSCertificateKeyFile " + key + "\n"
		s.TLS = "ldaps://" + freeport.Address(t)
		listen += " " + s.TLS
	}
	fmt.Fprintf(&conf, `modulepath %[1]s/usr/lib/ldap
moduleload back_mdb
moduleload syncprov
%[2]ssizelimit 1000
database mdb
maxsize 104857600
suffix "%[3]s"
rootdn "%[4]s"
rootpw "%[5]s"
directory %[6]s/db
limits dn.exact="%[4]s" size=500 size.pr=unlimited size.prtotal=unlimited
overlay syncprov
`, root, tls, Suffix, Admin, Password, dir)
	file := filepath.Join(dir, "slapd.conf")
	if err := os.WriteFile(file, []byte(conf.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	s.args = []string{filepath.Join(root, "usr/sbin/slapd"), "-f", file, "-h", listen, "-d", "0"}
	if root != "/" {
		libs, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu*"))
		s.env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(append(libs, filepath.Join(root, "usr/lib/ldap")), ":"))
	}
	s.Start()
	t.Cleanup(s.Stop)
	s.Add(Suffix, map[string][]string{"objectClass": {"dcObject", "organization"}, "o": {"Example"}, "dc": {"example"}})
	return s
}

// Start starts it again after Stop.
func (s *Server) Start() {
	s.t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	s.cmd.Env = s.env
	out := &strings.Builder{}
	s.cmd.Stderr = out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for range 200 {
		c, err := ldap.DialURL(s.Plain)
		if err == nil {
			if err := c.Bind(Admin, Password); err != nil {
				s.t.Fatal(err)
			}
			s.Conn = c
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	s.Stop()
	s.t.Fatalf("slapd does not start: %s", out)
}

// Stop ends it.
func (s *Server) Stop() {
	if s.Conn != nil {
		_ = s.Conn.Close()
		s.Conn = nil
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
}

// Add adds an entry.
func (s *Server) Add(dn string, attrs map[string][]string) {
	s.t.Helper()
	r := ldap.NewAddRequest(dn, nil)
	for k, v := range attrs {
		r.Attribute(k, v)
	}
	if err := s.Conn.Add(r); err != nil {
		s.t.Fatalf("adding %s: %v", dn, err)
	}
}

// Set replaces an attribute; without values it is removed.
func (s *Server) Set(dn, attr string, values ...string) {
	s.t.Helper()
	r := ldap.NewModifyRequest(dn, nil)
	r.Replace(attr, values)
	if err := s.Conn.Modify(r); err != nil {
		s.t.Fatalf("changing %s: %v", dn, err)
	}
}

// Move renames an entry and puts it below another.
func (s *Server) Move(dn, name, above string) {
	s.t.Helper()
	if err := s.Conn.ModifyDN(ldap.NewModifyDNRequest(dn, name, true, above)); err != nil {
		s.t.Fatalf("moving %s: %v", dn, err)
	}
}

// Delete removes an entry.
func (s *Server) Delete(dn string) {
	s.t.Helper()
	if err := s.Conn.Del(ldap.NewDelRequest(dn, nil)); err != nil {
		s.t.Fatalf("deleting %s: %v", dn, err)
	}
}

// program is the folder below which slapd is: the root of the system, or a folder of the user's into which the packages
// of Debian were unpacked.
func program(t testing.TB) string {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/slapd"); err == nil {
		return "/"
	}
	dir := peer.Folder(t, "slapd", func(dir string) error {
		script := `set -e; rm -rf root; mkdir root; apt-get download slapd libltdl7 libwrap0 >/dev/null 2>&1; for d in *.deb; do dpkg-deb -x "$d" root; rm "$d"; done`
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = dir
		if cmd.Run() != nil {
			return peer.Missing("this test needs OpenLDAP's server: apt-get install slapd")
		}
		return nil
	})
	return filepath.Join(dir, "root")
}
