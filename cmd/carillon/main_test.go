package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// carillon runs the program as a shell would.
func carillon(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// minimal writes a configuration of three lines and gives its path.
func minimal(t *testing.T, more string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "carillon.yaml")
	text := "server_name: example.org\ndata_dir: " + filepath.Join(dir, "data") + "\nlisten: 127.0.0.1:0\n" + more
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodes(t *testing.T) {
	t.Chdir(t.TempDir())
	good := minimal(t, "")
	cases := []struct {
		name  string
		args  []string
		code  int
		out   string // part of what is printed
		error string // part of what is complained about
	}{
		{"version", []string{"version"}, exitOK, "carillon development", ""},
		{"help", []string{"--help"}, exitOK, "check-config", ""},
		{"help of a command", []string{"org", "import", "--help"}, exitOK, "Examples:", ""},
		{"no command", nil, exitUsage, "", "expected one of"},
		{"unknown command", []string{"fly"}, exitUsage, "", "fly"},
		{"unknown flag", []string{"version", "--loud"}, exitUsage, "", "--loud"},
		{"no configuration", []string{"serve"}, exitUsage, "", "server_name: example.org"},
		{"configuration is not there", []string{"serve", "-c", "nowhere.yaml"}, exitUsage, "", "nowhere.yaml"},
		{"wrong configuration", []string{"check-config", "-c", minimal(t, "homeservr:\n")}, exitUsage, "", "line 4: homeservr: there is no such setting; did you mean homeserver?"},
		{"good configuration", []string{"check-config", "-c", good}, exitOK, "example.org", ""},
		{"example", []string{"check-config", "--print-example"}, exitOK, "server_name: example.org", ""},
		{"two outputs", []string{"check-config", "--print-example", "--print-reference"}, exitUsage, "", "choose one"},
		{"nobody answers", []string{"healthcheck", "--url", "http://127.0.0.1:1"}, exitFailed, "", "does not answer"},
		{"alone without a homeserver", []string{"appservice", "-c", good}, exitUsage, "", "appservice.homeserver_url: it is missing"},
		{"unreadable file", []string{"org", "import", "-c", good, "nowhere.csv"}, exitUsage, "", "nowhere.csv"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			code, out, errs := carillon(t, "", c.args...)
			if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.error) {
				t.Errorf("exit code %d, want %d\nprinted: %s\ncomplained: %s", code, c.code, out, errs)
			}
		})
	}
}

func TestConfigurationFromStandardInput(t *testing.T) {
	old := os.Stdin
	defer func() { os.Stdin = old }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stdin = r
	if _, err := w.WriteString("server_name: hs1\ndata_dir: .\nlisten: :1\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if code, out, errs := carillon(t, "", "check-config", "-c", "-"); code != exitOK || !strings.Contains(out, "hs1") {
		t.Errorf("%d: %s %s", code, out, errs)
	}
}

func TestOutputAppearsWholeOrNotAtAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "example.yaml")
	if code, _, errs := carillon(t, "", "check-config", "--print-example", "-o", path); code != exitOK {
		t.Fatal(errs)
	}
	if code, _, errs := carillon(t, "", "check-config", "-c", path); code != exitOK {
		t.Errorf("the printed example is not accepted: %s", errs)
	}
	if code, _, _ := carillon(t, "", "check-config", "--print-example", "-o", filepath.Join(path, "x")); code != exitFailed {
		t.Errorf("exit code %d for a folder that is none", code)
	}
}

func TestOperatorSocket(t *testing.T) {
	short := t.TempDir()
	long := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{short, long} {
		if o, err := dialOperator(dir, "x.sock"); o != nil || err != nil {
			t.Fatalf("nobody listens: %v, %v", o, err)
		}
		for range 2 { // a second server takes over what a killed one has left
			l, err := openSocket(dir, "x.sock")
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(dir, "x.sock"))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("%v, %v", info, err)
			}
			l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/no" {
					w.WriteHeader(http.StatusNotFound)
					w.Write([]byte(`{"errcode":"M_NOT_FOUND","error":"there is none"}`))
					return
				}
				w.Write([]byte(`{"name":"x"}`))
			}), func(err error) { t.Error(err) })
			o, err := dialOperator(dir, "x.sock")
			if err != nil || o == nil {
				t.Fatalf("somebody listens: %v, %v", o, err)
			}
			var out struct{ Name string }
			if err := o.do(t.Context(), http.MethodGet, "/", nil, &out); err != nil || out.Name != "x" {
				t.Errorf("%+v, %v", out, err)
			}
			if err := o.do(t.Context(), http.MethodGet, "/no", nil, nil); err == nil || err.Error() != "there is none" {
				t.Errorf("%v", err)
			}
			o.close()
			l.shut(context.Background())
		}
		if o, err := dialOperator(dir, "x.sock"); o != nil || err != nil {
			t.Fatalf("nobody listens any more: %v, %v", o, err)
		}
	}
}

func TestCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeCertificate(t, cert, key, "first")
	certs, err := newCertificates(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		c, err := certs.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.Subject.CommonName
	}
	writeCertificate(t, cert, key, "second")
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(cert, later, later); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != "first" {
		t.Errorf("looked too often: %s", got)
	}
	certs.looked = time.Time{}
	if got := name(); got != "second" {
		t.Errorf("got %s", got)
	}
	if err := os.WriteFile(cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	certs.looked = time.Time{}
	if got := name(); got != "second" {
		t.Errorf("got %s", got)
	}
}

func writeCertificate(t *testing.T, certFile, keyFile, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
