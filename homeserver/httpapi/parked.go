package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
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
	p.rec = statusWriter{ResponseWriter: &p.out}
	c.W, c.parked = &p.rec, true
	p.due(p.held.Timeout)
	p.settle()
	go p.loop()
}

// loop reads requests until the client goes or wants something that does not wait.
func (p *parked) loop() {
	defer p.conn.from.remove(p)
	defer p.close()
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

// learn parses a head with net/http's own parser; false where something is unusual.
func (p *parked) learn(b []byte, line int) bool {
	for i, ch := range b {
		if ch == '\r' != (i+1 < len(b) && b[i+1] == '\n') || ch < ' ' && ch != '\r' && ch != '\n' || ch >= 0x7f {
			return false
		}
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
	if err != nil || r.Host == "" || r.Close || len(r.TransferEncoding) > 0 || r.ContentLength > maxParked-int64(len(b)) {
		return false
	}
	for _, h := range [...]string{"Expect", "Upgrade", "Connection", "Trailer"} {
		if v := r.Header[h]; v != nil && !(h == "Connection" && strings.EqualFold(v[0], "keep-alive")) {
			return false
		}
	}
	p.req.head = append(p.req.head[:0], b[line:]...)
	p.req.length = max(int(r.ContentLength), 0)
	r.Body, r.RemoteAddr = http.NoBody, p.conn.RemoteAddr().String()
	p.req.base = r.WithContext(p.ctx)
	p.req.path = ""
	return true
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
	if p.held.Wait != nil {
		p.held.End()
	}
	p.api.finish(p.call, &p.rec)
	p.api.drain.leave()
	p.call, p.held = nil, Held{}
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

// answer collects what a handler writes the usual way.
type answer struct {
	header http.Header
	status int
	body   []byte
}

// Header implements http.ResponseWriter.
func (w *answer) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}

// WriteHeader implements http.ResponseWriter.
func (w *answer) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
}

// Write implements http.ResponseWriter.
func (w *answer) Write(b []byte) (int, error) {
	w.body = append(w.body, b...)
	return len(b), nil
}

// scratch are buffers for answers on their way out.
var scratch = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// flush writes body, or what was collected, without waiting for the client; it returns what did not fit.
func (p *parked) flush(body []byte) (later []byte) {
	buf, _ := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	b := (*buf)[:0]
	if p.out.header == nil {
		b = append(b, headOK...)
	} else {
		status := p.out.status
		if status == 0 {
			status = http.StatusOK
		}
		body = p.out.body
		b = append(strconv.AppendInt(append(b, "HTTP/1.1 "...), int64(status), 10), ' ')
		b = append(append(b, http.StatusText(status)...), "\r\n"...)
		b = append(b, headCORS...)
		p.out.header.Del("Content-Length")
		h := bytes.NewBuffer(b)
		_ = p.out.header.Write(h)
		b = h.Bytes()
	}
	b = append(append(append(b, "Date: "...), date(p.api.now())...), "\r\n"...)
	if p.bye.Load() {
		b = append(b, "Connection: close\r\n"...)
	}
	b = strconv.AppendInt(append(b, "Content-Length: "...), int64(len(body)), 10)
	b = append(append(b, "\r\n\r\n"...), body...)
	p.out = answer{}
	*buf = b[:0]
	n, err := writeNow(p.raw, b)
	if err != nil {
		p.bye.Store(true)
		return nil
	}
	if n == len(b) {
		if cap(b) > keptBuffer {
			*buf = nil
		}
		return nil
	}
	return bytes.Clone(b[n:])
}

// writeNow writes as much as the socket takes at once.
func writeNow(raw syscall.RawConn, b []byte) (n int, err error) {
	werr := raw.Write(func(fd uintptr) bool {
		for n < len(b) {
			k, e := syscall.Write(int(fd), b[n:])
			if e == syscall.EINTR { //nolint:errorlint // an errno as it is
				continue
			}
			if e == syscall.EAGAIN { //nolint:errorlint // an errno as it is
				return true
			}
			if e != nil {
				err = e
				return true
			}
			n += k
		}
		return true
	})
	if err == nil {
		err = werr
	}
	return n, err
}

var (
	headCORS = corsHead()
	headOK   = "HTTP/1.1 200 OK\r\n" + headCORS + "Content-Type: application/json\r\nCache-Control: no-store\r\n"
)

func corsHead() string {
	h := http.Header{}
	setCORS(h)
	var b strings.Builder
	_ = h.Write(&b)
	return b.String()
}

// today is the Date header of a second.
type today struct {
	unix int64
	text string
}

var dates atomic.Pointer[today]

func date(now time.Time) string {
	d := dates.Load()
	if d == nil || d.unix != now.Unix() {
		d = &today{now.Unix(), now.UTC().Format(http.TimeFormat)}
		dates.Store(d)
	}
	return d.text
}

func errDraining() *matrix.Error {
	return matrix.NewError(http.StatusServiceUnavailable, "M_UNKNOWN", "the server is shutting down")
}

// maxRunners bounds how many woken clients are answered at a time. More than there are processors, since some
// answers wait for the database.
const maxRunners = 32

// runners answer the clients that were woken, in order.
type runners struct {
	mu     sync.Mutex
	queue  []*parked
	head   int
	active int
}

func (r *runners) push(p *parked) {
	r.mu.Lock()
	if r.head > 1024 && 2*r.head > len(r.queue) { // never empty for long: make room
		n := copy(r.queue, r.queue[r.head:])
		clear(r.queue[n:])
		r.queue, r.head = r.queue[:n], 0
	}
	r.queue = append(r.queue, p)
	start := r.active < maxRunners
	if start {
		r.active++
	}
	r.mu.Unlock()
	if start {
		go r.work()
	}
}

func (r *runners) work() {
	for {
		r.mu.Lock()
		if r.head == len(r.queue) {
			r.queue, r.head = r.queue[:0], 0
			r.active--
			r.mu.Unlock()
			return
		}
		p := r.queue[r.head]
		r.queue[r.head] = nil
		r.head++
		r.mu.Unlock()
		p.run()
	}
}

var _ net.Conn = (*conn)(nil)
