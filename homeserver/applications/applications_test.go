package applications_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/applications"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/carillon-chat/carillon/homeserver/typing"
)

const server = matrix.ServerName("here.test")

// world is a log with all that services are told of, and one service.
type world struct {
	t        testing.TB
	db       *sqldb.DB
	log      *stream.Log
	store    *events.Store
	receipts *receipts.Receipts
	typing   *typing.Typing
	apps     *applications.Applications
	signer   events.Signer
	depth    int64
	stop     func()
}

func newWorld(t testing.TB, db *sqldb.DB, opts applications.Options) *world {
	t.Helper()
	ctx := context.Background()
	w := &world{t: t, db: db}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.log, err = stream.Open(ctx, db)
	must(err)
	w.store, err = events.New(ctx, db)
	must(err)
	must(state.Migrate(ctx, db))
	h := hub.New(w.log, server)
	data, err := accountdata.New(ctx, db, w.log)
	must(err)
	w.receipts, err = receipts.New(ctx, db, w.log, server, receipts.NewPlaces(w.store, w.log), h, data, nil)
	must(err)
	w.typing = typing.New(w.log, h, server, nil)
	opts.Server = server
	w.apps, err = applications.New(ctx, db, w.log, applications.Sources{
		Events: w.store, Hub: h, Receipts: w.receipts, Typing: w.typing,
	}, opts)
	must(err)
	_, key, _ := ed25519.GenerateKey(nil)
	w.signer = events.Signer{Server: server, KeyID: "ed25519:t", Key: key}
	runCtx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{w.log.Run, w.apps.Run, w.typing.Run} {
		wg.Add(1)
		go func() { defer wg.Done(); _ = run(runCtx) }()
	}
	var once sync.Once
	w.stop = func() { once.Do(func() { cancel(); wg.Wait() }) }
	t.Cleanup(w.stop)
	return w
}

// put appends events of one room and returns their IDs.
func (w *world) put(protos ...events.Proto) []matrix.EventID {
	w.t.Helper()
	built := make([]*events.Event, len(protos))
	ids := make([]matrix.EventID, len(protos))
	for i, p := range protos {
		w.depth++
		p.Version, p.Time, p.Depth = "11", time.Now(), w.depth
		e, err := events.Build(p, w.signer)
		if err != nil {
			w.t.Fatal(err)
		}
		built[i], ids[i] = e, e.ID
	}
	_, err := w.log.Append(context.Background(), len(built), func(tx *sqldb.Tx, first stream.Pos) ([]stream.Change, error) {
		changes := make([]stream.Change, len(built))
		for i, e := range built {
			pos := first + stream.Pos(i)
			p := e.Placed(int64(pos), pos, 0)
			if err := w.store.Insert(tx, p); err != nil {
				return nil, err
			}
			if p.StateKey != nil {
				if err := state.Set(tx, p.Room, pos, state.Key{Type: p.Type, StateKey: *p.StateKey}, p.NID, p.Membership); err != nil {
					return nil, err
				}
			}
			changes[i] = stream.Change{Pos: pos, Kind: stream.KindEvent, Room: p.Room, User: p.Sender, Payload: p}
		}
		return changes, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return ids
}

func message(room matrix.RoomID, sender matrix.UserID, body string) events.Proto {
	c, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	return events.Proto{Room: room, Sender: sender, Type: "m.room.message", Content: c}
}

func member(room matrix.RoomID, user matrix.UserID, membership string) events.Proto {
	key := string(user)
	return events.Proto{
		Room: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: fmt.Appendf(nil, `{"membership":%q}`, membership),
	}
}

// fake is an application service.
type fake struct {
	mu     sync.Mutex
	status int
	txns   []txn
	seen   map[string]bool
	users  map[string]bool
	tokens []string
	news   chan struct{}
}

type txn struct {
	id        string
	Events    []map[string]any `json:"events"`
	Ephemeral []struct {
		Type    string          `json:"type"`
		Room    string          `json:"room_id"`
		Content json.RawMessage `json:"content"`
	} `json:"ephemeral"`
}

func newFake() *fake {
	return &fake{status: 200, seen: map[string]bool{}, news: make(chan struct{}, 1)}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens = append(f.tokens, r.Header.Get("Authorization"))
	switch {
	case strings.HasPrefix(r.URL.Path, "/_matrix/app/v1/transactions/"):
		id := strings.TrimPrefix(r.URL.Path, "/_matrix/app/v1/transactions/")
		t := txn{id: id}
		if json.NewDecoder(r.Body).Decode(&t) != nil {
			w.WriteHeader(400)
			return
		}
		if f.status != 200 {
			w.WriteHeader(f.status)
			f.txns = append(f.txns, txn{id: id})
		} else if !f.seen[id] {
			f.seen[id] = true
			f.txns = append(f.txns, t)
		}
		select {
		case f.news <- struct{}{}:
		default:
		}
	case strings.HasPrefix(r.URL.Path, "/_matrix/app/v1/users/"):
		if !f.users[strings.TrimPrefix(r.URL.Path, "/_matrix/app/v1/users/")] {
			w.WriteHeader(404)
		}
	case r.URL.Path == "/_matrix/app/v1/thirdparty/protocol/irc":
		_, _ = io.WriteString(w, `{"user_fields":["nick"],"location_fields":[],"icon":"mxc://a/b","field_types":{},"instances":[{"network_id":"libera","desc":"Libera","fields":{}}]}`)
		return
	case r.URL.Path == "/_matrix/app/v1/thirdparty/user/irc" && r.URL.Query().Get("nick") == "bob":
		_, _ = io.WriteString(w, `[{"userid":"@irc_bob:here.test","protocol":"irc","fields":{"nick":"bob"}}]`)
		return
	case r.URL.Path == "/_matrix/app/v1/thirdparty/location" && r.URL.Query().Get("alias") == "#irc_x:here.test":
		_, _ = io.WriteString(w, `[{"alias":"#irc_x:here.test","protocol":"irc","fields":{}}]`)
		return
	case r.URL.Path == "/_matrix/app/v1/ping":
		b, _ := io.ReadAll(r.Body)
		if f.status != 200 || string(b) != `{"transaction_id":"x"}` {
			w.WriteHeader(500)
			_, _ = w.Write(b)
			return
		}
	default:
		w.WriteHeader(404)
	}
	_, _ = io.WriteString(w, `{}`)
}

// RoundTrip makes a fake an in-memory transport.
func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	f.ServeHTTP(rec, r)
	return rec.Result(), nil
}

func (f *fake) bodies() (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.txns {
		for _, e := range t.Events {
			c, _ := e["content"].(map[string]any)
			if b, ok := c["body"].(string); ok {
				out = append(out, b)
			} else {
				out = append(out, fmt.Sprint(e["state_key"], " ", c["membership"]))
			}
		}
	}
	return out
}

func (f *fake) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-f.news:
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s: never happened; bodies %d", what, len(f.bodies()))
		}
	}
}

func (f *fake) set(status int) { f.mu.Lock(); f.status = status; f.mu.Unlock() }

func registration(t testing.TB, yaml string) *accounts.ApplicationService {
	t.Helper()
	as, err := accounts.ParseRegistration([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return as
}

const bridge = `
id: bridge
url: null
as_token: as
hs_token: secret
sender_localpart: bot
receive_ephemeral: true
protocols: [irc]
namespaces:
  users: [{exclusive: true, regex: "@irc_.*:here\\.test"}]
  rooms: [{exclusive: false, regex: "!special.*"}]
`

func withFake(t testing.TB, f *fake) applications.Options {
	return applications.Options{
		Services: []*accounts.ApplicationService{registration(t, bridge)}, Transports: map[string]http.RoundTripper{"bridge": f},
	}
}

func TestInterest(t *testing.T) {
	t.Parallel()
	f := newFake()
	w := newWorld(t, sqldbtest.Open(t), withFake(t, f))
	const alice, ghost = matrix.UserID("@alice:here.test"), matrix.UserID("@irc_bob:here.test")
	w.put(member("!a:here.test", alice, "join"), message("!a:here.test", alice, "nobody hears"))
	w.put(member("!a:here.test", ghost, "join"), message("!a:here.test", alice, "one"))
	w.put(message("!special:here.test", alice, "by room"))
	w.put(message("!b:here.test", ghost, "by sender"), message("!b:here.test", "@irc_x:else.test", "other server"))
	w.put(message("!b:here.test", "@bot:here.test", "by the bot"), message("!b:here.test", "@bot:else.test", "another's bot"))
	w.put(member("!a:here.test", ghost, "leave"), message("!a:here.test", alice, "too late"), message("!a:here.test", ghost, "end"))
	f.until(t, "the last event", func() bool { b := f.bodies(); return len(b) > 0 && b[len(b)-1] == "end" })
	want := []string{string(ghost) + " join", "one", "by room", "by sender", "by the bot", string(ghost) + " leave", "end"}
	if got := f.bodies(); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, tok := range f.tokens {
		if tok != "Bearer secret" {
			t.Errorf("token %q", tok)
		}
	}
	e := f.txns[0].Events[0]
	if e["room_id"] != "!a:here.test" || e["event_id"] == nil || e["unsigned"] == nil {
		t.Errorf("event %v", e)
	}
}

func TestEphemeral(t *testing.T) {
	t.Parallel()
	f := newFake()
	w := newWorld(t, sqldbtest.Open(t), withFake(t, f))
	const alice, ghost = matrix.UserID("@alice:here.test"), matrix.UserID("@irc_bob:here.test")
	w.put(member("!a:here.test", alice, "join"), member("!a:here.test", ghost, "join"), member("!z:here.test", alice, "join"))
	ids := w.put(message("!a:here.test", alice, "hi"), message("!z:here.test", alice, "elsewhere"))
	ctx := context.Background()
	for _, r := range []struct {
		user  matrix.UserID
		room  matrix.RoomID
		typ   string
		event matrix.EventID
	}{
		{alice, "!a:here.test", receipts.ReadPrivate, ids[0]}, // not the service's user
		{ghost, "!a:here.test", receipts.ReadPrivate, ids[0]},
		{alice, "!z:here.test", receipts.Read, ids[1]}, // not the service's room
		{alice, "!a:here.test", receipts.Read, ids[0]},
	} {
		if err := w.receipts.Mark(ctx, r.user, r.room, r.typ, r.event, ""); err != nil {
			t.Fatal(err)
		}
	}
	w.typing.Set(alice, "!z:here.test", true, time.Minute)
	w.typing.Set(alice, "!a:here.test", true, time.Minute)
	var got []string
	f.until(t, "receipts and typing", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		got = nil
		for _, x := range f.txns {
			for _, e := range x.Ephemeral {
				got = append(got, e.Type+" "+e.Room+" "+string(e.Content))
			}
		}
		all := strings.Join(got, "\n")
		return strings.Contains(all, "m.typing") && strings.Contains(all, `"m.read":{"@alice`)
	})
	all := strings.Join(got, "\n")
	for _, want := range []string{`m.receipt !a:here.test`, `"m.read.private":{"@irc_bob:here.test"`, `m.typing !a:here.test {"user_ids":["@alice:here.test"]}`} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is missing in\n%s", want, all)
		}
	}
	for _, not := range []string{"!z:", `"m.read.private":{"@alice`} {
		if strings.Contains(all, not) {
			t.Errorf("%s is in\n%s", not, all)
		}
	}
}

func TestRetryAndRestart(t *testing.T) {
	t.Parallel()
	db := sqldbtest.Open(t)
	f := newFake()
	f.set(503)
	w := newWorld(t, db, withFake(t, f))
	w.put(message("!special:here.test", "@a:here.test", "0"))
	f.until(t, "an attempt", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.txns) > 0 })
	f.mu.Lock()
	first := f.txns[0].id
	f.txns = nil
	f.mu.Unlock()
	for i := 1; i < 250; i++ {
		w.put(message("!special:here.test", "@a:here.test", fmt.Sprint(i)))
	}
	w.stop()
	f.mu.Lock()
	f.txns, f.status = nil, 200
	f.mu.Unlock()
	w = newWorld(t, db, withFake(t, f))
	w.put(message("!special:here.test", "@a:here.test", "250"))
	f.until(t, "all events", func() bool { return len(f.bodies()) >= 251 })
	for i, b := range f.bodies() {
		if b != fmt.Sprint(i) {
			t.Fatalf("event %d is %q", i, b)
		}
	}
	f.mu.Lock()
	if f.txns[0].id != first || len(f.txns[0].Events) != 1 {
		t.Errorf("the transaction came back as %s with %d events, was %s", f.txns[0].id, len(f.txns[0].Events), first)
	}
	n := 0
	for _, x := range f.txns {
		if len(x.Events) > 100 {
			t.Errorf("%d events in one transaction", len(x.Events))
		}
		n++
	}
	f.mu.Unlock()
	if n > 8 {
		t.Errorf("%d transactions for 251 events", n)
	}
	w.stop()
	// A clean restart repeats nothing.
	g := newFake()
	w = newWorld(t, db, withFake(t, g))
	w.put(message("!special:here.test", "@a:here.test", "251"))
	g.until(t, "the new event", func() bool { return len(g.bodies()) > 0 })
	if b := g.bodies(); !slices.Equal(b, []string{"251"}) {
		t.Errorf("after a clean restart: %q", b)
	}
}

// TestBulk is the whole staff of a company joining and reading.
func TestBulk(t *testing.T) {
	t.Parallel()
	f := newFake()
	w := newWorld(t, sqldbtest.Open(t), withFake(t, f))
	const n = 2000
	w.put(member("!all:here.test", "@bot:here.test", "join"))
	protos := make([]events.Proto, 0, 500)
	start := time.Now()
	for i := range n {
		protos = append(protos, member("!all:here.test", matrix.UserID(fmt.Sprintf("@u%d:here.test", i)), "join"))
		if len(protos) == cap(protos) {
			w.put(protos...)
			protos = protos[:0]
		}
	}
	f.until(t, "all joins", func() bool { return len(f.bodies()) == n+1 })
	t.Logf("%d member events in %s", n, time.Since(start))
	id := w.put(message("!all:here.test", "@bot:here.test", "read this"))[0]
	start = time.Now()
	var wg sync.WaitGroup
	for part := range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := part; i < n; i += 50 {
				if err := w.receipts.Mark(context.Background(), matrix.UserID(fmt.Sprintf("@u%d:here.test", i)), "!all:here.test", receipts.Read, id, ""); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	readers := map[string]bool{}
	done := 0
	f.until(t, "all receipts", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, x := range f.txns[done:] {
			for _, e := range x.Ephemeral {
				var c map[string]map[string]map[string]any
				if json.Unmarshal(e.Content, &c) != nil {
					continue
				}
				for u := range c[string(id)]["m.read"] {
					readers[u] = true
				}
			}
		}
		done = len(f.txns)
		return len(readers) == n
	})
	t.Logf("%d receipts in %s, %d transactions in all", n, time.Since(start), done)
}

func TestQueriesAndPing(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.users = map[string]bool{"@irc_known:here.test": true}
	far := httptest.NewServer(f)
	t.Cleanup(far.Close)
	opts := applications.Options{Services: []*accounts.ApplicationService{
		registration(t, strings.Replace(bridge, "url: null", "url: "+far.URL, 1)),
		registration(t, "id: silent\nurl: null\nas_token: a2\nhs_token: h2\nsender_localpart: silent\n"),
	}}
	w := newWorld(t, sqldbtest.Open(t), opts)
	for user, want := range map[matrix.UserID]bool{"@irc_known:here.test": true, "@irc_other:here.test": false, "@alice:here.test": false} {
		if got, err := w.apps.QueryUser(context.Background(), user); got != want || err != nil {
			t.Errorf("%s: %v %v", user, got, err)
		}
	}
	api := httpapi.New(httpapi.Options{Authenticator: asToken{}})
	api.Add(w.apps.Routes()...)
	srv := httptest.NewServer(api)
	t.Cleanup(srv.Close)
	ping := func(id, token string) (int, string) {
		req, _ := http.NewRequest("POST", srv.URL+"/_matrix/client/v1/appservice/"+id+"/ping", strings.NewReader(`{"transaction_id":"x"}`))
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if status, body := ping("bridge", "bridge"); status != 200 || !strings.Contains(body, "duration_ms") {
		t.Errorf("ping: %d %s", status, body)
	}
	if status, body := ping("bridge", "silent"); status != 403 || !strings.Contains(body, "M_FORBIDDEN") {
		t.Errorf("another's ping: %d %s", status, body)
	}
	if status, body := ping("silent", "silent"); status != 400 || !strings.Contains(body, "M_URL_NOT_SET") {
		t.Errorf("without a URL: %d %s", status, body)
	}
	f.set(500)
	if status, body := ping("bridge", "bridge"); status != 502 || !strings.Contains(body, "M_BAD_STATUS") || !strings.Contains(body, `"status":500`) {
		t.Errorf("bad status: %d %s", status, body)
	}
	far.Close()
	if status, body := ping("bridge", "bridge"); status != 502 || !strings.Contains(body, "M_CONNECTION_FAILED") {
		t.Errorf("unreachable: %d %s", status, body)
	}
	if _, err := w.apps.QueryUser(context.Background(), "@irc_known:here.test"); err == nil {
		t.Error("a query to a dead service gave no error")
	}
}

func TestThirdParty(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqldbtest.Open(t), withFake(t, newFake()))
	api := httpapi.New(httpapi.Options{Authenticator: asToken{}})
	api.Add(w.apps.Routes()...)
	for path, want := range map[string]string{
		"/protocols":                         `"instance_id":"bridge|libera"`,
		"/protocol/irc":                      `"user_fields":["nick"]`,
		"/protocol/sip":                      `M_NOT_FOUND`,
		"/user/irc?nick=bob":                 `"userid":"@irc_bob:here.test"`,
		"/user/irc?nick=eve":                 `M_NOT_FOUND`,
		"/user/sip?nick=bob":                 `M_NOT_FOUND`,
		"/location?alias=%23irc_x:here.test": `"alias":"#irc_x:here.test"`,
		"/location?alias=%23y:here.test":     `M_NOT_FOUND`,
		"/location":                          `M_MISSING_PARAM`,
		"/user":                              `M_MISSING_PARAM`,
	} {
		rec := httptest.NewRecorder()
		api.ServeHTTP(rec, httptest.NewRequest("GET", "/_matrix/client/v3/thirdparty"+path, nil))
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
}

// asToken takes the token for the service's ID.
type asToken struct{}

func (asToken) Authenticate(r *http.Request) (*httpapi.Caller, error) {
	return &httpapi.Caller{AppService: strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")}, nil
}
