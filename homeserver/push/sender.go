package push

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	maxQueued   = 50             // notifications of a pusher; when full the oldest goes
	giveUpAfter = 24 * time.Hour // of trying to deliver one notification
	firstPause  = time.Second
	longPause   = 10 * time.Minute
	maxSending  = 64 // requests under way
)

// sender delivers the notifications of one pusher, in order. It has a goroutine
// only while there is something to deliver.
type sender struct {
	p      *Push
	pusher *pusher
	done   chan struct{} // closed when the pusher is gone

	mu      sync.Mutex
	queue   []job
	busy    bool
	failing bool
	badge   int // the last number sent, -1 for none
}

// job is a notification, or, without an event, a new number of unread messages.
type job struct {
	pos    stream.Pos
	event  *events.Event
	result Result
	about  *about
	since  time.Time
}

// about is what a notification says of its event beside the event itself; it is
// read once for all pushers.
type about struct {
	senderName, roomName, roomAlias string
}

func newSender(p *Push, x *pusher) *sender {
	return &sender{p: p, pusher: x, done: make(chan struct{}), failing: x.Failing != 0, badge: -1}
}

func (s *sender) stop() { close(s.done) }

// enqueue hands over a job; start is called for a new goroutine.
func (s *sender) enqueue(j job, start func(func())) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.event == nil {
		if slices.ContainsFunc(s.queue, func(o job) bool { return o.event == nil }) {
			return
		}
	}
	if len(s.queue) >= maxQueued {
		s.queue = s.queue[1:]
	}
	s.queue = append(s.queue, j)
	if !s.busy {
		s.busy = true
		start(s.drain)
	}
}

// oldest is the position of the first job that is not delivered; failing ones
// are accounted for in the database.
func (s *sender) oldest() (stream.Pos, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 || s.failing {
		return 0, false
	}
	return s.queue[0].pos, true
}

// drain delivers until the queue is empty.
func (s *sender) drain() {
	pause := firstPause
	for {
		s.mu.Lock()
		if len(s.queue) == 0 {
			s.busy = false
			s.mu.Unlock()
			return
		}
		j := s.queue[0]
		s.mu.Unlock()
		select {
		case <-s.done:
			return
		case <-s.p.dispatch.ctx.Done():
			return
		default:
		}
		err := s.deliver(j)
		if err == nil || s.p.opts.Now().Sub(j.since) > giveUpAfter {
			s.delivered(j, err)
			pause = firstPause
			continue
		}
		s.failed(j, err)
		select {
		case <-time.After(pause):
		case <-s.done:
			return
		case <-s.p.dispatch.ctx.Done():
			return
		}
		pause = min(2*pause, longPause)
	}
}

func (s *sender) delivered(j job, err error) {
	s.mu.Lock()
	if len(s.queue) > 0 && s.queue[0].pos == j.pos && (s.queue[0].event == nil) == (j.event == nil) {
		s.queue = s.queue[1:]
	}
	recovered := s.failing && err == nil
	if recovered {
		s.failing = false
	}
	s.mu.Unlock()
	if recovered {
		s.saveState(0, 0)
	}
}

func (s *sender) failed(j job, err error) {
	s.mu.Lock()
	first := !s.failing
	s.failing = true
	s.mu.Unlock()
	if !first {
		return
	}
	log.WithError(err).WithFields(log.Fields{"user_id": s.pusher.User, "app_id": s.pusher.AppID}).
		Warn("a push gateway does not answer; trying on")
	s.saveState(j.pos-1, matrix.Millis(s.p.opts.Now()))
}

func (s *sender) saveState(pos stream.Pos, since int64) {
	err := s.p.db.Write(context.Background(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qPusherState, s.pusher.ID, int64(pos), since)
		return err
	})
	if err != nil {
		log.WithError(err).Warn("storing the state of a pusher")
	}
}

// deliver makes one request.
//
// Spec: push-gateway-api
func (s *sender) deliver(j job) error {
	ctx, cancel := context.WithTimeout(s.p.dispatch.ctx, time.Minute)
	defer cancel()
	unread, err := s.p.unreadOf(ctx, s.pusher.User)
	if err != nil {
		return err
	}
	if j.event == nil && unread == s.badge {
		return nil
	}
	var target struct {
		URL    string `json:"url"`
		Format string `json:"format"`
	}
	if err := json.Unmarshal(s.pusher.Data, &target); err != nil {
		return fmt.Errorf("data of a pusher: %w", err)
	}
	body, err := json.Marshal(map[string]any{"notification": s.notification(j, unread, target.Format)})
	if err != nil {
		return fmt.Errorf("encoding a notification: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("calling a push gateway: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	s.p.dispatch.sending <- struct{}{}
	resp, err := s.p.opts.Client.Do(req)
	<-s.p.dispatch.sending
	if err != nil {
		return fmt.Errorf("calling a push gateway: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("a push gateway answered %d", resp.StatusCode)
	}
	var answer struct {
		Rejected []string `json:"rejected"`
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("reading from a push gateway: %w", err)
	}
	_ = json.Unmarshal(b, &answer) // a gateway that answers nonsense has accepted
	if slices.Contains(answer.Rejected, s.pusher.Pushkey) {
		log.WithFields(log.Fields{"user_id": s.pusher.User, "app_id": s.pusher.AppID}).Info("a push gateway rejected a pusher; removing it")
		return s.p.dropPusher(ctx, s.pusher.User, s.pusher.AppID, s.pusher.Pushkey)
	}
	s.badge = unread
	return nil
}

// notification is the body of a request.
func (s *sender) notification(j job, unread int, format string) map[string]any {
	x := s.pusher
	data := map[string]json.RawMessage{}
	_ = json.Unmarshal(x.Data, &data) // it was checked when it was stored
	delete(data, "url")
	device := map[string]any{
		"app_id": x.AppID, "pushkey": x.Pushkey, "pushkey_ts": x.TS / 1000, "data": data,
	}
	n := map[string]any{"devices": []any{device}, "counts": counts(unread)}
	if j.event == nil {
		return n
	}
	e := j.event
	n["event_id"], n["room_id"], n["prio"] = e.ID, e.Room, prio(j)
	if format == "event_id_only" {
		return n
	}
	if len(j.result.Tweaks) > 0 {
		device["tweaks"] = j.result.Tweaks
	}
	n["type"], n["sender"], n["content"] = e.Type, e.Sender, json.RawMessage(e.Content())
	for k, v := range map[string]string{
		"sender_display_name": j.about.senderName, "room_name": j.about.roomName, "room_alias": j.about.roomAlias,
	} {
		if v != "" {
			n[k] = v
		}
	}
	if e.Type == "m.room.member" {
		n["user_is_target"] = e.Key() == string(x.User)
	}
	return n
}

func counts(unread int) map[string]int {
	if unread == 0 {
		return map[string]int{}
	}
	return map[string]int{"unread": unread}
}

// prio lets gateways save batteries for what makes no sound.
func prio(j job) string {
	if _, sound := j.result.Tweaks["sound"]; sound || j.result.Highlight || j.event.Type == "m.room.encrypted" {
		return "high"
	}
	return "low"
}

// unreadOf is the number of unread messages of a user in all rooms.
func (p *Push) unreadOf(ctx context.Context, user matrix.UserID) (int, error) {
	n := 0
	for _, room := range p.hub.RoomsOf(user) {
		u, err := p.Counts(ctx, room, user)
		if err != nil {
			return 0, err
		}
		n += u.Total().Notify
	}
	return n, nil
}

func (s *sender) isFailing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failing
}
