package applications

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	retryFirst = 500 * time.Millisecond
	retryMax   = time.Minute
	maxAnswer  = 1 << 20
	saveIdle   = 200 * time.Millisecond
	maxNoted   = 5000 // rooms with typing, users with presence, that wait
)

// service is one application service with its own place in the log.
type service struct {
	a      *Applications
	reg    *accounts.ApplicationService
	sender matrix.UserID
	base   string
	http   *http.Client // nil if it wants no traffic
	want   *interest

	bell chan struct{} // capacity one: full means that it will look anyway
	kick chan struct{} // capacity one, likewise

	// Used by the service's goroutine alone.
	pos     stream.Pos // the service has everything up to here
	pending stream.Pos // end of the transaction that is stored as being sent, 0 for none
	saved   stream.Pos // the position stored last
	// delivered says that a transaction was taken and that this is not stored yet.
	delivered bool

	mu       sync.Mutex
	old      bool // it knows only the paths of before version 1
	typing   map[matrix.RoomID]struct{}
	presence map[matrix.UserID]presence.State
	down     bool
}

func newService(a *Applications, reg *accounts.ApplicationService, transport http.RoundTripper) *service {
	s := &service{
		a: a, reg: reg, sender: reg.Sender(a.opts.Server), base: reg.URL,
		bell: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		typing: map[matrix.RoomID]struct{}{}, presence: map[matrix.UserID]presence.State{},
	}
	s.want = newInterest(s)
	if transport == nil && s.base == "" {
		return s
	}
	if s.base == "" {
		s.base = "http://application-service"
	}
	if transport == nil {
		transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 4, IdleConnTimeout: 2 * time.Minute,
			TLSHandshakeTimeout: 10 * time.Second,
		}
	}
	s.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s
}

// ownsUser reports whether a user, also of another server, is the service's own or in its namespaces.
func (s *service) ownsUser(u matrix.UserID) bool {
	if u == s.sender {
		return true
	}
	for i := range s.reg.Namespaces.Users {
		if s.reg.Namespaces.Users[i].Match(string(u)) {
			return true
		}
	}
	return false
}

func (s *service) ring() {
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

func (s *service) noteTyping(room matrix.RoomID) {
	if !s.reg.ReceiveEphemeral || s.http == nil {
		return
	}
	s.mu.Lock()
	ok := !s.down && len(s.typing) < maxNoted
	if ok {
		s.typing[room] = struct{}{}
	}
	s.mu.Unlock()
	if ok {
		s.ring()
	}
}

func (s *service) notePresence(p presence.State) {
	if !s.reg.ReceiveEphemeral || s.http == nil {
		return
	}
	s.mu.Lock()
	ok := !s.down && len(s.presence) < maxNoted
	if ok {
		s.presence[p.User] = p
	}
	s.mu.Unlock()
	if ok {
		s.ring()
	}
}

// run sends what there is, for ever.
func (s *service) run(ctx context.Context) {
	tick := time.NewTicker(savePosition)
	defer tick.Stop()
	idle := time.NewTimer(saveIdle)
	defer idle.Stop()
	defer s.rest(context.WithoutCancel(ctx))
	s.ring() // there may be a rest from before
	for ctx.Err() == nil {
		select {
		case <-s.bell:
		case <-s.kick:
		case <-tick.C:
			s.rest(ctx)
			continue
		case <-idle.C:
			if s.delivered {
				s.rest(ctx)
			}
			continue
		case <-ctx.Done():
			return
		}
		back := gate.Backoff{Min: retryFirst, Max: retryMax}
		for ctx.Err() == nil {
			more, err := s.step(ctx)
			if err == nil {
				back.Reset()
				if !more {
					break
				}
				continue
			}
			if ctx.Err() != nil {
				return
			}
			log.WithError(err).WithField("service", s.reg.ID).Warn("telling an application service failed; trying again")
			s.sleep(ctx, back.Next())
		}
		idle.Reset(saveIdle)
	}
}

// rest stores the position when there is nothing to do. While transactions follow each other, each stores the
// position of the one before; if a restart comes in between, the last one is sent again under its name.
func (s *service) rest(ctx context.Context) {
	if s.pending != 0 || s.saved == s.pos && !s.delivered {
		return
	}
	if err := s.save(ctx, s.pos, 0); err != nil {
		log.WithError(err).WithField("service", s.reg.ID).Warn("storing the position of an application service")
	}
}

// sleep waits, or until somebody says that the service is back.
func (s *service) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.kick:
	case <-ctx.Done():
	}
}

// step makes and delivers one transaction; more is false when nothing is left.
func (s *service) step(ctx context.Context) (more bool, err error) {
	b, err := s.gather(ctx)
	if err != nil {
		return false, err
	}
	if !b.any() {
		s.pos, s.pending = b.upTo, 0 // stored with the next transaction, or once a minute
		return b.more, nil
	}
	id := "e" + matrix.RandomString(20) // of what is told once
	if b.durable() {
		if s.pending != b.upTo {
			if err := s.save(ctx, s.pos, b.upTo); err != nil {
				return false, err
			}
			s.pending = b.upTo
		}
		id = fmt.Sprintf("%d-%d", int64(s.pos), int64(b.upTo))
	}
	if err := s.deliver(ctx, id, b.body()); err != nil {
		return false, err
	}
	if !b.durable() {
		s.pos = max(s.pos, b.upTo)
		return b.more, nil
	}
	s.pos, s.pending, s.delivered = b.upTo, 0, true
	return b.more, nil
}

func (s *service) save(ctx context.Context, pos, pending stream.Pos) error {
	if err := s.a.save(ctx, s.reg.ID, pos, pending); err != nil {
		return err
	}
	s.saved, s.delivered = pos, false
	return nil
}

// deliver sends a transaction until the service has taken it.
func (s *service) deliver(ctx context.Context, id string, body []byte) error {
	back := gate.Backoff{Min: retryFirst, Max: retryMax}
	for {
		tctx, cancel := context.WithTimeout(ctx, requestTimeout)
		status, _, err := s.call(tctx, http.MethodPut, []string{"transactions", id}, body)
		cancel()
		if err == nil && status >= 200 && status < 300 {
			s.setDown(false, back.Attempts())
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			err = fmt.Errorf("it answered with status %d", status)
		}
		if back.Attempts() == 0 {
			log.WithError(err).WithField("service", s.reg.ID).Warn("an application service does not take its transaction; trying for ever")
		}
		s.setDown(true, 0)
		s.sleep(ctx, back.Next())
	}
}

func (s *service) setDown(down bool, attempts int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down && !down {
		log.WithFields(log.Fields{"service": s.reg.ID, "attempts": attempts}).Info("an application service is back")
	}
	s.down = down
	if down {
		clear(s.typing)
		clear(s.presence)
	}
}

// call sends one request to the service and returns its answer. Services of old know other paths.
func (s *service) call(ctx context.Context, method string, segments []string, body []byte) (status int, answer []byte, err error) {
	s.mu.Lock()
	old := s.old
	s.mu.Unlock()
	if !old {
		status, answer, err = s.request(ctx, method, "/_matrix/app/v1", segments, nil, body)
		if err != nil || (status != http.StatusNotFound && status != http.StatusMethodNotAllowed) ||
			segments[0] != "transactions" || !bytes.Contains(answer, []byte("M_UNRECOGNIZED")) && len(answer) > 0 && answer[0] == '{' {
			return status, answer, err
		}
	}
	// compat: before version 1 the paths had no prefix.
	ostatus, oanswer, oerr := s.request(ctx, method, "", segments, nil, body)
	if oerr == nil && ostatus < 300 && !old {
		s.mu.Lock()
		s.old = true
		s.mu.Unlock()
	}
	if old || (oerr == nil && ostatus < 300) {
		return ostatus, oanswer, oerr
	}
	return status, answer, err
}

func (s *service) request(ctx context.Context, method, prefix string, segments []string, query url.Values, body []byte) (int, []byte, error) {
	var b strings.Builder
	b.WriteString(s.base)
	b.WriteString(prefix)
	for _, seg := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(seg))
	}
	if len(query) > 0 {
		b.WriteString("?" + query.Encode())
	}
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, b.String(), rd)
	if err != nil {
		return 0, nil, fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+s.reg.HSToken)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("reading the answer: %w", err)
	}
	return resp.StatusCode, answer, nil
}
