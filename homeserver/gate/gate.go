// Package gate holds the small tools that keep work inside bounds: locks by key, semaphores sized by the
// processors, back-off with jitter, and token buckets.
//
// It owns no tables. Invariants: a keyed lock that nobody holds or waits for takes no memory; a limiter never
// keeps more buckets than its bound; nothing here starts a goroutine.
package gate
