package sites

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// How many packets are under way to one site before it has acknowledged: few at first, twice as many each time that it
// answers, one when it does not.
const (
	firstWindow = 4
	lastWindow  = 32
	lastRetry   = 10 * time.Minute
)

func (s *Sites) retryAfter() time.Duration {
	if s.opts.Retry > 0 {
		return s.opts.Retry
	}
	return 10 * time.Second
}

// acked takes what a site says to have handled last of the stream to it.
func (e *engine) acked(ctx context.Context, p *peer, a ack) error {
	anew := false
	switch {
	case a.Generation < p.outGen:
		anew = p.acked > 0 // it has lost what it had acknowledged
	case a.Generation > p.outGen || a.Seq < p.acked || a.Seq == p.acked && a.ID != p.ackedID:
		anew = true
	case a.Seq > p.acked:
		id, err := e.idAt(ctx, p, a.Seq)
		if err != nil {
			return err
		}
		if anew = id != a.ID; !anew {
			if err := e.forget(ctx, p, a); err != nil {
				return err
			}
		}
	}
	if anew {
		return e.renumber(ctx, p, max(p.outGen, a.Generation)+1)
	}
	if a.Want && !time.Now().Before(p.resendAt) {
		p.resendAt = time.Now().Add(time.Second)
		p.sent, p.under = p.acked, nil
	}
	return nil
}

// idAt is the message of a place in the stream to a site, "" if there is none.
func (e *engine) idAt(ctx context.Context, p *peer, seq int64) (message string, err error) {
	err = e.db.Read(ctx, func(tx *sqldb.Tx) error {
		err := tx.QueryRow(qOutAt, p.name, seq).Scan(&message)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("looking up a message to site %q: %w", p.name, err)
	}
	return message, nil
}

// forget lets go of what a site has handled.
func (e *engine) forget(ctx context.Context, p *peer, a ack) error {
	err := e.db.Write(ctx, func(tx *sqldb.Tx) error {
		rows, err := sqldb.Select(tx, scanOutID, qOutIDs, p.name, a.Seq)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(qDeleteOut, p.name, a.Seq); err != nil {
			return err
		}
		for _, r := range rows {
			if _, err := tx.Exec(qDeleteMessage, r.ID); err != nil {
				return err
			}
		}
		_, err = tx.Exec(qSaveAcked, p.name, a.Seq, a.ID, p.outGen)
		return err
	})
	if err != nil {
		return fmt.Errorf("noting what site %q has handled: %w", p.name, err)
	}
	p.acked, p.ackedID = a.Seq, a.ID
	p.sent = max(p.sent, p.acked)
	p.under = slices.DeleteFunc(p.under, func(last int64) bool { return last <= p.acked })
	p.retries, p.window = 0, min(2*p.window, lastWindow)
	p.retryAt = time.Time{}
	if len(p.under) > 0 {
		p.retryAt = time.Now().Add(e.retryAfter())
	}
	return nil
}

// renumber begins a new stream to a site with all that it has not acknowledged. It is needed when one of the two was
// restored from a backup, so that the numbers of its stream mean something else than before. What the site has handled
// already it knows by the messages' IDs.
func (e *engine) renumber(ctx context.Context, p *peer, generation int64) error {
	var count int64
	err := e.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qLockPeer, p.name); err != nil { // nothing is added meanwhile
			return err
		}
		rows, err := sqldb.Select(tx, scanOutID, qOutIDs, p.name, int64(1)<<62)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(qDeleteOut, p.name, int64(1)<<62); err != nil {
			return err
		}
		for i, r := range rows {
			if _, err := tx.Exec(qInsertOut, p.name, int64(i)+1, r.ID); err != nil {
				return err
			}
		}
		count = int64(len(rows))
		_, err = tx.Exec(qSetStream, p.name, generation, count)
		return err
	})
	if err != nil {
		return fmt.Errorf("beginning a new stream to site %q: %w", p.name, err)
	}
	log.WithFields(log.Fields{"site": p.name, "generation": generation, "waiting": count}).
		Warn("this site or another one was restored from a backup: what waits for it is sent in a new stream")
	p.outGen, p.outSeq, p.acked, p.ackedID = generation, count, 0, ""
	p.sent, p.under, p.retries, p.retryAt, p.window = 0, nil, 0, time.Time{}, firstWindow
	return nil
}

// batch is what goes to a site in one packet.
type batch struct {
	peer *peer
	to   address
	last int64
	list []message
}

// send sends what waits, and what is to be said.
func (e *engine) send(ctx context.Context) error {
	if err := e.count1(ctx); err != nil {
		return err
	}
	now := time.Now()
	for _, p := range e.peers {
		if len(p.under) > 0 && !p.retryAt.IsZero() && !now.Before(p.retryAt) {
			p.sent, p.under, p.window = p.acked, nil, 1
			p.retries++
		}
	}
	for {
		groups, err := e.batches(ctx)
		if err != nil {
			return err
		}
		for _, g := range groups {
			if err := e.sendPacket(ctx, g); err != nil {
				return err
			}
		}
		if len(groups) == 0 {
			break
		}
	}
	if !e.sayAt.IsZero() && !now.Before(e.sayAt) {
		return e.sendPacket(ctx, nil)
	}
	return nil
}

// count1 reads how far the streams go.
func (e *engine) count1(ctx context.Context) error {
	var list []*peer
	err := e.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, scanPeer, qPeers)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading what waits for other sites: %w", err)
	}
	for _, row := range list {
		if p := e.peerOf(row.name); p != nil {
			p.outSeq = row.outSeq
			if p.key != row.key { // an operator trusts another one now: what was refused is asked for
				p.key, p.offered, p.owed, p.want = row.key, row.offered, true, true
				e.say(0)
			}
		}
	}
	return nil
}

// batches gathers the next packet of each site. Sites that get the same messages share one.
func (e *engine) batches(ctx context.Context) ([][]*batch, error) {
	var groups [][]*batch
	place := map[string]int{}
	for _, p := range e.peers {
		if p.sent >= p.outSeq || len(p.under) >= p.window {
			continue
		}
		b, err := e.batch(ctx, p)
		if err != nil {
			return nil, err
		}
		if b == nil {
			continue
		}
		var key strings.Builder
		for i := range b.list {
			key.WriteString(b.list[i].ID + " ")
		}
		i, ok := place[key.String()]
		if !ok {
			i = len(groups)
			place[key.String()] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], b)
	}
	return groups, nil
}

// batch gathers the next packet of a site.
func (e *engine) batch(ctx context.Context, p *peer) (*batch, error) {
	var rows []outRow
	before := p.ackedID
	err := e.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		if p.sent > p.acked {
			if err := tx.QueryRow(qOutAt, p.name, p.sent).Scan(&before); err != nil {
				return err
			}
		}
		rows, err = sqldb.Select(tx, scanOut, qOut, p.name, p.sent, maxMessages/2)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading what waits for site %q: %w", p.name, err)
	}
	if len(rows) == 0 || rows[0].Seq != p.sent+1 {
		return nil, nil
	}
	b := &batch{peer: p, to: address{p.outGen, p.sent + 1, before}}
	size := 0
	for _, r := range rows {
		m := message{ID: r.ID, Kind: r.Kind}
		cost, err := e.pour(ctx, &m, &r)
		if err != nil {
			return nil, err
		}
		if len(b.list) > 0 && size+cost > maxGathered {
			break
		}
		size += cost
		b.list, b.last = append(b.list, m), r.Seq
	}
	return b, nil
}

// pour puts a body into a message: itself, or where it was uploaded if it is too large. It answers how much of a
// packet the message takes.
func (e *engine) pour(ctx context.Context, m *message, r *outRow) (int, error) {
	if r.MediaText != "" {
		m.Media = new(media)
		return 300, json.Unmarshal([]byte(r.MediaText), m.Media)
	}
	if len(r.Body) <= maxGathered {
		m.Body = json.RawMessage(r.Body)
		return len(r.Body) + 100, nil
	}
	packed, err := pack([]byte(r.Body))
	if err != nil {
		return 0, err
	}
	if len(packed) <= maxPacked-2048 && len(r.Body) < maxUnpacked/2 {
		m.Body = json.RawMessage(r.Body)
		return maxGathered, nil // goes alone
	}
	if m.Media, err = e.putMedia(ctx, []byte(r.Body)); err != nil {
		return 0, err
	}
	text, err := json.Marshal(m.Media)
	if err != nil {
		return 0, err
	}
	r.MediaText = string(text)
	return 300, e.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSetMedia, r.ID, string(text))
		return err
	})
}

// sendPacket sends one packet; without batches it only tells what is known here.
func (e *engine) sendPacket(ctx context.Context, group []*batch) error {
	e.count++
	pk := &packet{From: e.own.Name, Room: e.room, Run: e.run, Count: e.count, Tree: e.store.Tree().Mark(), Acks: map[string]ack{}}
	if e.own.Head {
		pk.Delegated = e.delegations()
	}
	var told []*peer
	for _, p := range e.peers {
		if p.owed || p.inGen > 0 && len(group) == 0 {
			pk.Acks[p.name] = ack{p.inGen, p.inSeq, p.inID, p.want}
			told = append(told, p)
		}
	}
	if len(group) > 0 {
		pk.To, pk.Messages = map[string]address{}, group[0].list
		for _, b := range group {
			pk.To[b.peer.name] = b.to
		}
	}
	env, err := seal(pk, e.key)
	if err != nil {
		return err
	}
	if _, err := e.mx.SendEvent(ctx, e.room, "", EventMessage, env, "site-"+matrix.RandomString(16)); err != nil {
		return fmt.Errorf("sending to the sites' room: %w", err)
	}
	e.sayAt = time.Time{}
	for _, p := range told {
		p.owed, p.want = false, false
	}
	now := time.Now()
	for _, b := range group {
		p := b.peer
		p.sent, p.under = b.last, append(p.under, b.last)
		p.retryAt = now.Add(min(e.retryAfter()<<min(p.retries, 10), lastRetry))
	}
	return nil
}
