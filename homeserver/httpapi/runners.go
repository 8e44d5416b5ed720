package httpapi

import "sync"

// maxRunners bounds how many woken clients are answered at a time. More than there are processors, since some
// answers wait for the database.
const maxRunners = 32

// runners answer the clients that were woken, in order.
type runners struct {
	mu     sync.Mutex
	queue  []*parked
	head   int
	active int
}

func (r *runners) push(p *parked) {
	r.mu.Lock()
	if r.head > 1024 && 2*r.head > len(r.queue) { // never empty for long: make room
		n := copy(r.queue, r.queue[r.head:])
		clear(r.queue[n:])
		r.queue, r.head = r.queue[:n], 0
	}
	r.queue = append(r.queue, p)
	start := r.active < maxRunners
	if start {
		r.active++
	}
	r.mu.Unlock()
	if start {
		go r.work()
	}
}

func (r *runners) work() {
	for {
		r.mu.Lock()
		if r.head == len(r.queue) {
			r.queue, r.head = r.queue[:0], 0
			r.active--
			r.mu.Unlock()
			return
		}
		p := r.queue[r.head]
		r.queue[r.head] = nil
		r.head++
		r.mu.Unlock()
		p.run()
	}
}
