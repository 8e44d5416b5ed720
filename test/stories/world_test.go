// Package stories_test tells what happens in whole companies. A homeserver and the enterprise service run together, on
// real sockets or as the program that people start; the company comes from the file that the personnel department hands
// in; people are played by the client library mautrix-go and log in with the first passwords of the file for HR. The
// stories run on SQLite and, with CARILLON_TEST_POSTGRES, on PostgreSQL.
package stories_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/test/freeport"
	"github.com/carillon-chat/carillon/test/program"
)

const (
	serverName = "corp.example"
	bot        = id.UserID("@carillon:corp.example")
	// patience is how long something is waited for that others do in the background.
	patience = 30 * time.Second
)

func TestMain(m *testing.M) {
	if os.Getenv("CARILLON_TEST_LOG") == "" {
		log.SetOutput(io.Discard)
	}
	os.Exit(program.Main(m))
}

// world is a homeserver and the enterprise service of one company.
type world struct {
	t      testing.TB
	reg    *appservice.Registration
	hsOpts homeserver.Options
	asOpts appservice.Options
	asDSN  string
	hsAddr string
	asAddr string
	url    string // for people
	dir    string // of first passwords

	hs     *homeserver.Server
	svc    *appservice.Service
	stopHS func()
	stopAS func()

	// repeat makes the homeserver's transactions come again and again.
	repeat atomic.Bool

	mu     sync.Mutex
	asked  []string // requests of the service to the homeserver
	people map[string]*person
	chief  *person // administrator of the server and of the company, and no part of it
}

// newWorld starts both servers on empty databases.
func newWorld(t testing.TB, options ...func(*appservice.Options)) *world {
	t.Helper()
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "first-passwords"), asDSN: sqldbtest.DSN(t), people: map[string]*person{}}
	w.hsAddr, w.asAddr = freeport.Address(t), freeport.Address(t)
	w.url = "http://" + w.hsAddr
	w.reg = appservice.NewRegistration(serverName, "http://"+w.asAddr)
	yaml, err := w.reg.YAML()
	if err != nil {
		t.Fatal(err)
	}
	own, err := accounts.ParseRegistration(yaml)
	if err != nil {
		t.Fatal(err)
	}
	w.hsOpts = homeserver.Options{
		ServerName: serverName, DataDir: t.TempDir(), Database: sqldbtest.DSN(t), Version: "test",
		Passwords: accounts.PasswordCost{MemoryKiB: 64, Passes: 1}, ApplicationServices: []*accounts.ApplicationService{own},
	}
	w.asOpts = appservice.Options{
		ServerName: serverName, Registration: w.reg, HomeserverURL: w.url, Admins: []string{"@chief:" + serverName},
		LoginRule: "pinyin", PasswordsDir: w.dir, PublicURL: w.url,
	}
	for _, o := range options {
		o(&w.asOpts)
	}
	w.startHS()
	w.startAS()
	t.Cleanup(func() { w.stopAS(); w.stopHS() })
	if err := w.hs.Accounts().Create(t.Context(), accounts.NewUser{ID: "@chief:" + serverName, Password: "the chief's own", Admin: true}); err != nil {
		t.Fatal(err)
	}
	w.chief = w.logIn("chief", "the chief's own")
	return w
}

// background serves a handler and runs a server; the function it returns ends both as SIGTERM does.
func (w *world) background(addr string, h http.Handler, run func(context.Context) error, end func()) (stop func()) {
	w.t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	web := &http.Server{Handler: h}
	go web.Serve(ln)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			w.t.Errorf("a server ended: %v", err)
		}
	}()
	return sync.OnceFunc(func() {
		cancel()
		<-done
		web.Close()
		end()
	})
}

func (w *world) startHS() {
	w.t.Helper()
	hs, err := homeserver.New(context.Background(), w.hsOpts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.hs = hs
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/_carillon/") {
			w.svc.Handler().ServeHTTP(rw, r)
			return
		}
		if r.Header.Get("Authorization") == "Bearer "+w.reg.ASToken {
			w.mu.Lock()
			w.asked = append(w.asked, r.Method+" "+r.URL.Path)
			w.mu.Unlock()
		}
		hs.Handler().ServeHTTP(rw, r)
	})
	w.stopHS = w.background(w.hsAddr, handler, hs.Run, func() { hs.Close() })
}

func (w *world) startAS() {
	w.t.Helper()
	var db *sqldb.DB
	var err error
	for range 200 { // a PostgreSQL server takes a moment to notice that its client has gone
		if db, err = sqldb.Open(w.asDSN); !errors.Is(err, sqldb.ErrInUse) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	opts := w.asOpts
	opts.DB = db
	svc, err := appservice.New(context.Background(), opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.svc = svc
	w.stopAS = w.background(w.asAddr, w.repeating(svc.Handler()), func(ctx context.Context) error {
		err := svc.Run(ctx)
		return errors.Join(err, svc.Drain(context.Background()))
	}, func() { db.Close() })
}

// restart ends the service, whatever it is doing, and starts it again. change, if not nil, changes its options.
func (w *world) restart(change func(*appservice.Options)) {
	w.t.Helper()
	w.stopAS()
	if change != nil {
		change(&w.asOpts)
	}
	w.startAS()
}

// repeating brings a transaction, when repeat is set, again under its name, as after a lost answer, and again under
// another name, as from a homeserver that has forgotten its count.
func (w *world) repeating(h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut || !w.repeat.Load() || !strings.Contains(r.URL.Path, "/transactions/") {
			h.ServeHTTP(rw, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		for _, more := range []string{"", "", "-again"} {
			again := r.Clone(r.Context())
			again.URL.Path += more
			again.URL.RawPath = ""
			again.Body = io.NopCloser(bytes.NewReader(body))
			var to http.ResponseWriter = rw
			if more == "" {
				to = discard{http.Header{}}
			}
			h.ServeHTTP(to, again)
		}
	})
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// requests are what the service has asked of the homeserver since the last look, beside whose token a token is.
func (w *world) requests() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.asked
	w.asked = nil
	return out
}

// answer is the answer of the API.
type answer struct {
	status int
	body   map[string]any
}

// call makes a request with somebody's token.
func call(ctx context.Context, url, token, method, path, contentType string, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		err = json.Unmarshal(b, &a.body)
	}
	return a, err
}

// api calls /_carillon/v1 and does not judge the answer.
func (w *world) api(token, method, path string, in any) answer {
	w.t.Helper()
	var body []byte
	if in != nil {
		body = mustJSON(in)
	}
	a, err := call(w.t.Context(), w.url, token, method, "/_carillon/v1"+path, "application/json", body)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// must is api for what has to succeed.
func (w *world) must(token, method, path string, in any) map[string]any {
	w.t.Helper()
	a := w.api(token, method, path, in)
	if a.status/100 != 2 {
		w.t.Fatalf("%s %s: %d %v", method, path, a.status, a.body)
	}
	return a.body
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// file writes a company as a file.
func file(t testing.TB, imp *org.Import, format string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := imp.Write(&b, format); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// imported is what the administrator reads after an import, and what the run of the rooms has done.
type imported struct {
	answer
	operations int
	failed     string
}

// upload hands a company file in, as the administrator does, and waits until the rooms follow.
func (w *world) upload(data []byte, query string) imported {
	w.t.Helper()
	a, err := call(w.t.Context(), w.url, w.chief.AccessToken, http.MethodPost, "/_carillon/v1/org/import?"+query, "application/octet-stream", data)
	if err != nil {
		w.t.Fatal(err)
	}
	out := imported{answer: a}
	if job, ok := a.body["job"].(map[string]any); ok {
		out.operations, out.failed = w.follow(job["id"].(string))
	}
	return out
}

// follow waits for the end of a run.
func (w *world) follow(job string) (operations int, failed string) {
	w.t.Helper()
	w.eventually("the rooms follow the company", func() bool {
		st := w.must(w.chief.AccessToken, http.MethodGet, "/org/jobs/"+job, nil)
		if st["state"] != "done" && st["state"] != "failed" {
			return false
		}
		failed, _ = st["error"].(string)
		if r, ok := st["report"].(map[string]any); ok {
			operations = int(r["operations"].(float64))
		}
		return true
	})
	return operations, failed
}

// reconcile makes the rooms follow the company again, as the administrator may order.
func (w *world) reconcile(verify string) (operations int) {
	w.t.Helper()
	job := w.must(w.chief.AccessToken, http.MethodPost, "/org/reconcile?verify="+verify, nil)
	operations, failed := w.follow(job["id"].(string))
	if failed != "" {
		w.t.Fatal(failed)
	}
	return operations
}

// company imports a company and fails if anything is not as it should be.
func (w *world) company(imp *org.Import) imported {
	w.t.Helper()
	out := w.upload(file(w.t, imp, org.FormatCSV), "remove_missing=true&force=true")
	if out.status != http.StatusOK || out.failed != "" {
		w.t.Fatalf("importing: %d %v %s", out.status, out.body, out.failed)
	}
	return out
}

// eventually waits for what the background brings about.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	eventually(w.t, what, ok)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	pause := 2 * time.Millisecond
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(pause) {
		pause = min(2*pause, 50*time.Millisecond)
		if time.Now().After(deadline) {
			t.Fatal("it did not come about: " + what)
		}
	}
}

// passwords are the first passwords in the files for HR, by job number. A person has one line.
func passwords(t testing.TB, dir string) map[string][]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.csv"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	found := map[string][]string{}
	for _, name := range files {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("others can read the first passwords: %v %v", st.Mode(), err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := csv.NewReader(f).ReadAll()
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows[1:] {
			found[row[0]] = append(found[row[0]], row[3])
		}
	}
	return found
}

// unit is the room of a unit.
func (w *world) unit(unit string) id.RoomID {
	w.t.Helper()
	room, ok := w.svc.Rooms().UnitRoom(unit)
	if !ok {
		w.t.Fatalf("%s has no room", unit)
	}
	return room
}

// events are all events of a room in their order, as the bot sees them.
func (w *world) events(room id.RoomID) []*event.Event {
	w.t.Helper()
	return roomEvents(w.t, w.svc.Client().Bot(), room)
}

// joined are the local names of a room's members, sorted, without the bot.
func (w *world) joined(room id.RoomID) []string {
	var out []string
	for _, u := range w.hs.Rooms().JoinedMembers(matrix.RoomID(room)) {
		if name := u.Localpart(); name != "carillon" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
