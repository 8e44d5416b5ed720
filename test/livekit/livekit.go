// Package livekit starts a real LiveKit server for tests: a process of its own,
// built from the Go module proxy once, into the user's cache folder.
package livekit

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/test/freeport"
	"github.com/carillon-chat/carillon/test/peer"
)

var server = peer.Command{Module: "github.com/livekit/livekit-server", Path: "/cmd/server", Version: "v1.13.5"}

// patience is how long the server may take to answer first.
const patience = 30 * time.Second

// Server is a running LiveKit server, which opens no rooms by itself.
type Server struct {
	URL    string // ws://127.0.0.1:…
	API    string // the same with http://
	Key    string
	Secret string
}

// Start starts a server that ends with the test. Its program takes minutes to be
// built, so without one the test is skipped, but not where CI or
// CARILLON_TEST_LIVEKIT is set. hook, if not "", is told of who comes and goes.
func Start(t testing.TB, hook string) *Server {
	t.Helper()
	program := program(t)
	s := &Server{Key: "carillon", Secret: strings.Repeat("a-secret-for-tests", 3)}
	port, media := freeport.Number(t), freeport.Number(t)
	host := fmt.Sprintf("127.0.0.1:%d", port)
	s.URL, s.API = "ws://"+host, "http://"+host
	config := fmt.Sprintf("port: %d\nbind_addresses: [127.0.0.1]\nlogging: {level: error}\nkeys: {%s: %s}\nroom: {auto_create: false}\n"+
		"rtc: {tcp_port: %d, port_range_start: 50000, port_range_end: 50100, use_external_ip: false}\n", port, s.Key, s.Secret, media)
	if hook != "" {
		config += fmt.Sprintf("webhook: {api_key: %s, urls: [%q]}\n", s.Key, hook)
	}
	var said bytes.Buffer
	cmd := exec.Command(program, "--config-body", config)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		r, err := http.Get(s.API)
		if err == nil {
			r.Body.Close()
			return s
		}
		select {
		case <-done:
			t.Fatalf("the LiveKit server has ended: %s", said.Bytes())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("the LiveKit server does not answer: %v", err)
		}
	}
}

// program is the server's program.
func program(t testing.TB) string {
	t.Helper()
	if os.Getenv("CI") == "" && os.Getenv("CARILLON_TEST_LIVEKIT") == "" && !server.Built(t) {
		t.Skip("there is no LiveKit server; CARILLON_TEST_LIVEKIT=1 builds one, which takes some minutes")
	}
	return server.Program(t)
}
