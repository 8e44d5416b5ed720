package httpapi

import (
	"context"
	"time"
)

// Wait is an answer that is not there yet: the long poll of a /sync.
type Wait interface {
	// Begin asks for wake to be called whenever there may be something to say. wake never blocks, may be called
	// from anywhere, and does nothing after End.
	Begin(wake func())
	// Answer is the answer, or nil, nil while there is nothing to say. It is called once at the beginning and then
	// after each wake, never twice at a time. When last is set the wait is over, and whatever there is must be said.
	Answer(ctx context.Context, last bool) (any, error)
	// End is called once, when the answer has been written.
	End()
}

// Held is what a handler returns in place of a value when the answer may have to wait; the route must be marked
// Holds. The wait ends after Timeout, at shutdown, or when the client goes away.
type Held struct {
	Wait
	Timeout time.Duration
}

// await answers a call on the goroutine that it came in on.
func (a *API) await(c *Call, h Held) (any, error) {
	woken := make(chan struct{}, 1)
	h.Begin(func() {
		select {
		case woken <- struct{}{}:
		default:
		}
	})
	timer := time.NewTimer(h.Timeout)
	defer timer.Stop()
	last := h.Timeout <= 0
	for {
		v, err := a.attempt(c, h, last)
		if v != nil || err != nil || last {
			return v, err
		}
		select {
		case <-woken:
		case <-timer.C:
			last = true
		case <-a.Draining():
			last = true
		case <-c.ctx.Done():
			last = true
		}
	}
}
