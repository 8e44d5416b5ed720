package httpapi

import (
	"context"
	"sync"
	"time"
)

// drain counts the requests that are being answered, so that a shutdown can wait for them.
type drain struct {
	mu       sync.Mutex
	inFlight int
	begun    chan struct{} // closed when draining begins
	idle     chan struct{} // closed when draining and nothing is in flight
	isBegun  bool
	closing  bool // refuse new requests
}

func (d *drain) init() {
	d.begun = make(chan struct{})
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
func (a *API) Draining() <-chan struct{} { return a.drain.begun }

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
	if !d.isBegun {
		d.isBegun = true
		d.closing = true
		close(d.begun)
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

// WaitContext is a context for a long poll: it ends with the call, with the shutdown, or after d.
func (c *Call) WaitContext(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(c.ctx, d)
	begun := c.api.drain.begun
	select {
	case <-begun:
		cancel()
		return ctx, cancel
	default:
	}
	stop := make(chan struct{})
	go func() {
		select {
		case <-begun:
			cancel()
		case <-stop:
		case <-ctx.Done():
		}
	}()
	var once sync.Once
	return ctx, func() {
		once.Do(func() { close(stop) })
		cancel()
	}
}
