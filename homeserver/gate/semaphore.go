package gate

import (
	"context"
	"runtime"

	"golang.org/x/sync/semaphore"
)

// Semaphore bounds how much work of one sort runs at a time.
type Semaphore struct {
	w    *semaphore.Weighted
	size int64
}

// NewSemaphore has room for n units of work; n below one counts as one.
func NewSemaphore(n int) *Semaphore {
	if n < 1 {
		n = 1
	}
	return &Semaphore{w: semaphore.NewWeighted(int64(n)), size: int64(n)}
}

// PerCPU has room for share units for each processor the process may use, and for one at least.
func PerCPU(share float64) *Semaphore {
	return NewSemaphore(int(share * float64(runtime.GOMAXPROCS(0))))
}

// Acquire waits for room for n units and returns the function that gives it back. Work heavier than the whole
// semaphore takes all of it instead of waiting for ever.
func (s *Semaphore) Acquire(ctx context.Context, n int64) (release func(), err error) {
	n = min(max(n, 1), s.size)
	if err := s.w.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return func() { s.w.Release(n) }, nil
}

// TryAcquire is Acquire that does not wait.
func (s *Semaphore) TryAcquire(n int64) (release func(), ok bool) {
	n = min(max(n, 1), s.size)
	if !s.w.TryAcquire(n) {
		return nil, false
	}
	return func() { s.w.Release(n) }, true
}

// Do runs fn holding one unit.
func (s *Semaphore) Do(ctx context.Context, fn func() error) error {
	release, err := s.Acquire(ctx, 1)
	if err != nil {
		return err
	}
	defer release()
	return fn()
}

// Size is the number of units in all.
func (s *Semaphore) Size() int { return int(s.size) }
