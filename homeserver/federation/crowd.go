package federation

import (
	"context"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// One server that asks for much must not keep the others waiting: of each there are so many requests under way, and
// so many that wait; more are told to come again later.
const (
	// oneAtATime lets transactions of a server in one after another, as the specification has them sent. A few more
	// may wait: attempts whose sender has given up and tries again.
	oneAtATime, moreTransactions = 1, 3
	// askAtATime is how many questions of a server are answered at a time.
	askAtATime, moreQuestions = 8, 120
	// transactionsAtOnce is how many servers' transactions are taken in at a time; the others take turns.
	transactionsAtOnce = 16
	// comeAgain is what those are told that are turned away.
	comeAgain = time.Second
)

// crowd is the requests of other servers that are under way. The zero value is not usable; see newCrowd.
type crowd struct {
	atATime, more int
	turnedAway    func()

	mu      sync.Mutex
	servers map[matrix.ServerName]*company // those with requests
}

// company is the requests of one server.
type company struct {
	slots *gate.Semaphore
	n     int // under way or waiting
}

func newCrowd(atATime, more int, turnedAway func()) *crowd {
	return &crowd{atATime: atATime, more: more, turnedAway: turnedAway, servers: map[matrix.ServerName]*company{}}
}

// enter waits for the turn of a request, first come first served; leave must be called after it.
func (c *crowd) enter(ctx context.Context, server matrix.ServerName) (leave func(), err error) {
	c.mu.Lock()
	s := c.servers[server]
	if s == nil {
		s = &company{slots: gate.NewSemaphore(c.atATime)}
		c.servers[server] = s
	}
	if s.n >= c.atATime+c.more {
		c.mu.Unlock()
		c.turnedAway()
		return nil, matrix.LimitExceeded(comeAgain)
	}
	s.n++
	c.mu.Unlock()
	release, err := s.slots.Acquire(ctx, 1)
	if err != nil {
		c.left(server, s)
		return nil, err
	}
	return func() {
		release()
		c.left(server, s)
	}, nil
}

func (c *crowd) left(server matrix.ServerName, s *company) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.n--; s.n == 0 {
		delete(c.servers, server)
	}
}

// inTurn has a handler answer a few questions of each server at a time. It is for handlers that ask nobody else:
// two servers that wait for each other's turn would wait for ever.
func (f *Federation) inTurn(h httpapi.Handler) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		leave, err := f.questions.enter(c.Ctx(), c.Origin)
		if err != nil {
			return nil, err
		}
		defer leave()
		return h(c)
	}
}
