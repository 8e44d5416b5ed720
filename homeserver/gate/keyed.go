package gate

import (
	"context"
	"sync"
)

// Keyed is a set of mutexes, one for each key that is held or waited for. The zero value is ready to use.
type Keyed[K comparable] struct {
	mu    sync.Mutex
	locks map[K]*keyedLock
}

// keyedLock is a mutex as a channel of one token, so that waiting can end with a context.
type keyedLock struct {
	token chan struct{} // capacity one: full while the lock is held
	refs  int           // holders and waiters; at zero the entry leaves the map
}

// Lock waits for the key and returns the function that frees it. The function may be called once.
func (k *Keyed[K]) Lock(key K) (unlock func()) {
	l := k.enter(key)
	l.token <- struct{}{}
	return func() { k.free(key, l) }
}

// LockContext is Lock that gives up when ctx ends.
func (k *Keyed[K]) LockContext(ctx context.Context, key K) (unlock func(), err error) {
	l := k.enter(key)
	select {
	case l.token <- struct{}{}:
		return func() { k.free(key, l) }, nil
	default:
	}
	select {
	case l.token <- struct{}{}:
		return func() { k.free(key, l) }, nil
	case <-ctx.Done():
		k.leave(key, l)
		return nil, ctx.Err()
	}
}

// TryLock takes the key if nobody has it.
func (k *Keyed[K]) TryLock(key K) (unlock func(), ok bool) {
	l := k.enter(key)
	select {
	case l.token <- struct{}{}:
		return func() { k.free(key, l) }, true
	default:
		k.leave(key, l)
		return nil, false
	}
}

// Len is the number of keys held or waited for.
func (k *Keyed[K]) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.locks)
}

func (k *Keyed[K]) enter(key K) *keyedLock {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.locks[key]
	if l == nil {
		if k.locks == nil {
			k.locks = make(map[K]*keyedLock)
		}
		l = &keyedLock{token: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.refs++
	return l
}

func (k *Keyed[K]) free(key K, l *keyedLock) {
	<-l.token
	k.leave(key, l)
}

func (k *Keyed[K]) leave(key K, l *keyedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l.refs--
	if l.refs == 0 {
		delete(k.locks, key)
	}
}
