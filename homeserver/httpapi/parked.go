package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	log "github.com/sirupsen/logrus"
)

// A client that waits costs net/http two goroutines, some 28 kB, and at each turn a new request, response and
// background reader. So a connection whose request has to wait is taken over: one goroutine reads it, whoever wakes
// the client hands the answer to a few runners, and a request that differs from the last in its first line alone is
// read without parsing its headers again. Anything else than waiting is given back to net/http.

const (
	idleTimeout  = 2 * time.Minute  // between requests, as the server's own
	writeTimeout = 30 * time.Second // for an answer that does not fit into the socket at once
	maxParked    = 64 << 10         // bytes of a request; a larger one is net/http's
	keptHead     = 8 << 10          // of the reading buffer
	mostFields   = 24               // of a head that is compared field by field
)

// The states of a parked connection.
const (
	idle    int32 = iota // no request
	running              // someone makes an answer
	again                // running, and woken meanwhile
	waiting              // for wake
	queued               // for a runner
)

// parked is a connection that was taken over.
type parked struct {
	api   *API
	only  []string
	conn  *conn
	raw   syscall.RawConn
	ctx   context.Context //nolint:containedctx // of the connection
	close context.CancelFunc

	state atomic.Int32
	last  atomic.Bool
	bye   atomic.Bool   // close after the answer
	free  chan struct{} // the answer was written

	call *Call
	held Held
	rec  statusWriter
	out  answer

	buf []byte // what was read and not yet used
	req known

	mu       sync.Mutex
	timer    *time.Timer
	fires    time.Time // when the timer will; zero: not
	deadline time.Time // when something is due
}

// known is the last request's head after its first line, and what it says.
type known struct {
	head   []byte
	base   *http.Request
	length int
	path   string
	method string
	match  match
}

// park takes over the connection of a call that waits. It reports false where that cannot be.
func (a *API) park(c *Call, h Held, only []string) bool {
	own := connOf(c.R)
	if own == nil {
		return false
	}
	p := &parked{api: a, only: only, conn: own, held: h, call: c, free: make(chan struct{}, 1)}
	if !own.from.add(p) {
		return false
	}
	var err error
	if p.raw, err = own.SyscallConn(); err != nil {
		own.from.remove(p)
		return false
	}
	p.ctx, p.close = context.WithCancel(context.Background())
	p.state.Store(running)
	h.Begin(p.wake)
	v, err := p.answer()
	if v == nil && err == nil {
		rc := http.NewResponseController(c.W)
		_, rw, hijack := rc.Hijack()
		if hijack == nil {
			p.take(rw.Reader)
			return true
		}
		v, err = a.attempt(c, h, true)
	}
	own.from.remove(p)
	p.close()
	p.state.Store(idle)
	a.reply(c, v, err)
	h.End()
	return true
}

// take begins to wait on a connection that net/http has let go of.
func (p *parked) take(r *bufio.Reader) {
	if n := r.Buffered(); n > 0 {
		p.buf, _ = r.Peek(n)
		p.buf = bytes.Clone(p.buf)
	}
	// The request's own context ends with its handler, and nothing of net/http's shall be held on to.
	c := p.call
	c.ctx, c.R = p.ctx, c.R.WithContext(p.ctx)
	p.know(c.R)
	p.rec = statusWriter{ResponseWriter: &p.out}
	c.W, c.parked = &p.rec, true
	p.due(p.held.Timeout)
	p.settle()
	go p.loop()
}

// know keeps what the request before says, where the next one may differ from it in its first line alone.
func (p *parked) know(r *http.Request) {
	if r.ContentLength != 0 || r.Close || r.Header["Connection"] != nil || r.Header["Content-Length"] != nil || len(r.TransferEncoding) > 0 {
		return
	}
	base := new(http.Request)
	*base = *r
	base.Body = http.NoBody
	p.req.base = base
}

// loop reads requests until the client goes or wants something that does not wait.
func (p *parked) loop() {
	defer p.conn.from.remove(p)
	defer p.close()
	defer p.guard()
	busy := true // a request is being answered
	for {
		head, err := p.next()
		if busy {
			if err != nil { // the client is gone: let go of what the wait holds
				p.last.Store(true)
				p.wake()
			}
			<-p.free
		}
		if err != nil && len(p.buf) == 0 || p.bye.Load() {
			p.stop()
			p.conn.Close()
			return
		}
		var c *Call
		if err == nil {
			c = p.request(head)
		}
		if c == nil {
			p.stop()
			p.conn.from.remove(p)
			p.conn.from.giveBack(p.conn, p.buf)
			return
		}
		busy = p.serve(c)
	}
}

var errNotParked = errors.New("not a request that waits")

// next reads until the head of a request is complete, and returns its length.
func (p *parked) next() (head int, err error) {
	seen := 0
	for {
		for {
			i := bytes.IndexByte(p.buf[seen:], '\n')
			if i < 0 {
				break
			}
			end := seen + i
			if end == 0 || p.buf[end-1] != '\r' {
				return 0, errNotParked
			}
			if end >= 3 && p.buf[end-2] == '\n' {
				return end + 1, nil
			}
			seen = end + 1
		}
		seen = len(p.buf)
		if err := p.fill(); err != nil {
			return 0, err
		}
	}
}

// fill reads more.
func (p *parked) fill() error {
	if len(p.buf) >= maxParked {
		return errNotParked
	}
	if cap(p.buf)-len(p.buf) < 512 {
		p.buf = append(make([]byte, 0, max(2*cap(p.buf), 1024)), p.buf...)
	}
	n, err := p.conn.Read(p.buf[len(p.buf):cap(p.buf)])
	p.buf = p.buf[:len(p.buf)+n]
	if n > 0 {
		return nil
	}
	return err //nolint:wrapcheck // only whether there is one counts
}

// request reads the request whose head is complete. It returns nil, leaving the buffer as it is, for one that is not
// for a parked connection: what is unusual is left to net/http.
func (p *parked) request(head int) *Call {
	b := p.buf[:head]
	line := bytes.Index(b, []byte("\r\n")) + 2
	if !bytes.Equal(b[line:], p.req.head) && !p.learn(b, line) {
		return nil
	}
	method, rest, _ := strings.Cut(string(b[:line-2]), " ")
	target, proto, ok := strings.Cut(rest, " ")
	if !ok || proto != "HTTP/1.1" || method != http.MethodGet && method != http.MethodPost || !strings.HasPrefix(target, "/") {
		return nil
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil
	}
	c := &Call{api: p.api, ctx: p.ctx, W: &p.rec}
	path := u.EscapedPath()
	r := new(http.Request)
	*r = *p.req.base
	r.Method, r.URL, r.RequestURI = method, u, target
	if path == p.req.path && method == p.req.method {
		c.match = p.req.match
	} else {
		c.match.path = path
		if p.only == nil || hasAnyPrefix(path, p.only) {
			p.api.table.find(r, &c.match)
		}
		p.req.path, p.req.method, p.req.match = path, method, c.match
	}
	if c.match.target == nil || !c.match.target.Holds || !cleanURL(r, path) {
		return nil
	}
	for len(p.buf) < head+p.req.length {
		if p.fill() != nil {
			return nil
		}
	}
	if p.req.length > 0 {
		body := bytes.Clone(p.buf[head : head+p.req.length])
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	p.use(head + p.req.length)
	c.R, c.route, c.parked = r, c.match.target.Route, true
	c.serial, c.start = p.api.serial.Add(1), p.api.now()
	return c
}

// use drops the first n bytes of the buffer.
func (p *parked) use(n int) {
	rest := p.buf[n:]
	if cap(p.buf) > keptHead {
		p.buf = bytes.Clone(rest)
		return
	}
	p.buf = p.buf[:copy(p.buf, rest)]
}

// learn parses a head with net/http's own parser; false where something is unusual. One whose fields are those of the
// request before needs no parsing.
func (p *parked) learn(b []byte, line int) bool {
	for i, ch := range b {
		if ch == '\r' != (i+1 < len(b) && b[i+1] == '\n') || ch < ' ' && ch != '\r' && ch != '\n' || ch >= 0x7f {
			return false
		}
	}
	r := p.req.base
	if r == nil || !sameFields(r, b[line:]) {
		var err error
		r, err = http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil || r.Host == "" || r.Close || len(r.TransferEncoding) > 0 || r.ContentLength > maxParked-int64(len(b)) {
			return false
		}
		for _, h := range [...]string{"Expect", "Upgrade", "Connection", "Trailer"} {
			if v := r.Header[h]; v != nil && !(h == "Connection" && strings.EqualFold(v[0], "keep-alive")) {
				return false
			}
		}
		p.req.length = max(int(r.ContentLength), 0)
		r.Body, r.RemoteAddr = http.NoBody, p.conn.RemoteAddr().String()
		p.req.base = r.WithContext(p.ctx)
	}
	p.req.head = append(p.req.head[:0], b[line:]...)
	p.req.path = ""
	return true
}

// sameFields reports whether the fields of a head are just those of r: each of them, once, and no other.
func sameFields(r *http.Request, head []byte) bool {
	var seen [mostFields]string
	n, host := 0, false
	for {
		field, rest, _ := bytes.Cut(head, []byte("\r\n"))
		if len(field) == 0 {
			return host && n == len(r.Header)
		}
		head = rest
		name, value, ok := bytes.Cut(field, []byte(": "))
		if !ok {
			return false
		}
		key := http.CanonicalHeaderKey(string(name))
		if key == "Host" {
			if host || r.Host != string(value) {
				return false
			}
			host = true
			continue
		}
		have := r.Header[key]
		if n == len(seen) || len(have) != 1 || have[0] != string(value) || slices.Contains(seen[:n], key) {
			return false
		}
		seen[n] = key
		n++
	}
}

// serve answers a call, or begins to wait for its answer; busy says that free will be told.
func (p *parked) serve(c *Call) (busy bool) {
	p.call, p.held = c, Held{}
	p.rec.status, p.rec.bytes = 0, 0
	p.state.Store(running)
	p.last.Store(false)
	if p.bye.Load() {
		p.last.Store(true)
	}
	if !p.api.drain.enter() {
		p.bye.Store(true)
		writeError(c.W, errDraining())
		p.flush(nil)
		p.call = nil
		p.state.Store(idle)
		return false
	}
	v, err := p.api.call(c)
	h, held := v.(Held)
	if !held {
		p.finish(v, err)
		return true
	}
	p.held = h
	if h.Timeout <= 0 {
		p.last.Store(true)
	}
	h.Begin(p.wake)
	if v, err = p.answer(); v != nil || err != nil {
		p.finish(v, err)
		return true
	}
	p.due(h.Timeout)
	p.settle()
	return true
}

// answer makes an attempt.
func (p *parked) answer() (v any, err error) {
	last := p.last.Load()
	v, err = p.api.attempt(p.call, p.held, last)
	if v == nil && last && err == nil {
		v = Raw(empty)
	}
	return v, err
}

// settle waits for wake, or makes another attempt if that has come meanwhile.
func (p *parked) settle() {
	if !p.state.CompareAndSwap(running, waiting) {
		p.state.Store(queued)
		p.api.runners.push(p)
	}
}

// wake has a runner look whether there is an answer now.
func (p *parked) wake() {
	for {
		switch p.state.Load() {
		case waiting:
			if p.state.CompareAndSwap(waiting, queued) {
				p.api.runners.push(p)
				return
			}
		case running:
			if p.state.CompareAndSwap(running, again) {
				return
			}
		default:
			return
		}
	}
}

// run is a runner's turn.
func (p *parked) run() {
	defer p.guard()
	p.state.Store(running)
	v, err := p.answer()
	if v == nil && err == nil {
		p.settle()
		return
	}
	p.finish(v, err)
}

// finish writes the answer and lets the next request be read.
func (p *parked) finish(v any, err error) {
	var body []byte
	raw, ok := v.(Raw)
	if ok && err == nil && p.out.header == nil {
		body = raw
		p.rec.status, p.rec.bytes = http.StatusOK, int64(len(raw))
	} else {
		p.api.reply(p.call, v, err)
	}
	select {
	case <-p.api.drain.ctx.Done():
		p.bye.Store(true)
	default:
	}
	p.due(idleTimeout)
	later := p.flush(body)
	p.api.finish(p.call, &p.rec)
	p.call = nil
	p.api.drain.leave()
	if w := p.held.Wait; w != nil {
		p.held = Held{}
		w.End()
	}
	if later == nil {
		p.freed()
		return
	}
	go func() { // the socket is full: whoever answers others shall not wait for this client
		_ = p.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := p.conn.Write(later); err != nil {
			p.bye.Store(true)
			p.conn.CloseRead() // the reader is told
		}
		_ = p.conn.SetWriteDeadline(time.Time{})
		p.freed()
	}()
}

// guard makes of a panic, against which no net/http stands here, the end of this connection alone.
func (p *parked) guard() {
	v := recover()
	if v == nil {
		return
	}
	if v != http.ErrAbortHandler { //nolint:errorlint // net/http compares it the same way
		p.api.panics.Add(1)
		log.WithField("panic", v).Errorf("answering a client that waited panicked\n%s", debug.Stack())
	}
	p.bye.Store(true)
	p.stop()
	p.conn.Close()
	if p.call != nil {
		p.call = nil
		p.api.drain.leave()
	}
	if w := p.held.Wait; w != nil {
		p.held = Held{}
		w.End()
	}
	select {
	case p.free <- struct{}{}:
	default:
	}
}

// freed lets the next request be answered.
func (p *parked) freed() {
	p.state.Store(idle)
	if p.bye.Load() {
		_ = p.conn.CloseRead() // the reader need not wait for the client
	}
	p.free <- struct{}{}
}

// dismiss ends the wait and closes the connection.
func (p *parked) dismiss() {
	p.bye.Store(true)
	p.last.Store(true)
	if p.state.Load() == idle {
		_ = p.conn.CloseRead()
		return
	}
	p.wake()
}

// due says when something is due: the end of the wait, or the end of patience with an idle connection. The timer is
// set anew only where it would fire too late.
func (p *parked) due(after time.Duration) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = now.Add(after)
	switch {
	case p.timer == nil:
		p.timer = time.AfterFunc(after, p.expire)
	case p.fires.IsZero() || p.fires.After(p.deadline):
		p.timer.Reset(after)
	default:
		return
	}
	p.fires = p.deadline
}

func (p *parked) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fires = time.Time{}
	if left := time.Until(p.deadline); left > 0 {
		p.timer.Reset(left)
		p.fires = p.deadline
		return
	}
	if p.state.Load() == idle {
		_ = p.conn.CloseRead()
		return
	}
	p.last.Store(true)
	p.wake()
}

// stop ends the timer.
func (p *parked) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	p.deadline = time.Now().Add(time.Hour) // a timer that fires all the same finds nothing due
}
