package httpapi

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

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
