// Package previews tells clients what is behind a link: it fetches the page in
// their place and gives its OpenGraph data, with the picture copied into the
// media store, so that nobody's client goes to a stranger's server.
//
// Table: url_previews. Previews are kept for some days and then go, with their
// pictures.
//
// Spec: client-server-api#get_matrixclientv1mediapreview_url
//
// Invariants: addresses of the own network are not visited, whatever a name
// resolves to or a redirect says; a page costs bounded time and memory; no
// address of a picture elsewhere is ever given to a client.
package previews

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/media"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schema embed.FS

// Options are what may be set.
type Options struct {
	Server matrix.ServerName
	// Guard decides which addresses may be visited; the zero Guard: public ones.
	Guard     fedclient.Guard
	UserAgent string
	// Allow are the only hosts that pages and pictures are fetched from, "*.example.org" for all below; empty: all.
	// Deny are those from which nothing is; it wins.
	Allow, Deny []string
	// Language is asked for when a client names none, as Accept-Language.
	Language string
	Now      matrix.Now
}

// Previews is the module.
type Previews struct {
	db     *sqldb.DB
	media  *media.Store
	opts   Options
	client *http.Client
	allow  hosts
	deny   hosts
	locks  gate.Keyed[string]
	visits *gate.Semaphore
}

const (
	// fresh is how long a preview is given without looking again, and freshFailure
	// how long a page that could not be had is left alone.
	fresh        = 6 * time.Hour
	freshFailure = 5 * time.Minute
	// kept is how long previews and pictures stay.
	kept       = 7 * 24 * time.Hour
	sweepEvery = time.Hour
	// maxVisits is how many pages are fetched at a time; others wait.
	maxVisits = 8
)

const (
	qNewest = `SELECT fetched_at, answer, failed FROM url_previews WHERE key = $1 ORDER BY fetched_at DESC LIMIT 1`
	qBefore = `SELECT fetched_at, answer, failed FROM url_previews WHERE key = $1 AND fetched_at <= $2 AND NOT failed ORDER BY fetched_at DESC LIMIT 1`
	qAdd    = `INSERT INTO url_previews (key, fetched_at, answer, image, failed) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (key, fetched_at) DO UPDATE SET answer = excluded.answer, image = excluded.image, failed = excluded.failed`
	qOld    = `SELECT key, fetched_at, image FROM url_previews WHERE fetched_at < $1 ORDER BY fetched_at LIMIT 100`
	qRemove = `DELETE FROM url_previews WHERE key = $1 AND fetched_at = $2`
)

// New prepares the module. Pictures go to files.
func New(ctx context.Context, db *sqldb.DB, files *media.Store, opts Options) (*Previews, error) {
	if err := db.Migrate(ctx, "previews", schema); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	p := &Previews{
		db: db, media: files, opts: opts, allow: newHosts(opts.Allow), deny: newHosts(opts.Deny), visits: gate.NewSemaphore(maxVisits),
	}
	p.client = p.newClient()
	return p, nil
}

// preview is a stored answer.
type preview struct {
	at     int64
	answer string
	failed bool
}

// errFailed says that a page could not be had.
var errFailed = errors.New("the page could not be fetched")

// Get gives the OpenGraph data of a page, as it was at ts (ms) if it was looked
// at then; 0 is now.
func (p *Previews) Get(ctx context.Context, address, language string, ts int64) (json.RawMessage, error) {
	sum := sha256.Sum256([]byte(language + " " + address))
	key := hex.EncodeToString(sum[:])
	if x, err := p.stored(ctx, key, ts); err != nil || x != nil {
		return x.result(err)
	}
	unlock, err := p.locks.LockContext(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if x, err := p.stored(ctx, key, ts); err != nil || x != nil { // somebody else has just fetched it
		return x.result(err)
	}
	release, err := p.visits.Acquire(ctx, 1)
	if err != nil {
		return nil, err
	}
	defer release()
	x := &preview{at: matrix.Millis(p.opts.Now())}
	data, image, err := p.visit(ctx, address, language)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err() // says nothing of the page
	case err != nil:
		x.failed = true
		log.WithError(err).Debug("a page could not be fetched for its preview")
	default:
		b, err := json.Marshal(data)
		if err != nil {
			return nil, fmt.Errorf("encoding preview: %w", err)
		}
		x.answer = string(b)
	}
	err = p.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qAdd, key, x.at, x.answer, image, x.failed)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing preview: %w", err)
	}
	return x.result(nil)
}

func (x *preview) result(err error) (json.RawMessage, error) {
	switch {
	case err != nil:
		return nil, err
	case x.failed:
		return nil, errFailed
	}
	return json.RawMessage(x.answer), nil
}

// stored finds what need not be fetched again; nil if there is nothing.
func (p *Previews) stored(ctx context.Context, key string, ts int64) (*preview, error) {
	x := &preview{}
	read := func(q string, args ...any) error {
		return p.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(q, args...).Scan(&x.at, &x.answer, &x.failed) })
	}
	now := p.opts.Now()
	if ts > 0 && ts < matrix.Millis(now) {
		err := read(qBefore, key, ts)
		if err == nil {
			return x, nil
		}
		if !errors.Is(err, sqldb.ErrNoRows) {
			return nil, fmt.Errorf("reading preview: %w", err)
		}
	}
	err := read(qNewest, key)
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading preview: %w", err)
	}
	valid := fresh
	if x.failed {
		valid = freshFailure
	}
	if x.at < matrix.Millis(now.Add(-valid)) {
		return nil, nil
	}
	return x, nil
}

// Run removes old previews until ctx ends.
func (p *Previews) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := p.Sweep(ctx); err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("sweeping previews failed")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep removes what is too old, with its pictures.
func (p *Previews) Sweep(ctx context.Context) error {
	type row struct {
		key, image string
		at         int64
	}
	before := matrix.Millis(p.opts.Now().Add(-kept))
	for {
		var rows []row
		err := p.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			rows, err = sqldb.Select(tx, func(r *sqldb.Rows) (x row, err error) {
				err = r.Scan(&x.key, &x.at, &x.image)
				return x, err
			}, qOld, before)
			return err
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, x := range rows {
			if x.image == "" {
				continue
			}
			if err := p.media.Delete(ctx, p.opts.Server, x.image); err != nil {
				return fmt.Errorf("deleting the picture of a preview: %w", err)
			}
		}
		err = p.db.Write(ctx, func(tx *sqldb.Tx) error {
			for _, x := range rows {
				if _, err := tx.Exec(qRemove, x.key, x.at); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("removing previews: %w", err)
		}
	}
}

// mediaID is the last part of an mxc URI.
func mediaID(mxc string) string { return mxc[strings.LastIndexByte(mxc, '/')+1:] }
