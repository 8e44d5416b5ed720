package gate

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff gives growing waits between attempts. The zero value waits 100 ms, doubling up to a minute.
// It is not safe for use by several goroutines at once.
type Backoff struct {
	Min, Max time.Duration // first wait and longest wait
	Factor   float64       // growth; 2 when zero
	Jitter   float64       // part of the wait that is random, 0..1; 0.2 when zero, none when negative

	attempts int
}

// Next is the wait before the next attempt, and counts it.
func (b *Backoff) Next() time.Duration {
	d := Delay(b.attempts, b.Min, b.Max, b.Factor)
	b.attempts++
	jitter := b.Jitter
	if jitter == 0 {
		jitter = 0.2
	}
	return Spread(d, jitter)
}

// Attempts is how often Next was asked since the last Reset.
func (b *Backoff) Attempts() int { return b.attempts }

// Reset starts again from the shortest wait.
func (b *Backoff) Reset() { b.attempts = 0 }

// Wait sleeps for Next, or until ctx ends and then returns its error.
func (b *Backoff) Wait(ctx context.Context) error { return Sleep(ctx, b.Next()) }

// Delay is the wait before attempt number n (from 0) without jitter, for those who keep the count elsewhere.
func Delay(n int, minWait, maxWait time.Duration, factor float64) time.Duration {
	if minWait <= 0 {
		minWait = 100 * time.Millisecond
	}
	if maxWait <= 0 {
		maxWait = time.Minute
	}
	if factor < 1 {
		factor = 2
	}
	d := float64(minWait)
	for range n {
		d *= factor
		if d >= float64(maxWait) {
			return maxWait
		}
	}
	return min(time.Duration(d), maxWait)
}

// Spread makes the part jitter (0..1) of d random, so that many waiters do not come back at the same moment.
func Spread(d time.Duration, jitter float64) time.Duration {
	if jitter <= 0 || d <= 0 {
		return d
	}
	jitter = min(jitter, 1)
	return d - time.Duration(rand.Float64()*jitter*float64(d)) //nolint:gosec // spread, not secrecy
}

// Sleep waits for d, or until ctx ends and then returns its error.
func Sleep(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil || d <= 0 {
		return err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
