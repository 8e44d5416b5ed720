package sites

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Times of the machinery.
const (
	sayAfter     = 60 * time.Millisecond  // acknowledgements wait for company
	lookForRoom  = 300 * time.Millisecond // doubled up to a minute, until the room is there
	checkRoom    = 5 * time.Minute        // whether all bots are in it
	handledFor   = 30 * 24 * time.Hour    // how long a handled message is known by its ID
	saveHeard    = 30 * time.Second
	idle         = time.Second // while something waits
	keepTrees    = 1000        // versions of which the digest is known
	mostProposed = 2000        // people of one import at a site
)

// peer is another site, as far as the speaking goes. The upper half is its row.
type peer struct {
	site Site
	name string

	key, offered   string // public keys: the one that counts, and another one that was seen since
	outGen, outSeq int64  // the stream to it: its number and that of the last message
	acked          int64
	ackedID        string
	inGen, inSeq   int64 // the stream from it: its number and what was handled last
	inID           string
	tree           org.Mark
	heard          time.Time

	savedAt  time.Time
	run      string // of the last packet
	count    int64
	sent     int64   // of the stream to it, in this process
	under    []int64 // last message of each packet that is under way
	window   int     // packets that may be
	retries  int
	retryAt  time.Time
	resendAt time.Time // not before: who asks again and again is answered slowly
	owed     bool      // it has to hear what was handled
	want     bool      // it has to send again what follows
	refused  time.Time // when a refusal was logged
	learned  time.Time // when its key was looked for
	stuck    time.Time // what it sent is not tried before
	tries    int
	fetch    *fetch
}

// engine is what Run works with; one goroutine owns it.
type engine struct {
	*Sites
	life   context.Context //nolint:containedctx // of Run: downloads end with it
	aside  sync.WaitGroup  // downloads and invitations
	key    ed25519.PrivateKey
	room   id.RoomID
	alias  string
	joined bool
	peers  []*peer

	run      string
	count    int64
	sayAt    time.Time // zero: there is nothing to say
	beatAt   time.Time
	roomAt   time.Time
	tidyAt   time.Time
	loopAt   time.Time // messages to this site are not tried before
	pausedTo time.Time // nothing is sent before
	pauses   int
	roomTry  int
	resolved time.Time // when the alias was looked up because of an invitation

	offered   org.Mark  // the head office's tree, as it says
	wantedAt  time.Time // when it was asked for
	wantedFor org.Mark  // which one
	asked     int       // how often, without an answer
	wantWhole bool
	announced org.Mark // the tree that others have been told of
}

// Run speaks with the other sites until ctx ends.
func (s *Sites) Run(ctx context.Context) error {
	e := &engine{Sites: s, life: ctx, run: matrix.RandomString(8)}
	defer e.aside.Wait()
	for try := 0; ; try++ {
		err := e.start(ctx)
		if err == nil {
			break
		}
		if !e.rest(ctx, err, "starting to speak with the other sites failed", min(time.Second<<min(try, 6), time.Minute)) {
			return nil
		}
	}
	for {
		wait := e.step(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// rest logs an error and waits; it reports whether to go on.
func (e *engine) rest(ctx context.Context, err error, what string, wait time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	log.WithError(err).Error(what)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// start reads what is known, and makes the service's key at the first time.
func (e *engine) start(ctx context.Context) error {
	if !e.Many() {
		return nil
	}
	_, fresh, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	var private string
	var list []*peer
	err = e.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qMakeSelf, base64.RawStdEncoding.EncodeToString(fresh.Seed())); err != nil {
			return err
		}
		for _, site := range e.Others() {
			if _, err := tx.Exec(qMakePeer, site.Name); err != nil {
				return err
			}
		}
		var room string
		if err := tx.QueryRow(qSelf).Scan(&private, &room, &e.alias); err != nil {
			return err
		}
		e.room = id.RoomID(room)
		list, err = sqldb.Select(tx, scanPeer, qPeers)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the sites: %w", err)
	}
	seed, err := base64.RawStdEncoding.DecodeString(private)
	if err != nil || len(seed) != ed25519.SeedSize {
		return errors.New("the key of this site's service is damaged")
	}
	e.key = ed25519.NewKeyFromSeed(seed)
	e.peers = nil
	for _, p := range list {
		site, ok := e.byName[p.name]
		switch {
		case !ok: // no longer a site: what waits for it is let go
			if err := e.forget(ctx, p, ack{Seq: p.outSeq}); err != nil {
				return err
			}
		case p.name != e.own.Name:
			p.site, p.sent, p.window = site, p.acked, firstWindow
			e.peers = append(e.peers, p)
		}
	}
	if e.alias != e.roomAlias() {
		e.room = "" // the head office is another one now
	}
	e.setRoom(e.room)
	public, _ := e.key.Public().(ed25519.PublicKey)
	e.mu.Lock()
	e.public = keyText(public)
	e.mu.Unlock()
	e.say(0)
	return nil
}

// step does what is to be done now, and answers how long nothing will be.
func (e *engine) step(ctx context.Context) time.Duration {
	now := time.Now()
	if !now.Before(e.loopAt) {
		e.loopAt = time.Time{}
		if err := e.loopBack(ctx); err != nil {
			e.loopAt = now.Add(idle)
			e.trouble(ctx, err, "handling messages to this site failed; it is tried again")
		}
	}
	if !e.Many() {
		if e.loopAt.IsZero() {
			return time.Hour
		}
		return idle
	}
	if !now.Before(e.roomAt) || e.lookAgain.Swap(false) {
		e.keepRoom(ctx, now)
	}
	if !e.joined {
		e.publishLags()
		return max(e.roomAt.Sub(now), 10*time.Millisecond)
	}
	e.tell()
	e.listen()
	for _, p := range e.peers {
		e.takeAll(ctx, p)
	}
	if err := e.follow(ctx); err != nil {
		e.trouble(ctx, err, "following the head office's organisation failed; it is tried again")
	}
	e.trySend(ctx, now)
	e.beat(ctx)
	e.tidy(ctx)
	e.publishLags()
	return e.until()
}

// trySend sends, and after a failure not for a while.
func (e *engine) trySend(ctx context.Context, now time.Time) {
	if now.Before(e.pausedTo) {
		return
	}
	err := e.send(ctx)
	if err == nil {
		e.pauses = 0
		return
	}
	e.pausedTo = now.Add(min(idle<<min(e.pauses, 6), time.Minute))
	e.pauses++
	if mxclient.IsPermanent(err) { // the bot may have been removed from the room
		e.joined, e.roomAt = false, e.pausedTo
	}
	e.trouble(ctx, err, "sending to other sites failed; it is tried again")
}

func (e *engine) trouble(ctx context.Context, err error, what string) {
	if ctx.Err() == nil {
		log.WithError(err).Warn(what)
	}
}

// say has a packet sent soon, if only to tell what is known here.
func (e *engine) say(after time.Duration) {
	at := time.Now().Add(after)
	if e.sayAt.IsZero() || at.Before(e.sayAt) {
		e.sayAt = at
	}
}

// listen notes which sites have been seen typing, and which have shown a key.
func (e *engine) listen() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.peers {
		if typed := e.typed[p.site.Bot]; typed.After(p.heard) {
			e.hear(p)
		}
		if e.shown[p.site.Bot] {
			delete(e.shown, p.site.Bot)
			p.learned = time.Time{}
		}
	}
}

// tell has the others hear of another tree.
func (e *engine) tell() {
	if t := e.store.Tree(); t.Version != e.announced.Version || t.Epoch != e.announced.Epoch {
		e.announced = t.Mark()
		e.say(0)
	}
}

// until is how long nothing is to be done. What is due already and was not done has failed, and waits for pausedTo.
func (e *engine) until() time.Duration {
	now := time.Now()
	wait := min(e.beatEvery(), time.Minute)
	consider := func(at time.Time) {
		if d := at.Sub(now); d > 0 && d < wait {
			wait = d
		}
	}
	consider(e.pausedTo)
	if now.Before(e.pausedTo) {
		return max(wait, 5*time.Millisecond)
	}
	for _, at := range []time.Time{e.beatAt, e.sayAt, e.roomAt, e.loopAt} {
		consider(at)
	}
	for _, p := range e.peers {
		consider(p.stuck)
		if len(p.under) > 0 {
			consider(p.retryAt)
		}
		if p.sent < p.outSeq && len(p.under) < p.window {
			consider(now.Add(idle))
		}
	}
	return max(wait, 5*time.Millisecond)
}

// beat lets the others know that this site is there, by typing: nothing of it is kept anywhere.
func (e *engine) beat(ctx context.Context) {
	now := time.Now()
	if now.Before(e.beatAt) {
		return
	}
	e.beatAt = now.Add(e.beatEvery())
	body := map[string]any{"typing": true, "timeout": min(5*time.Second, e.beatEvery()/2).Milliseconds()}
	path := mxclient.Path("/_matrix/client/v3/rooms", string(e.room), "typing", string(e.own.Bot))
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := e.mx.Do(ctx, mxclient.Request{Method: http.MethodPut, Path: path, Body: body, Once: true}, nil); err != nil {
		e.trouble(ctx, err, "telling the other sites that this one is there failed")
	}
}

func (s *Sites) beatEvery() time.Duration {
	if s.opts.Beat > 0 {
		return s.opts.Beat
	}
	return 20 * time.Second
}

// hear notes that a site has been heard of. One that was silent is sent what waits for it.
func (e *engine) hear(p *peer) {
	now := time.Now()
	if now.Sub(p.heard) > 3*e.beatEvery() && len(p.under) > 0 {
		p.retries, p.retryAt = 0, now
	}
	p.heard = now
}

// tidy forgets what is no longer needed, once an hour.
func (e *engine) tidy(ctx context.Context) {
	now := time.Now()
	for _, p := range e.peers {
		if p.heard.Sub(p.savedAt) > saveHeard {
			e.saveHeard(ctx, p)
		}
	}
	if now.Before(e.tidyAt) {
		return
	}
	e.tidyAt = now.Add(time.Hour)
	err := e.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qForgetTrees, e.store.Tree().Version-keepTrees); err != nil {
			return err
		}
		_, err := tx.Exec(qForgetHandled, now.Add(-handledFor).UnixMilli())
		return err
	})
	if err != nil {
		e.trouble(ctx, err, "forgetting old messages of sites failed")
	}
}

func (e *engine) saveHeard(ctx context.Context, p *peer) {
	p.savedAt = p.heard
	err := e.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSaveHeard, p.name, p.tree.Epoch, p.tree.Version, p.tree.Digest, millis(p.heard))
		return err
	})
	if err != nil {
		e.trouble(ctx, err, "noting when a site was heard of failed")
	}
}

// publishLags makes what Lag answers.
func (e *engine) publishLags() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.peers {
		l := e.lags[p.name]
		l.Heard, l.Sent, l.Acknowledged, l.Waiting = p.heard, p.outSeq, p.acked, int(p.outSeq-p.acked)
		l.oldest = p.oldest(l)
		e.lags[p.name] = l
		e.marks[p.name] = p.tree
		e.keys[p.name] = [2]string{p.key, p.offered}
	}
}

// oldest is since when something waits, as far as this process has seen it.
func (p *peer) oldest(before lag) time.Time {
	if p.outSeq == p.acked {
		return time.Time{}
	}
	if before.Acknowledged == p.acked && !before.oldest.IsZero() {
		return before.oldest
	}
	return time.Now()
}

// Typing takes who types in a room: the bots of the other sites say by it that they are there.
func (s *Sites) Typing(room id.RoomID, users []id.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if room != s.room || room == "" {
		return
	}
	for _, u := range users {
		if u == s.own.Bot || !s.IsBot(u) {
			continue
		}
		now := time.Now()
		if now.Sub(s.typed[u]) > 3*s.beatEvery() {
			s.Wake() // something may have waited for it
		}
		s.typed[u] = now
	}
}

// Event takes an event of the homeserver's transactions; it passes over what does not concern it. What has been taken
// is stored when it returns.
func (s *Sites) Event(ctx context.Context, ev *mxclient.Event) error {
	if !s.Many() {
		return nil
	}
	s.mu.Lock()
	room := s.room
	s.mu.Unlock()
	if ev.Membership() == "invite" && *ev.StateKey == string(s.own.Bot) && id.UserID(ev.Sender) == s.head.Bot && id.RoomID(ev.Room) != room {
		s.moved.Store(true)
		s.lookAgain.Store(true)
		s.Wake()
		return nil
	}
	if id.RoomID(ev.Room) != room || room == "" || ev.Sender == string(s.own.Bot) {
		return nil
	}
	switch {
	case ev.Type == "m.room.member":
		s.lookAgain.Store(true)
		s.Wake()
	case ev.Type == EventKey:
		s.mu.Lock()
		s.shown[id.UserID(ev.Sender)] = true
		s.mu.Unlock()
	case ev.Type == EventMessage && ev.StateKey == nil:
		return s.store1(ctx, ev)
	}
	return nil
}

// mostWaiting bounds the messages of a site that wait for being taken; what is beyond is sent again later.
const mostWaiting = 1000

// store1 keeps a message until Run takes it.
func (s *Sites) store1(ctx context.Context, ev *mxclient.Event) error {
	site, ok := s.OfServer(id.UserID(ev.Sender).Homeserver())
	if !ok || site.Bot != id.UserID(ev.Sender) {
		log.WithFields(log.Fields{"sender": ev.Sender, "event": ev.ID}).Warn("a message in the sites' room is refused: its sender is not the bot of a site")
		return nil
	}
	if len(ev.Content) > maxContent || len(ev.Content) < len(`{"packet":""}`) || !json.Valid(ev.Content) {
		return nil // what was sent before this site was in the room comes without its content
	}
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		var n int
		if err := tx.QueryRow(qCountIn, site.Name).Scan(&n); err != nil || n >= mostWaiting {
			return err
		}
		_, err := tx.Exec(qInsertIn, site.Name, ev.ID, string(ev.Content))
		return err
	})
	if err != nil {
		return fmt.Errorf("keeping a message of site %q: %w", site.Name, err)
	}
	s.Wake()
	return nil
}

// peerOf finds a peer by its name.
func (e *engine) peerOf(name string) *peer {
	i := slices.IndexFunc(e.peers, func(p *peer) bool { return p.name == name })
	if i < 0 {
		return nil
	}
	return e.peers[i]
}
