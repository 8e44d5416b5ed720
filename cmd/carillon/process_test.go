package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/derive"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/test/freeport"
)

// The tests of this file run the program as a process of its own, to kill it: the
// test binary itself, which is the program when this variable is set.
const asProgram = "CARILLON_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(process())
	}
	os.Exit(m.Run())
}

// server is a running carillon.
type server struct {
	t    *testing.T
	cmd  *exec.Cmd
	base string // client address
	log  *lockedBuffer
	done chan error
}

// lockedBuffer is written by a process while the test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, base string, env []string, name string, args ...string) *server {
	t.Helper()
	s := &server{t: t, cmd: exec.Command(name, args...), base: base, log: &lockedBuffer{}, done: make(chan error, 1)}
	s.cmd.Env = append(append(os.Environ(), asProgram+"=1"), env...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	t.Cleanup(func() {
		s.kill()
		if strings.Contains(s.log.String(), "DATA RACE") {
			t.Errorf("the server has a race:\n%s", s.log)
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := http.Get(base + "/_matrix/client/versions")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return s
			}
		}
		select {
		case err := <-s.done:
			s.done <- err
			t.Fatalf("the server ended: %v\n%s", err, s.log)
		default:
		}
		if time.Now().After(deadline) {
			s.kill()
			t.Fatalf("the server is not ready: %v\n%s", err, s.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kill ends the process as a power cut would.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	s.done <- <-s.done
}

// stop asks the process to end, and gives its exit code.
func (s *server) stop() (code int, took time.Duration) {
	s.t.Helper()
	began := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	s.done <- <-s.done
	return s.cmd.ProcessState.ExitCode(), time.Since(began)
}

// site is a configuration on disk with databases of the kind that is tested.
type site struct{ dir, config, base string }

func newSite(t *testing.T, more string) site {
	t.Helper()
	dir := t.TempDir()
	addr := freeport.Address(t)
	text := fmt.Sprintf(`server_name: test
data_dir: %s
listen: %s
homeserver:
  database: %q
  federation: {enabled: false}
  registration: {enabled: true, open: true}
  passwords: {memory: 64KiB, time: 1}
  rate_limits: {enabled: false}
appservice:
  database: %q
%s`, dir, addr, databaseOf(t, dir, "homeserver.db"), databaseOf(t, dir, "appservice.db"), more)
	path := filepath.Join(dir, "carillon.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return site{dir, path, "http://" + addr}
}

// databaseOf is a file of the site, or a PostgreSQL schema when that is tested.
func databaseOf(t *testing.T, dir, name string) string {
	if os.Getenv("CARILLON_TEST_POSTGRES") != "" {
		return sqldbtest.DSN(t)
	}
	return filepath.Join(dir, name)
}

// call makes a request; it returns an error instead of failing, as the server may be killed meanwhile.
func call(ctx context.Context, method, url, token string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

func mustCall(t *testing.T, method, url, token string, in, out any) {
	t.Helper()
	if err := call(t.Context(), method, url, token, in, out); err != nil {
		t.Fatal(err)
	}
}

// register makes an account and gives its access token.
func register(t *testing.T, base, name string) string {
	t.Helper()
	var out struct {
		Token string `json:"access_token"`
	}
	mustCall(t, http.MethodPost, base+"/_matrix/client/v3/register", "", map[string]any{
		"username": name, "password": "correct horse " + name, "auth": map[string]string{"type": "m.login.dummy"},
	}, &out)
	return out.Token
}

func createRoom(t *testing.T, base, token string) string {
	t.Helper()
	var out struct {
		Room string `json:"room_id"`
	}
	mustCall(t, http.MethodPost, base+"/_matrix/client/v3/createRoom", token, map[string]any{"preset": "public_chat"}, &out)
	return out.Room
}

func sendURL(base, room, txn string) string {
	return base + "/_matrix/client/v3/rooms/" + url.PathEscape(room) + "/send/m.room.message/" + url.PathEscape(txn)
}

type message struct {
	ID      string  `json:"event_id"`
	Type    string  `json:"type"`
	Key     *string `json:"state_key"`
	Content struct {
		Body       string `json:"body"`
		Membership string `json:"membership"`
	} `json:"content"`
}

// history reads the whole room, newest first.
func history(t *testing.T, base, token, room string) []message {
	t.Helper()
	var all []message
	from := ""
	for {
		var page struct {
			Chunk []message `json:"chunk"`
			End   string    `json:"end"`
		}
		q := url.Values{"dir": {"b"}, "limit": {"200"}}
		if from != "" {
			q.Set("from", from)
		}
		mustCall(t, http.MethodGet, base+"/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/messages?"+q.Encode(), token, nil, &page)
		all = append(all, page.Chunk...)
		if page.End == "" || len(page.Chunk) == 0 {
			return all
		}
		from = page.End
	}
}

// What was acknowledged before a kill is there after it, once, also when clients repeat
// what was not acknowledged.
func TestKillInTheMiddleOfSends(t *testing.T) {
	site := newSite(t, "")
	srv := start(t, site.base, nil, os.Args[0], "homeserver", "-c", site.config)
	token := register(t, site.base, "alice")
	room := createRoom(t, site.base, token)

	const senders, rounds = 8, 3
	var mu sync.Mutex
	acked := map[string]string{} // body to event ID
	next := make([]int, senders) // number of the sender's first message that is not acknowledged
	send := func(ctx context.Context, sender, n int) error {
		body := fmt.Sprintf("%d/%d", sender, n)
		var out struct {
			ID string `json:"event_id"`
		}
		err := call(ctx, http.MethodPut, sendURL(site.base, room, "t"+strings.ReplaceAll(body, "/", "-")), token, map[string]string{"msgtype": "m.text", "body": body}, &out)
		if err == nil {
			mu.Lock()
			acked[body] = out.ID
			mu.Unlock()
		}
		return err
	}
	for round := range rounds {
		var wg sync.WaitGroup
		var count atomic.Int64
		for sender := range senders {
			wg.Go(func() {
				for send(t.Context(), sender, next[sender]) == nil {
					next[sender]++
					count.Add(1)
				}
			})
		}
		for deadline := time.Now().Add(20 * time.Second); count.Load() < int64(100+50*round) && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		srv.kill()
		wg.Wait()
		srv = start(t, site.base, nil, os.Args[0], "homeserver", "-c", site.config)
		for sender := range senders { // the client repeats what it has no answer to
			if err := send(t.Context(), sender, next[sender]); err != nil {
				t.Fatal(err)
			}
			next[sender]++
		}
	}
	seen := map[string]string{}
	for _, m := range history(t, site.base, token, room) {
		if m.Type != "m.room.message" {
			continue
		}
		if _, twice := seen[m.Content.Body]; twice {
			t.Errorf("message %s is there twice", m.Content.Body)
		}
		seen[m.Content.Body] = m.ID
	}
	for body, id := range acked {
		if seen[body] != id {
			t.Errorf("message %s was acknowledged as %s and is %q", body, id, seen[body])
		}
	}
	if len(seen) != len(acked) || len(acked) < 300 {
		t.Errorf("%d messages acknowledged, %d found", len(acked), len(seen))
	}
}

// An import that is killed goes on at the next start; nobody joins twice.
func TestKillInTheMiddleOfAnImport(t *testing.T) {
	site := newSite(t, "  concurrency: 4\n")
	file := filepath.Join(site.dir, "company.zip")
	if code, _, errs := carillon(t, "", "org", "generate", "--people", "150", "--units", "12", "--sites", "3", "-o", file); code != exitOK {
		t.Fatal(errs)
	}
	for round := range 3 {
		srv := start(t, site.base, nil, os.Args[0], "serve", "-c", site.config)
		if round == 0 {
			if code, out, errs := carillon(t, "", "org", "import", "-c", site.config, "--no-wait", file); code != exitOK {
				t.Fatalf("%d: %s %s", code, out, errs)
			}
		}
		time.Sleep(time.Duration(150*(round+1)) * time.Millisecond)
		srv.kill()
	}
	srv := start(t, site.base, nil, os.Args[0], "serve", "-c", site.config)
	if code, out, errs := carillon(t, "", "org", "reconcile", "-c", site.config); code != exitOK {
		t.Fatalf("%d: %s %s", code, out, errs)
	}
	for _, args := range [][]string{{"org", "reconcile", "-c", site.config}, {"org", "reconcile", "--verify", "-c", site.config}} {
		if code, out, errs := carillon(t, "", args...); code != exitOK || !strings.Contains(out, "\n0 operations") && !strings.HasPrefix(out, "0 operations") {
			t.Errorf("%v: %d: %s %s", args, code, out, errs)
		}
	}
	if code, out, errs := carillon(t, "", "org", "import", "-c", site.config, file); code != exitOK || !strings.Contains(out, "0 operations") {
		t.Errorf("importing again: %d: %s %s", code, out, errs)
	}

	reg, err := os.ReadFile(filepath.Join(site.dir, "appservice-registration.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var token string
	for line := range strings.Lines(string(reg)) {
		if rest, ok := strings.CutPrefix(line, "as_token: "); ok {
			token = strings.Trim(strings.TrimSpace(rest), `"'`)
		}
	}
	var tree struct {
		AllStaff string `json:"all_staff_room"`
		People   int    `json:"people"`
	}
	mustCall(t, http.MethodGet, site.base+"/_carillon/v1/org/tree", token, nil, &tree)
	joins := map[string]int{}
	for _, m := range history(t, site.base, token, tree.AllStaff) {
		if m.Type == "m.room.member" && m.Content.Membership == "join" && m.Key != nil {
			joins[*m.Key]++
		}
	}
	for user, n := range joins {
		if n != 1 {
			t.Errorf("%s joined the all-staff room %d times", user, n)
		}
	}
	if len(joins) != tree.People+1 { // and the bot
		t.Errorf("%d joined the all-staff room of %d people", len(joins), tree.People)
	}
	if code, took := srv.stop(); code != exitOK || took > 10*time.Second {
		t.Errorf("stopping: exit code %d after %s", code, took)
	}
}

func TestStopSendsWaitingClientsHome(t *testing.T) {
	site := newSite(t, "")
	srv := start(t, site.base, nil, os.Args[0], "serve", "-c", site.config)
	token := register(t, site.base, "alice")
	for _, path := range []string{"/_carillon/v1/health", "/_carillon/v1/openapi.json", "/_matrix/client/v3/account/whoami"} {
		mustCall(t, http.MethodGet, site.base+path, token, nil, nil) // each goes to the part that knows it
	}
	if err := call(t.Context(), http.MethodGet, site.base+"/_carillon/admin/v1/users", token, nil, nil); err == nil || !strings.Contains(err.Error(), "M_FORBIDDEN") {
		t.Errorf("the operator API for an ordinary user: %v", err)
	}
	var first struct {
		Next string `json:"next_batch"`
	}
	mustCall(t, http.MethodGet, site.base+"/_matrix/client/v3/sync", token, nil, &first)
	waiting := make(chan error, 1)
	go func() {
		waiting <- call(context.Background(), http.MethodGet, site.base+"/_matrix/client/v3/sync?timeout=60000&since="+url.QueryEscape(first.Next), token, nil, nil)
	}()
	select {
	case err := <-waiting:
		t.Fatalf("the sync did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	code, took := srv.stop()
	if code != exitOK || took > 10*time.Second {
		t.Errorf("exit code %d after %s\n%s", code, took, srv.log)
	}
	if err := <-waiting; err != nil {
		t.Errorf("the waiting client was cut off: %v", err)
	}
}

func TestASecondServerIsRefused(t *testing.T) {
	site := newSite(t, "")
	start(t, site.base, nil, os.Args[0], "serve", "-c", site.config)
	var text bytes.Buffer
	cmd := exec.Command(os.Args[0], "migrate", "-c", site.config)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stderr = &text
	err := cmd.Run()
	if cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(text.String(), "another carillon runs") {
		t.Errorf("%v: %s", err, &text)
	}
}

// The operator's commands do the same with and without a running server.
func TestUserCommands(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			site := newSite(t, "")
			if running {
				start(t, site.base, nil, os.Args[0], "homeserver", "-c", site.config)
			}
			steps := []struct {
				stdin string
				args  []string
				code  int
				out   string
			}{
				{"secret word\n", []string{"create", "chief", "--admin"}, exitOK, "@chief:test"},
				{"", []string{"create", "wang", "--random"}, exitOK, "@wang:test"},
				{"secret word\n", []string{"create", "chief"}, exitRefused, ""},
				{"short\n", []string{"create", "li"}, exitRefused, ""},
				{"secret word\n", []string{"create", "Bad Name"}, exitRefused, ""},
				{"secret word\n", []string{"create", "@li:elsewhere"}, exitRefused, ""},
				{"", []string{"create", "li"}, exitUsage, ""},
				{"", []string{"list"}, exitOK, "administrator"},
				{"", []string{"lock", "@wang:test"}, exitOK, ""},
				{"", []string{"list"}, exitOK, "locked"},
				{"", []string{"list", "--json"}, exitOK, `"user_id":"@wang:test"`},
				{"", []string{"unlock", "wang"}, exitOK, ""},
				{"", []string{"lock", "nobody"}, exitRefused, ""},
				{"another word\n", []string{"password", "wang"}, exitOK, ""},
				{"", []string{"admin", "chief", "--revoke"}, exitOK, ""},
			}
			for _, step := range steps {
				args := append([]string{"user"}, step.args...)
				code, out, errs := carillon(t, step.stdin, append(args, "-c", site.config)...)
				if code != step.code || !strings.Contains(out, step.out) {
					t.Errorf("%v: exit code %d, want %d\n%s%s", step.args, code, step.code, out, errs)
				}
			}
			if !running {
				start(t, site.base, nil, os.Args[0], "homeserver", "-c", site.config)
			}
			mustCall(t, http.MethodPost, site.base+"/_matrix/client/v3/login", "", map[string]any{
				"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "wang"}, "password": "another word",
			}, nil)
		})
	}
}

// The demo greets with log-ins that work, and knows its people at the second start.
func TestDemo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	addr := freeport.Address(t)
	base := "http://" + addr
	for round := range 2 {
		args := []string{"serve", "--demo", "--data", dir}
		if round == 0 {
			args = append(args, "--listen", addr)
		}
		srv := start(t, base, nil, os.Args[0], args...)
		var password string
		for deadline := time.Now().Add(60 * time.Second); password == "" && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if out, _ := os.ReadFile(filepath.Join(dir, "carillon.yaml")); len(out) == 0 {
				continue
			}
			found, err := derive.FirstPasswords(filepath.Join(dir, "first-passwords"))
			if err == nil {
				password = found["D1013"]
			}
		}
		var session struct {
			Token string `json:"access_token"`
		}
		var rooms struct {
			Rooms []string `json:"joined_rooms"`
		}
		for deadline := time.Now().Add(60 * time.Second); len(rooms.Rooms) < 3; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				srv.kill()
				t.Fatalf("chenchen is in %d rooms\n%s", len(rooms.Rooms), srv.log)
			}
			err := call(t.Context(), http.MethodPost, base+"/_matrix/client/v3/login", "", map[string]any{
				"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "chenchen"}, "password": password,
			}, &session)
			if err == nil {
				err = call(t.Context(), http.MethodGet, base+"/_matrix/client/v3/joined_rooms", session.Token, nil, &rooms)
			}
			if err != nil && round == 1 {
				t.Fatal(err)
			}
		}
		for deadline := time.Now().Add(60 * time.Second); !strings.Contains(srv.log.String(), "Ctrl-C") && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond) // the greeting comes when the whole company is there
		}
		if code, took := srv.stop(); code != exitOK || took > 10*time.Second {
			t.Errorf("exit code %d after %s", code, took)
		}
		if out := srv.log.String(); !strings.Contains(out, password) || !strings.Contains(out, base[len("http://"):][len("127.0.0.1"):]) || !strings.Contains(out, "zhoumin") || !strings.Contains(out, "linhai") {
			t.Errorf("the greeting lacks something:\n%s", out)
		}
	}
}

// The launcher for outside suites keeps its contract.
func TestLauncher(t *testing.T) {
	certs := t.TempDir()
	cert, key := filepath.Join(certs, "cert.pem"), filepath.Join(certs, "key.pem")
	writeCertificate(t, cert, key, "hs1")
	data := filepath.Join(t.TempDir(), "it's data")
	client, federation := freeport.Address(t), freeport.Address(t)
	_, clientPort, _ := net.SplitHostPort(client)
	_, federationPort, _ := net.SplitHostPort(federation)
	env := []string{
		"HS_SERVER_NAME=hs1", "HS_BIND_IP=127.0.0.1", "HS_CLIENT_PORT=" + clientPort, "HS_FEDERATION_PORT=" + federationPort,
		"HS_DATA_DIR=" + data, "HS_TLS_CERT=" + cert, "HS_TLS_KEY=" + key, "HS_CA_CERT=" + cert,
		"HS_SHARED_SECRET=complement", "HS_APPSERVICE_DIR=" + t.TempDir(), "CARILLON_BIN=" + os.Args[0],
	}
	if os.Getenv("CARILLON_TEST_POSTGRES") != "" {
		env = append(env, "HS_DATABASE="+sqldbtest.DSN(t))
	}
	launch, err := filepath.Abs("../../test/complement/launch")
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + client
	srv := start(t, base, env, launch)
	alice := register(t, base, "alice")
	room := createRoom(t, base, alice)
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := insecure.Get("https://" + federation + "/_matrix/key/v2/server")
	if err != nil {
		t.Fatal(err)
	}
	var keys struct {
		Server string `json:"server_name"`
	}
	err = json.NewDecoder(resp.Body).Decode(&keys)
	resp.Body.Close()
	insecure.CloseIdleConnections()
	if err != nil || keys.Server != "hs1" {
		t.Errorf("keys of %q: %v", keys.Server, err)
	}
	var nonce struct{ Nonce string }
	mustCall(t, http.MethodGet, base+"/_synapse/admin/v1/register", "", nil, &nonce)
	if nonce.Nonce == "" {
		t.Error("no nonce for registration with the shared secret")
	}
	if code, took := srv.stop(); code != exitOK || took > 10*time.Second {
		t.Errorf("exit code %d after %s\n%s", code, took, srv.log)
	}

	// Kept over restarts, wherever the data lies by then.
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.CopyFS(moved, os.DirFS(data)); err != nil && !strings.Contains(err.Error(), "sock") {
		t.Fatal(err)
	}
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	for i, e := range env {
		if strings.HasPrefix(e, "HS_DATA_DIR=") {
			env[i] = "HS_DATA_DIR=" + moved
		}
	}
	start(t, base, env, launch)
	mustCall(t, http.MethodPut, sendURL(base, room, strconv.Itoa(1)), alice, map[string]string{"msgtype": "m.text", "body": "still here"}, nil)
}
