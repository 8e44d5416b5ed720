package httpapi

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const (
	// peerPatience is how long a peer may take over a body or an answer, beside the time that its size needs at
	// slowest bytes a second. Who is slower is cut off: a connection, and what was read of it, costs memory.
	peerPatience = 30 * time.Second
	slowest      = 16 << 10
	// firstBuffer is how much is reserved for a body on its sender's word; more comes as it arrives.
	firstBuffer = 64 << 10
	// maxDepth is how deep lists and objects of a client's body may be nested.
	maxDepth = 200
)

func (a *API) patience() time.Duration {
	if a.opts.Patience > 0 {
		return a.opts.Patience
	}
	return peerPatience
}

// transfer is how long so many bytes may take.
func transfer(patience time.Duration, bytes int64) time.Duration {
	return patience + time.Duration(bytes)*time.Second/slowest
}

// slowBody gives the body of the call until when it has to be there, and done takes that back, since net/http goes on
// reading from the connection to see whether the client is there. After a failure the deadline stays, else net/http
// would wait for the rest of the body before it answers.
func (c *Call) slowBody(size int64) (done func(err error)) {
	rc := http.NewResponseController(c.W)
	if rc.SetReadDeadline(time.Now().Add(transfer(c.api.patience(), size))) != nil {
		return func(error) {} // a request that comes through memory
	}
	return func(err error) {
		if err != nil && !errors.Is(err, io.EOF) {
			c.W.Header().Set("Connection", "close")
			return
		}
		_ = rc.SetReadDeadline(time.Time{}) // it could be set before
	}
}

// readAll reads a body of a known size. It trusts in no size that has not arrived.
func readAll(r io.Reader, size int64) ([]byte, error) {
	if size <= firstBuffer {
		b := make([]byte, size)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	buf := bytes.NewBuffer(make([]byte, 0, firstBuffer))
	n, err := buf.ReadFrom(io.LimitReader(r, size))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	return buf.Bytes(), err
}

// slowReader reads a body that is not kept, each piece of which must come in time.
type slowReader struct {
	io.Reader
	c *Call
}

// Read implements io.Reader.
func (r *slowReader) Read(p []byte) (int, error) {
	done := r.c.slowBody(int64(len(p)))
	n, err := r.Reader.Read(p)
	done(err)
	return n, err
}

// deadliner is the part of net/http's writers that bounds writing.
type deadliner interface{ SetWriteDeadline(time.Time) error }

// allow gives the peer time to take in so many bytes more.
func allow(w http.ResponseWriter, patience time.Duration, bytes int) {
	if d, ok := w.(deadliner); ok {
		_ = d.SetWriteDeadline(time.Now().Add(transfer(patience, int64(bytes)))) // it cannot, where nothing is written to a network
	}
}

// checkDepth refuses JSON that is nested too deeply for whatever has to walk it later. What other servers send is
// bounded by the parser alone: a deep event must not cost them the others.
func (c *Call) checkDepth(b []byte) error {
	if c.route.Auth == AuthServer || c.route.Deep || bytes.Count(b, []byte("{"))+bytes.Count(b, []byte("[")) <= maxDepth {
		return nil
	}
	depth, inString, escaped := 0, false, false
	for _, ch := range b {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped = ch == '\\'
			inString = ch != '"'
		case ch == '"':
			inString = true
		case ch == '{' || ch == '[':
			if depth++; depth > maxDepth {
				return matrix.BadJSON("the body is nested more than %d deep", maxDepth)
			}
		case ch == '}' || ch == ']':
			depth--
		}
	}
	return nil
}
