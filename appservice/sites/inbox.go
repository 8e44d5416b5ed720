package sites

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// errLater is the error of a packet that is not to be taken yet.
var errLater = errors.New("not yet")

// publicKey reads a key, nil if it is none.
func publicKey(text string) ed25519.PublicKey {
	b, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil
	}
	return b
}

// takeAll takes what a site has sent, in order, until something has to wait.
func (e *engine) takeAll(ctx context.Context, p *peer) {
	for ctx.Err() == nil && !time.Now().Before(p.stuck) {
		var n int64
		var content string
		err := e.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qIn, p.name).Scan(&n, &content) })
		if errors.Is(err, sqldb.ErrNoRows) {
			return
		}
		if err == nil {
			err = e.take(ctx, p, []byte(content))
		}
		if err == nil {
			err = e.db.Write(ctx, func(tx *sqldb.Tx) error {
				_, err := tx.Exec(qDeleteIn, n)
				return err
			})
		}
		switch {
		case errors.Is(err, errLater):
			return
		case err != nil:
			wait := min(idle<<min(p.tries, 6), time.Minute)
			p.tries++
			p.stuck = time.Now().Add(wait)
			if ctx.Err() == nil {
				log.WithFields(log.Fields{"site": p.name, "again_in": wait}).WithError(err).Warn("a message of a site could not be handled; it is tried again")
			}
			return
		}
		p.tries, p.stuck = 0, time.Time{}
	}
}

// take takes one packet.
func (e *engine) take(ctx context.Context, p *peer, content []byte) error {
	pk, err := e.opened(ctx, p, content)
	if err != nil || pk == nil {
		return err
	}
	e.hear(p)
	if pk.Run != p.run || pk.Count > p.count {
		p.run, p.count = pk.Run, pk.Count
		if err := e.header(ctx, p, pk); err != nil {
			return err
		}
	}
	to, ok := pk.To[e.own.Name]
	if !ok || len(pk.Messages) == 0 {
		return nil
	}
	p.owed = true
	e.say(sayAfter)
	return e.messages(ctx, p, to, pk.Messages)
}

// opened is the packet of an event, nil for one that is refused.
func (e *engine) opened(ctx context.Context, p *peer, content []byte) (*packet, error) {
	if p.key == "" {
		if err := e.learn(ctx, p); err != nil {
			return nil, err
		}
	}
	pk, err := open(content, publicKey(p.key))
	if errors.Is(err, errSignature) {
		if lerr := e.learn(ctx, p); lerr != nil {
			return nil, lerr
		}
	}
	switch {
	case err != nil:
	case pk.From != p.name:
		err = errors.New("it names another site")
	case pk.Room != e.room:
		err = errors.New("it was made for another room")
	default:
		return pk, nil
	}
	if now := time.Now(); now.Sub(p.refused) > time.Minute {
		p.refused = now
		log.WithField("site", p.name).WithError(err).Warn("a message of a site is refused")
	}
	return nil, nil
}

// header takes what a packet says of its sender.
func (e *engine) header(ctx context.Context, p *peer, pk *packet) error {
	if pk.Tree != p.tree {
		p.tree = pk.Tree
		e.saveHeard(ctx, p)
	}
	if p.site.Head {
		e.offered = pk.Tree
		if err := e.delegated(ctx, pk.Delegated); err != nil {
			return err
		}
	} else if e.own.Head && pk.Tree.Before(e.store.Tree().Mark()) {
		e.say(sayAfter)
	}
	if a, ok := pk.Acks[e.own.Name]; ok {
		return e.acked(ctx, p, a)
	}
	return nil
}

// messages handles those of a packet that are next.
func (e *engine) messages(ctx context.Context, p *peer, to address, list []message) error {
	switch {
	case to.Generation < p.inGen:
		return nil
	case to.Generation > p.inGen && to.First != 1:
		p.want = true
		return nil
	case to.Generation > p.inGen:
		p.inGen, p.inSeq, p.inID = to.Generation, 0, ""
	}
	before := to.Before
	for i := range list {
		m := &list[i]
		seq := to.First + int64(i)
		switch {
		case seq <= p.inSeq:
			known, err := e.known(ctx, p, m.ID)
			if err != nil {
				return err
			}
			if !known { // the sender has lost what it had sent before
				p.want = true
				return nil
			}
		case seq > p.inSeq+1, before != p.inID:
			p.want = true
			return nil
		default:
			if err := e.handleNext(ctx, p, m); err != nil {
				return err
			}
		}
		before = m.ID
	}
	return nil
}

func (e *engine) known(ctx context.Context, p *peer, message string) (known bool, err error) {
	err = e.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		known, err = exists(tx, qHandled, p.name, message)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("looking up a message of site %q: %w", p.name, err)
	}
	return known, nil
}

// handleNext handles the message that is next in a site's stream. One that was handled in an earlier stream is passed.
func (e *engine) handleNext(ctx context.Context, p *peer, m *message) error {
	gen, seq := p.inGen, p.inSeq+1
	done := func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qInsertHandled, p.name, m.ID, time.Now().UnixMilli()); err != nil {
			return err
		}
		_, err := tx.Exec(qSaveIn, p.name, gen, seq, m.ID)
		return err
	}
	known, err := e.known(ctx, p, m.ID)
	if err != nil {
		return err
	}
	if known {
		err = e.db.Write(ctx, done)
	} else {
		err = e.handleOne(ctx, p, m, done)
	}
	if err != nil {
		return err
	}
	p.inSeq, p.inID = seq, m.ID
	return nil
}

func (e *engine) handleOne(ctx context.Context, p *peer, m *message, done func(*sqldb.Tx) error) error {
	body := m.Body
	if m.Media != nil {
		var err error
		body, err = e.fetched(p, m)
		var refused refusal
		if errors.As(err, &refused) {
			log.WithFields(log.Fields{"site": p.name, "kind": m.Kind}).WithError(err).Warn("a message of a site is refused")
			return e.db.Write(ctx, done)
		}
		if err != nil {
			return err
		}
	}
	switch m.Kind {
	case kindTree:
		return e.takeTree(ctx, p, body, done)
	case kindPropose:
		return e.takeProposal(ctx, p, body, done)
	}
	return e.handle(ctx, p.site, m.Kind, body, done)
}

// fetch is a download under way.
type fetch struct {
	message string
	done    chan struct{}
	body    json.RawMessage
	err     error
}

// fetchFor bounds one attempt to download a body: its server may be cut off.
const fetchFor = 2 * time.Minute

// fetched is the body of a message that was uploaded. It is downloaded aside, so that the other sites need not wait;
// until then the error is errLater.
func (e *engine) fetched(p *peer, m *message) (json.RawMessage, error) {
	if p.fetch == nil || p.fetch.message != m.ID {
		f := &fetch{message: m.ID, done: make(chan struct{})}
		p.fetch = f
		e.aside.Go(func() {
			ctx, cancel := context.WithTimeout(e.life, fetchFor)
			defer cancel()
			f.body, f.err = e.getMedia(ctx, m.Media)
			close(f.done)
			e.Wake()
		})
	}
	select {
	case <-p.fetch.done:
		body, err := p.fetch.body, p.fetch.err
		if err != nil {
			p.fetch = nil
		}
		return body, err
	default:
		return nil, errLater
	}
}
