package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// board is a route that waits for a note, and says it.
type board struct {
	mu    sync.Mutex
	note  string
	waits map[*boardWait]func()
	began atomic.Int64
	ended atomic.Int64
}

type boardWait struct {
	b    *board
	user string
}

func (w *boardWait) Begin(wake func()) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	w.b.waits[w] = wake
	w.b.began.Add(1)
}

func (w *boardWait) Answer(_ context.Context, last bool) (any, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	switch {
	case w.b.note == "panic":
		panic("as asked")
	case w.b.note == "error":
		return nil, matrix.Forbidden("not you")
	case w.b.note != "" && w.user == "large":
		return httpapi.Raw(`"` + strings.Repeat("n", 8<<20) + `"`), nil
	case w.b.note != "":
		return httpapi.Raw(fmt.Sprintf(`{"for":%q,"note":%q}`, w.user, w.b.note)), nil
	case last:
		return httpapi.Raw(`{"last":true}`), nil
	}
	return nil, nil
}

func (w *boardWait) End() {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	delete(w.b.waits, w)
	w.b.ended.Add(1)
	if w.user == "breaks" {
		panic("at the end")
	}
}

// say sets the note and wakes everybody.
func (b *board) say(note string) {
	b.mu.Lock()
	b.note = note
	var fire []func()
	for _, wake := range b.waits {
		fire = append(fire, wake)
	}
	b.mu.Unlock()
	for _, wake := range fire {
		wake()
	}
}

func (b *board) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waits)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("not in time: " + what)
}

// park is a server whose /wait waits.
func park(t testing.TB, timeout time.Duration) (*httpapi.API, *board, string) {
	t.Helper()
	b := &board{waits: map[*boardWait]func(){}}
	api := httpapi.New(httpapi.Options{})
	wait := func(c *httpapi.Call) (any, error) {
		var body struct{ User string }
		if c.R.Method == http.MethodPost {
			if err := c.Body(&body); err != nil {
				return nil, err
			}
		}
		return httpapi.Held{Wait: &boardWait{b: b, user: c.Query("user") + body.User + c.R.Header.Get("X-Who")}, Timeout: timeout}, nil
	}
	api.Add(
		httpapi.Route{Method: "GET", Path: "/wait", Holds: true, Handler: wait},
		httpapi.Route{Method: "POST", Path: "/wait", Holds: true, Handler: wait},
		httpapi.Route{Method: "GET", Path: "/plain", Handler: func(c *httpapi.Call) (any, error) {
			return httpapi.Raw(`{"plain":"` + c.Query("q") + `"}`), nil
		}},
	)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pl := api.Listener(l)
	srv := &http.Server{Handler: api, ConnContext: pl.ConnContext}
	go srv.Serve(pl)
	t.Cleanup(func() { srv.Close() })
	return api, b, l.Addr().String()
}

// wire is a client's connection.
type wire struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return &wire{c, t, bufio.NewReader(c)}
}

func (w *wire) ask(lines ...string) {
	w.t.Helper()
	if _, err := io.WriteString(w, strings.Join(lines, "\r\n")+"\r\nHost: h\r\n\r\n"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) answer() (*http.Response, string) {
	w.t.Helper()
	r, err := http.ReadResponse(w.r, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return r, string(b)
}

func (w *wire) want(status int, body string) *http.Response {
	w.t.Helper()
	r, got := w.answer()
	if r.StatusCode != status || !strings.Contains(got, body) {
		w.t.Fatalf("answer %d %s, want %d %s", r.StatusCode, got, status, body)
	}
	return r
}

func TestParkedConnectionTakesTurns(t *testing.T) {
	_, b, addr := park(t, time.Minute)
	w := dial(t, addr)
	for i := range 3 { // taken over, and asked again on the same connection with the same headers
		b.say("")
		w.ask(fmt.Sprintf("GET /wait?user=u%d HTTP/1.1", i), "X-A: 1")
		eventually(t, "a wait", func() bool { return b.waiting() == 1 })
		b.say("hi")
		r := w.want(200, fmt.Sprintf(`{"for":"u%d","note":"hi"}`, i))
		if r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Access-Control-Allow-Origin") != "*" || r.Header.Get("Date") == "" {
			t.Fatalf("headers %v", r.Header)
		}
		eventually(t, "the end", func() bool { return b.waiting() == 0 })
	}
	w.ask("GET /wait?user=now HTTP/1.1", "X-A: 2") // other headers, an answer at once
	w.want(200, `{"for":"now"`)
	w.ask("GET /plain?q=1 HTTP/1.1", "X-A: 2") // given back
	w.want(200, `{"plain":"1"}`)
	b.say("")
	body := `{"User":"post"}`
	fmt.Fprintf(w, "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	eventually(t, "a wait", func() bool { return b.waiting() == 1 })
	b.say("again")
	w.want(200, `{"for":"post","note":"again"}`)
	fmt.Fprintf(w, "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:5])
	time.Sleep(20 * time.Millisecond)
	io.WriteString(w, body[5:]) // the body comes later than the head
	w.want(200, `{"for":"post","note":"again"}`)
	w.ask("GET /nothing HTTP/1.1")
	w.want(404, "M_UNRECOGNIZED")
}

// What one request said in its head is not taken for the next one's.
func TestParkedHeadersAreTheirOwn(t *testing.T) {
	for name, second := range map[string][]string{
		"left out":           {"X-A: 1"},
		"another instead":    {"X-A: 1", "X-B: alice"},
		"another twice":      {"X-A: 1", "X-A: 1"},
		"empty":              {"X-A: 1", "X-Who: "},
		"other case":         {"X-A: 1", "x-who: "},
		"space before colon": {"X-A: 1", "X-Who : alice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, b, addr := park(t, time.Minute)
			w := dial(t, addr)
			w.ask("GET /wait HTTP/1.1", "X-A: 1", "X-Who: alice")
			eventually(t, "a wait", func() bool { return b.waiting() == 1 })
			b.say("n")
			w.want(200, `{"for":"alice"`)
			w.ask(append([]string{"GET /wait HTTP/1.1"}, second...)...)
			if r, got := w.answer(); strings.Contains(got, "alice") || r.StatusCode == 200 && !strings.Contains(got, `"for":""`) {
				t.Fatalf("answered %d %s", r.StatusCode, got)
			}
		})
	}
	_, b, addr := park(t, time.Minute)
	w := dial(t, addr)
	w.ask("GET /wait HTTP/1.1", "X-A: 1", "X-Who: alice")
	eventually(t, "a wait", func() bool { return b.waiting() == 1 })
	b.say("n")
	w.want(200, `{"for":"alice"`)
	w.ask("GET /wait?user=again HTTP/1.1", "x-who: alice", "X-A: 1") // the same, in another order
	w.want(200, `{"for":"againalice"`)
	w.ask("GET /wait HTTP/1.1", "X-A: 1", "X-Who: bob")
	w.want(200, `{"for":"bob"`)
}

func TestParkedPipeline(t *testing.T) {
	_, b, addr := park(t, time.Minute)
	w := dial(t, addr)
	one := "GET /wait?user=%d HTTP/1.1\r\nHost: h\r\n\r\n"
	fmt.Fprintf(w, one+one+one+"GET /plain?q=2 HTTP/1.1\r\nHost: h\r\n\r\n"+one, 1, 2, 3, 4)
	eventually(t, "a wait", func() bool { return b.waiting() == 1 })
	b.say("x")
	for i := 1; i <= 3; i++ {
		w.want(200, fmt.Sprintf(`"for":"%d"`, i))
	}
	w.want(200, `{"plain":"2"}`)
	w.want(200, `"for":"4"`)
}

func TestParkedEnds(t *testing.T) {
	t.Run("timeout", func(t *testing.T) {
		_, b, addr := park(t, 50*time.Millisecond)
		w := dial(t, addr)
		for range 3 {
			w.ask("GET /wait HTTP/1.1")
			w.want(200, `{"last":true}`)
		}
		eventually(t, "nobody waits", func() bool { return b.waiting() == 0 })
	})
	t.Run("error and panic", func(t *testing.T) {
		api, b, addr := park(t, time.Minute)
		w := dial(t, addr)
		w.ask("GET /wait HTTP/1.1")
		eventually(t, "a wait", func() bool { return b.waiting() == 1 })
		b.say("error")
		w.want(403, "M_FORBIDDEN")
		b.say("")
		w.ask("GET /wait HTTP/1.1")
		eventually(t, "a wait", func() bool { return b.waiting() == 1 })
		b.say("panic")
		w.want(500, "M_UNKNOWN")
		b.say("fine")
		w.ask("GET /wait HTTP/1.1")
		w.want(200, "fine")
		if api.Panics() != 1 {
			t.Fatalf("%d panics", api.Panics())
		}
	})
	t.Run("panic behind the answer", func(t *testing.T) {
		api, b, addr := park(t, time.Minute)
		w, other := dial(t, addr), dial(t, addr)
		w.ask("GET /wait?user=breaks HTTP/1.1")
		other.ask("GET /wait?user=other HTTP/1.1")
		eventually(t, "both wait", func() bool { return b.waiting() == 2 })
		b.say("x")
		w.want(200, "breaks")
		other.want(200, "other")
		if _, err := w.r.ReadByte(); err == nil {
			t.Error("the connection goes on after a panic")
		}
		other.ask("GET /wait?user=again HTTP/1.1") // nobody else has noticed
		other.want(200, "again")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := api.Drain(ctx); err != nil || api.Panics() != 1 {
			t.Errorf("%d panics, %v", api.Panics(), err)
		}
	})
	t.Run("client gone", func(t *testing.T) {
		api, b, addr := park(t, time.Minute)
		for range 20 {
			w := dial(t, addr)
			w.ask("GET /wait HTTP/1.1")
			defer w.Close()
		}
		eventually(t, "all wait", func() bool { return b.waiting() == 20 })
		gone := dial(t, addr)
		gone.ask("GET /wait HTTP/1.1")
		eventually(t, "one more", func() bool { return b.waiting() == 21 })
		gone.Close()
		eventually(t, "the one that left is let go of", func() bool { return b.waiting() == 20 && api.InFlight() == 20 })
	})
	t.Run("shutdown", func(t *testing.T) {
		api, b, addr := park(t, time.Minute)
		w, idle := dial(t, addr), dial(t, addr)
		for _, c := range []*wire{w, idle} {
			c.ask("GET /wait HTTP/1.1")
		}
		eventually(t, "both wait", func() bool { return b.waiting() == 2 })
		b.say("x")
		w.want(200, "x")
		idle.want(200, "x")
		eventually(t, "both ended", func() bool { return b.ended.Load() == 2 })
		b.say("")
		w.ask("GET /wait HTTP/1.1")
		eventually(t, "one waits", func() bool { return b.waiting() == 1 })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := api.Drain(ctx); err != nil {
			t.Fatal(err)
		}
		if r := w.want(200, `{"last":true}`); !r.Close {
			t.Fatal("the connection is kept at shutdown")
		}
		for _, c := range []*wire{w, idle} {
			if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
				t.Fatalf("the connection is still open: %v", err)
			}
		}
		if b.began.Load() != b.ended.Load() {
			t.Fatalf("%d began, %d ended", b.began.Load(), b.ended.Load())
		}
	})
}

func TestParkedLargeAnswerToSlowClient(t *testing.T) {
	_, b, addr := park(t, time.Minute)
	slow := dial(t, addr)
	slow.ask("GET /wait?user=large HTTP/1.1")
	var quick []*wire
	for range 40 { // more than there are runners
		w := dial(t, addr)
		w.ask("GET /wait?user=quick HTTP/1.1")
		quick = append(quick, w)
	}
	eventually(t, "all wait", func() bool { return b.waiting() == 41 })
	b.say("x")
	for _, w := range quick {
		w.want(200, `"for":"quick"`)
	}
	slow.want(200, strings.Repeat("n", 8<<20))
	slow.ask("GET /plain?q=after HTTP/1.1")
	slow.want(200, "after")
}

// TestParkedAsPlain sends what is unusual on a parked connection and on a new one: the answers are the same.
func TestParkedAsPlain(t *testing.T) {
	_, b, addr := park(t, time.Minute)
	get := "GET /wait HTTP/1.1\r\nHost: h\r\n"
	for name, raw := range map[string]string{
		"bare line ends":   "GET /wait HTTP/1.1\nHost: h\n\n",
		"mixed line ends":  "GET /wait HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
		"folded header":    get + "X: a\r\n b\r\n\r\n",
		"no host":          "GET /wait HTTP/1.1\r\n\r\n",
		"two hosts":        get + "Host: i\r\n\r\n",
		"http 1.0":         "GET /wait HTTP/1.0\r\nHost: h\r\n\r\n",
		"absolute form":    "GET http://h/wait?user=abs HTTP/1.1\r\nHost: h\r\n\r\n",
		"close":            get + "Connection: close\r\n\r\n",
		"chunked":          "POST /wait HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n{\"User\":\"cc\"}\r\n0\r\n\r\n",
		"both lengths":     "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":      "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
		"negative length":  "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: -2\r\n\r\n{}",
		"huge length":      "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n{}",
		"control in url":   "GET /wait?\x01 HTTP/1.1\r\nHost: h\r\n\r\n",
		"bytes in header":  get + "X: \xff\xfe\r\n\r\n",
		"nul in header":    get + "X: a\x00\r\n\r\n",
		"bad escape":       "GET /wait%zz HTTP/1.1\r\nHost: h\r\n\r\n",
		"not text":         "GET /wait?user=%ff HTTP/1.1\r\nHost: h\r\n\r\n",
		"no method":        " /wait HTTP/1.1\r\nHost: h\r\n\r\n",
		"lower case":       "get /wait HTTP/1.1\r\nHost: h\r\n\r\n",
		"other method":     "DELETE /wait HTTP/1.1\r\nHost: h\r\n\r\n",
		"head":             "HEAD /wait HTTP/1.1\r\nHost: h\r\n\r\n",
		"expect":           "POST /wait HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
		"upgrade":          get + "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"no json":          "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{x",
		"garbage":          "\r\n\r\n\r\n\r\n",
		"very long header": get + "X: " + strings.Repeat("x", 70<<10) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			b.say("n")
			want := rest(t, addr, "", raw)
			got := rest(t, addr, get+"\r\n", raw, func() { eventually(t, "a wait", func() bool { return b.waiting() == 1 }); b.say("n") }, func() { b.say("") })
			if want != got {
				t.Fatalf("a new connection is answered\n%s\na parked one\n%s", want, got)
			}
		})
	}
}

// rest is what comes back for raw, without what differs between two answers, on a connection that has made the
// request first before. around are called when that waits, and before it is made.
func rest(t *testing.T, addr, first, raw string, around ...func()) string {
	t.Helper()
	w := dial(t, addr)
	if first != "" {
		around[1]()
		io.WriteString(w, first)
		around[0]()
		w.want(200, "n")
	}
	io.WriteString(w, raw)
	_ = w.Conn.(*net.TCPConn).CloseWrite()
	all, _ := io.ReadAll(w.r) // a reset is an end as well
	var out []string
	for _, line := range strings.Split(string(all), "\r\n") {
		if strings.HasPrefix(line, "Date: ") || strings.HasPrefix(line, "Cache-Control") {
			continue
		}
		out = append(out, line)
	}
	// The order of headers is no matter.
	head, body, _ := bytes.Cut([]byte(strings.Join(out, "\n")), []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	return fmt.Sprint(lines[0], " ", len(lines), " ", string(body))
}

func FuzzParkedBytes(f *testing.F) {
	_, b, addr := park(f, 20*time.Millisecond)
	b.say("n")
	f.Add([]byte("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n"))
	f.Add([]byte("\r\n\r\n"))
	f.Add([]byte("POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		w := dial(t, addr)
		b.say("")
		w.ask("GET /wait HTTP/1.1")
		w.want(200, `{"last":true}`) // so the connection has been parked
		w.Write(raw)
		_ = w.Conn.(*net.TCPConn).CloseWrite()
		for {
			r, err := http.ReadResponse(w.r, nil)
			if err != nil {
				break
			}
			if r.StatusCode >= 500 && r.StatusCode != 501 && r.StatusCode != 505 {
				t.Fatalf("status %d", r.StatusCode)
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				break
			}
		}
	})
}

func BenchmarkWakeParked(b *testing.B) {
	for _, parked := range []bool{true, false} {
		b.Run(fmt.Sprintf("parked=%t", parked), func(b *testing.B) {
			_, board, addr := park(b, time.Minute)
			if !parked {
				addr = plain(b, board)
			}
			const clients = 100
			var ws []*wire
			for range clients {
				ws = append(ws, dial(b, addr))
				_ = ws[len(ws)-1].SetDeadline(time.Time{})
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				board.say("")
				for _, w := range ws {
					w.ask("GET /wait?user=u HTTP/1.1", "Authorization: Bearer abcdefghijklmnopqrstuvwxyz", "User-Agent: x")
				}
				for board.waiting() < clients {
					time.Sleep(100 * time.Microsecond)
				}
				board.say("hi")
				for _, w := range ws {
					w.want(200, "hi")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*clients), "µs/client")
		})
	}
}

// plain serves the same board without a Listener.
func plain(b *testing.B, board *board) string {
	api := httpapi.New(httpapi.Options{})
	api.Add(httpapi.Route{Method: "GET", Path: "/wait", Holds: true, Handler: func(c *httpapi.Call) (any, error) {
		return httpapi.Held{Wait: &boardWait{b: board, user: c.Query("user")}, Timeout: time.Minute}, nil
	}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: api}
	go srv.Serve(l)
	b.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}
