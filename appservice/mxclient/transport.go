package mxclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
)

// NewHandlerTransport carries requests to a handler in the same process, without a socket. Requests and responses are
// real: status, headers, a body that may stream, and a context that ends when the caller gives up or has read all.
func NewHandlerTransport(h http.Handler) http.RoundTripper { return handlerTransport{h} }

type handlerTransport struct{ h http.Handler }

// flushAt is how much a handler may write before the response starts without being flushed.
const flushAt = 256 << 10

// RoundTrip runs the handler in a goroutine of its own, so that a caller's cancellation is felt at once.
func (t handlerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	in := req.WithContext(ctx)
	u := *req.URL
	u.Scheme, u.Host, u.User = "", "", nil
	in.URL = &u
	in.Header = req.Header.Clone()
	in.RequestURI = u.RequestURI()
	in.RemoteAddr = "127.0.0.1:0"
	if in.Host == "" {
		in.Host = req.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := &memoryWriter{header: http.Header{}, req: req, cancel: cancel, started: make(chan struct{})}
	go w.run(t.h, in)
	select {
	case <-w.started:
		return w.resp, w.err
	case <-req.Context().Done():
		cancel()
		return nil, req.Context().Err()
	}
}

// memoryWriter collects a response. A response that ends before it is flushed goes out whole, the others by a pipe.
type memoryWriter struct {
	req     *http.Request
	cancel  context.CancelFunc
	started chan struct{} // closed when resp or err is there

	mu     sync.Mutex
	header http.Header
	status int
	buf    bytes.Buffer
	pipe   *io.PipeWriter // nil until the response has started
	done   bool
	resp   *http.Response
	err    error
}

var errAborted = errors.New("the handler gave up in the middle of a response")

func (w *memoryWriter) run(h http.Handler, in *http.Request) {
	defer func() { w.finish(recover()) }()
	h.ServeHTTP(w, in)
}

func (w *memoryWriter) finish(p any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	if w.req.Body != nil {
		w.req.Body.Close()
	}
	switch {
	case p != nil && w.pipe != nil:
		w.pipe.CloseWithError(errAborted)
	case p != nil:
		w.err = errAborted
		if p != http.ErrAbortHandler { //nolint:errorlint // it is compared as net/http does
			w.err = fmt.Errorf("the handler panicked: %v", p)
		}
		close(w.started)
	case w.pipe != nil:
		w.pipe.Close()
	default:
		body := w.buf.Bytes()
		w.begin(io.NopCloser(bytes.NewReader(body)), int64(len(body)))
	}
	w.cancel()
}

// begin makes the response known to the caller. The lock is held.
func (w *memoryWriter) begin(body io.ReadCloser, length int64) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.resp = &http.Response{
		Status: strconv.Itoa(w.status) + " " + http.StatusText(w.status), StatusCode: w.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header.Clone(), Body: body, ContentLength: length, Request: w.req,
	}
	close(w.started)
}

// Header is the response's header, to be changed before the first write.
func (w *memoryWriter) Header() http.Header { return w.header }

// WriteHeader sets the status; only the first call counts.
func (w *memoryWriter) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 && status >= 200 {
		w.status = status
	}
}

// Write adds to the body.
func (w *memoryWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if w.pipe == nil {
		w.buf.Write(p)
		if w.buf.Len() < flushAt {
			w.mu.Unlock()
			return len(p), nil
		}
		w.mu.Unlock()
		w.Flush()
		return len(p), nil
	}
	pipe := w.pipe
	w.mu.Unlock()
	return pipe.Write(p) //nolint:wrapcheck // the handler's own error
}

// Flush sends what has been written so far.
func (w *memoryWriter) Flush() {
	w.mu.Lock()
	if w.done {
		w.mu.Unlock()
		return
	}
	if w.pipe == nil {
		r, pw := io.Pipe()
		w.pipe = pw
		w.begin(&pipeBody{r, w.cancel}, -1)
	}
	pipe, pending := w.pipe, append([]byte(nil), w.buf.Bytes()...)
	w.buf.Reset()
	w.mu.Unlock()
	if len(pending) > 0 {
		_, _ = pipe.Write(pending)
	}
}

// pipeBody ends the handler's context when the reader closes early.
type pipeBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

// Close tells the handler that nobody reads any more.
func (b *pipeBody) Close() error {
	b.cancel()
	return b.PipeReader.Close()
}
