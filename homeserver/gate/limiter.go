package gate

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limiter is a bounded map of token buckets, one for each key.
type Limiter[K comparable] struct {
	limit rate.Limit
	burst int
	max   int
	now   func() time.Time

	mu      sync.Mutex
	buckets map[K]*rate.Limiter
}

// NewLimiter allows each key perSecond requests a second after a burst. It keeps at most maxKeys buckets (at
// least one): when full, buckets that have filled up again are dropped first, since a new one would be the same.
// now may be nil.
func NewLimiter[K comparable](perSecond float64, burst, maxKeys int, now func() time.Time) *Limiter[K] {
	if now == nil {
		now = time.Now
	}
	return &Limiter[K]{
		limit: rate.Limit(perSecond), burst: max(burst, 1), max: max(maxKeys, 1), now: now,
		buckets: make(map[K]*rate.Limiter),
	}
}

// Allow takes a token of the key. When there is none it takes nothing and says after what time to try again.
func (l *Limiter[K]) Allow(key K) (ok bool, retry time.Duration) {
	now := l.now()
	l.mu.Lock()
	b := l.buckets[key]
	if b == nil {
		if len(l.buckets) >= l.max {
			l.evict(now)
		}
		b = rate.NewLimiter(l.limit, l.burst)
		l.buckets[key] = b
	}
	l.mu.Unlock()

	r := b.ReserveN(now, 1)
	if !r.OK() {
		return false, time.Minute
	}
	if d := r.DelayFrom(now); d > 0 {
		r.CancelAt(now)
		return false, d
	}
	return true, 0
}

// Forget drops the bucket of a key, for example after a right password.
func (l *Limiter[K]) Forget(key K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.buckets, key)
}

// Len is the number of buckets kept.
func (l *Limiter[K]) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.buckets)
}

// evict drops the full buckets; if none is full, an eighth of all in the map's random order, so that a flood of
// new keys costs a bounded amount of work for each.
func (l *Limiter[K]) evict(now time.Time) {
	for k, b := range l.buckets {
		if b.TokensAt(now) >= float64(l.burst) {
			delete(l.buckets, k)
		}
	}
	if len(l.buckets) < l.max-l.max/8 {
		return
	}
	drop := l.max/8 + 1
	for k := range l.buckets {
		delete(l.buckets, k)
		if drop--; drop == 0 {
			return
		}
	}
}
