package httpapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
)

// Listener lets an API take over the connections of clients that wait, and give them back to net/http when they ask
// for something else. Give it to http.Server.Serve in place of the one it was made of, with ConnContext as the
// server's. Connections that are not plain TCP pass through untouched.
type Listener struct {
	net.Listener
	api      *API
	accepted chan accepted
	returned chan *conn
	done     chan struct{}
	once     sync.Once

	mu     sync.Mutex
	parked map[*parked]struct{}
	closed bool
}

type accepted struct {
	c   net.Conn
	err error
}

// Listener wraps l.
func (a *API) Listener(l net.Listener) *Listener {
	pl := &Listener{
		Listener: l, api: a, accepted: make(chan accepted), returned: make(chan *conn),
		done: make(chan struct{}), parked: map[*parked]struct{}{},
	}
	context.AfterFunc(a.drain.ctx, pl.dismiss)
	go pl.accept()
	return pl
}

func (l *Listener) accept() {
	for {
		c, err := l.Listener.Accept()
		if tc, ok := c.(*net.TCPConn); ok && err == nil {
			c = &conn{TCPConn: tc, from: l}
		}
		select {
		case l.accepted <- accepted{c, err}:
		case <-l.done:
			if err == nil {
				c.Close()
			}
			return
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case a := <-l.accepted:
		return a.c, a.err
	case c := <-l.returned:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Clients that wait are answered, and their connections closed.
func (l *Listener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { close(l.done) })
	l.dismiss()
	return err
}

// dismiss ends all waiting.
func (l *Listener) dismiss() {
	l.mu.Lock()
	l.closed = true
	list := make([]*parked, 0, len(l.parked))
	for p := range l.parked {
		list = append(list, p)
	}
	l.mu.Unlock()
	for _, p := range list {
		p.dismiss()
	}
}

// add counts a connection in; false means that it is too late.
func (l *Listener) add(p *parked) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.parked[p] = struct{}{}
	return true
}

func (l *Listener) remove(p *parked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.parked, p)
}

// giveBack hands a connection to net/http, with what has been read of it.
func (l *Listener) giveBack(c *conn, read []byte) {
	c.read = read
	select {
	case l.returned <- c:
	case <-l.done:
		c.Close()
	}
}

type connKey struct{}

// ConnContext is for http.Server.ConnContext.
func (l *Listener) ConnContext(ctx context.Context, c net.Conn) context.Context {
	if own, ok := c.(*conn); ok {
		return context.WithValue(ctx, connKey{}, own)
	}
	return ctx
}

// connOf is the connection of a request that may be taken over, or nil.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	if c == nil || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Close || r.TLS != nil {
		return nil
	}
	return c
}

// conn is a connection of a Listener.
type conn struct {
	*net.TCPConn
	from *Listener
	read []byte // read before, to be read again
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.read) > 0 {
		n := copy(b, c.read)
		if c.read = c.read[n:]; len(c.read) == 0 {
			c.read = nil
		}
		return n, nil
	}
	return c.TCPConn.Read(b)
}

// WriteTo implements io.WriterTo.
func (c *conn) WriteTo(w io.Writer) (n int64, err error) {
	if len(c.read) > 0 {
		k, err := w.Write(c.read)
		c.read, n = nil, int64(k)
		if err != nil {
			return n, err //nolint:wrapcheck // an io.WriterTo says what its writer said
		}
	}
	m, err := c.TCPConn.WriteTo(w)
	return n + m, err //nolint:wrapcheck // as net.TCPConn
}
