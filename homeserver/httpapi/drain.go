package httpapi

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// drain counts the requests that are being answered, so that a shutdown can wait for them.
type drain struct {
	mu       sync.Mutex
	inFlight int
	idle     chan struct{}   // closed when draining and nothing is in flight
	ctx      context.Context //nolint:containedctx // ends when draining begins
	begin    context.CancelFunc
	closing  bool // refuse new requests
}

func (d *drain) init() {
	d.ctx, d.begin = context.WithCancel(context.Background())
	d.idle = make(chan struct{})
}

func (d *drain) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return false
	}
	d.inFlight++
	return true
}

func (d *drain) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inFlight--
	if d.inFlight == 0 && d.closing {
		close(d.idle)
	}
}

// Draining is closed when Drain is called.
func (a *API) Draining() <-chan struct{} { return a.drain.ctx.Done() }

// InFlight is the number of requests being answered.
func (a *API) InFlight() int {
	a.drain.mu.Lock()
	defer a.drain.mu.Unlock()
	return a.drain.inFlight
}

// Drain tells waiting handlers to end, answers 503 to requests that come later, and waits until all requests in
// flight are answered or ctx ends.
func (a *API) Drain(ctx context.Context) error {
	d := &a.drain
	d.mu.Lock()
	if !d.closing {
		d.closing = true
		d.begin()
		if d.inFlight == 0 {
			close(d.idle)
		}
	}
	d.mu.Unlock()
	select {
	case <-d.idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// WaitContext is a context for a long poll: it ends with the call, with the shutdown, or after d. It costs no
// goroutine while it waits.
func (c *Call) WaitContext(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(c.ctx, d)
	stop := context.AfterFunc(c.api.drain.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

func errDraining() *matrix.Error {
	return matrix.NewError(http.StatusServiceUnavailable, "M_UNKNOWN", "the server is shutting down")
}
