package hstest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/test/freeport"
)

// childEnv tells the test binary to be a server instead, one that can be killed.
const childEnv = "CARILLON_TEST_CHILD"

type child struct{ Database, DataDir, Addr string }

func TestMain(m *testing.M) {
	if c := os.Getenv(childEnv); c != "" {
		if err := serveChild(c); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// The servers mostly wait for the disk and for each other. On PostgreSQL each
	// may have some twenty connections.
	flag.Parse()
	n := "8"
	if os.Getenv("CARILLON_TEST_POSTGRES") != "" {
		n = "4"
	}
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(n); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

func serveChild(conf string) error {
	var c child
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		return err
	}
	log.SetOutput(io.Discard)
	hs, err := homeserver.New(context.Background(), homeserver.Options{
		ServerName: "a.example", DataDir: c.DataDir, Database: c.Database, Version: "test", Presence: true,
		Registration: accounts.Registration{Enabled: true, Dummy: true}, Passwords: accounts.PasswordCost{MemoryKiB: 64, Passes: 1},
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Addr)
	if err != nil {
		return err
	}
	go http.Serve(l, hs.Handler()) //nolint:gosec // killed in the end
	return hs.Run(context.Background())
}

// victim is a server that is killed and started again.
type victim struct {
	t    *testing.T
	conf child
	cmd  *exec.Cmd
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{t: t, conf: child{sqldbtest.DSN(t), t.TempDir(), freeport.Address(t)}}
	t.Cleanup(v.kill)
	return v
}

func (v *victim) start() {
	v.t.Helper()
	raw, err := json.Marshal(v.conf)
	if err != nil {
		v.t.Fatal(err)
	}
	v.cmd = exec.Command(os.Args[0])
	v.cmd.Env = append(os.Environ(), childEnv+"="+string(raw))
	v.cmd.Stderr = os.Stderr
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if a, err := v.do("", "GET", "/_matrix/client/versions", nil); err == nil && a.Status == 200 {
			return
		}
		if time.Now().After(end) {
			v.t.Fatal("the server does not come up")
		}
	}
}

// kill ends the server without a warning.
func (v *victim) kill() {
	if v.cmd != nil {
		_ = v.cmd.Process.Signal(syscall.SIGKILL)
		_ = v.cmd.Wait()
		v.cmd = nil
	}
}

// do makes a request; an error says that nobody knows whether it was done.
func (v *victim) do(token, method, path string, body any) (hstest.Answer, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return hstest.Answer{}, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://"+v.conf.Addr+path, r)
	if err != nil {
		return hstest.Answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return hstest.Answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return hstest.Answer{Status: resp.StatusCode, Header: resp.Header, Body: b}, err
}

// ok makes a request that must succeed.
func (v *victim) ok(token, method, path string, body any) gjson.Result {
	v.t.Helper()
	a, err := v.do(token, method, path, body)
	if err != nil || a.Status != 200 {
		v.t.Fatalf("%s %s: %v %d %s", method, path, err, a.Status, a.Body)
	}
	return gjson.ParseBytes(a.Body)
}

func (v *victim) register(name string) string {
	v.t.Helper()
	return v.ok("", "POST", hstest.Path("register"), map[string]any{
		"username": name, "password": "a good password", "auth": map[string]string{"type": "m.login.dummy"},
	}).Get("access_token").Str
}

// writer is one person who writes without pause.
type writer struct {
	token, room string
	n           int
	mu          sync.Mutex
	acked       map[string]string // transaction to event
	hanging     []string          // transactions without an answer
}

// write sends until the server is gone; each message has its transaction's name.
func (w *writer) write(v *victim, name string, acks chan<- struct{}) {
	for {
		txn := fmt.Sprintf("%s-%d", name, w.n)
		w.n++
		a, err := v.do(w.token, "PUT", hstest.Path("rooms", w.room, "send", "m.room.message", txn), text(txn))
		if err != nil {
			w.hanging = append(w.hanging, txn)
			return
		}
		if a.Status != 200 {
			v.t.Errorf("%s: %d %s", txn, a.Status, a.Body)
			return
		}
		w.mu.Lock()
		w.acked[txn] = a.Get("event_id").Str
		w.mu.Unlock()
		acks <- struct{}{}
	}
}

// follow reads a room by /sync until the server is gone.
func follow(v *victim, token, room string, since *string, seen *[]string) {
	for read(v, token, room, "1000", since, seen) {
	}
}

// read makes one /sync; false says that there was no answer.
func read(v *victim, token, room, timeout string, since *string, seen *[]string) bool {
	path := hstest.Path("sync") + "?timeout=" + timeout + `&filter={"room":{"timeline":{"limit":1000,"types":["m.room.message"]}}}`
	if *since != "" {
		path += "&since=" + *since
	}
	a, err := v.do(token, "GET", path, nil)
	if err != nil || a.Status != 200 {
		return false
	}
	*seen = append(*seen, eventIDs(a.Get("rooms.join."+gjson.Escape(room)+".timeline.events"))...)
	*since = a.Get("next_batch").Str
	return true
}

func TestKilledServerLosesNothing(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	v.start()
	alice := v.register("alice")
	var writers []*writer
	var rooms []string
	for i := range 3 {
		rooms = append(rooms, v.ok(alice, "POST", hstest.Path("createRoom"), map[string]any{"preset": "public_chat", "name": fmt.Sprint(i)}).Get("room_id").Str)
	}
	for i := range 6 {
		token := v.register(fmt.Sprint("writer", i))
		v.ok(token, "POST", hstest.Path("join", rooms[i%3]), map[string]any{})
		writers = append(writers, &writer{token: token, room: rooms[i%3], acked: map[string]string{}})
	}
	since, seen := "", []string{}
	for round := range 3 {
		acks := make(chan struct{}, 10_000)
		var busy sync.WaitGroup
		for i, w := range writers {
			busy.Go(func() { w.write(v, fmt.Sprint("w", i), acks) })
		}
		busy.Go(func() { follow(v, alice, rooms[0], &since, &seen) })
		for range 200 {
			<-acks
		}
		note := fmt.Sprint("round ", round)
		v.ok(alice, "PUT", hstest.Path("user", "@alice:a.example", "account_data", "note"), map[string]string{"note": note})
		v.kill()
		busy.Wait()
		v.start()
		if got := v.ok(alice, "GET", hstest.Path("user", "@alice:a.example", "account_data", "note"), nil).Get("note").Str; got != note {
			t.Errorf("acknowledged account data is %q, want %q", got, note)
		}
		for _, w := range writers {
			// What was acknowledged repeats, what was not is sent again.
			for txn, ev := range w.acked {
				if got := v.ok(w.token, "PUT", hstest.Path("rooms", w.room, "send", "m.room.message", txn), text(txn)).Get("event_id").Str; got != ev {
					t.Fatalf("round %d: transaction %s gave %s, now %s", round, txn, ev, got)
				}
			}
			for _, txn := range w.hanging {
				w.acked[txn] = v.ok(w.token, "PUT", hstest.Path("rooms", w.room, "send", "m.room.message", txn), text(txn)).Get("event_id").Str
			}
			w.hanging = nil
		}
	}
	for _, room := range rooms {
		checkRoom(t, v, alice, room, writers)
	}
	// The one who follows by /sync has everything, too, once.
	for last := -1; len(seen) != last; {
		last = len(seen)
		read(v, alice, rooms[0], "0", &since, &seen)
	}
	var sent []string
	for _, w := range writers {
		if w.room == rooms[0] {
			for _, ev := range w.acked {
				sent = append(sent, ev)
			}
		}
	}
	slices.Sort(sent)
	slices.Sort(seen)
	if !slices.Equal(seen, sent) {
		t.Errorf("by /sync %d events (%d different) were seen, %d were sent", len(seen), len(slices.Compact(slices.Clone(seen))), len(sent))
	}
}

// checkRoom compares a room's history with what its writers know.
func checkRoom(t *testing.T, v *victim, token, room string, writers []*writer) {
	t.Helper()
	want := map[string]string{} // event to text
	for _, w := range writers {
		if w.room == room {
			for txn, ev := range w.acked {
				want[ev] = txn
			}
		}
	}
	seen := map[string]int{}
	for from := ""; ; {
		r := v.ok(token, "GET", hstest.Path("rooms", room, "messages")+"?dir=f&limit=500&from="+from, nil)
		r.Get("chunk").ForEach(func(_, e gjson.Result) bool {
			if e.Get("type").Str == "m.room.message" {
				id := e.Get("event_id").Str
				if seen[id]++; want[id] != e.Get("content.body").Str {
					t.Errorf("%s holds %q, sent was %q", id, e.Get("content.body").Str, want[id])
				}
			}
			return true
		})
		if from = r.Get("end").Str; from == "" {
			break
		}
	}
	for ev, txn := range want {
		if seen[ev] != 1 {
			t.Errorf("%s (%s) is there %d times", ev, txn, seen[ev])
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%d messages are there, %d were sent", len(seen), len(want))
	}
}
