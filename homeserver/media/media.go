// Package media is the content repository: uploads, downloads, thumbnails and
// copies of files of other servers.
//
// Table: media. Files lie in a folder under the SHA-256 of their content, so that
// the same content is kept once; thumbnails lie beside them and can be made anew.
//
// Spec: client-server-api#content-repository, server-server-api#content-repository
//
// Invariants: a file is written to the end, synced and renamed before its row is
// committed, so that a row never points to half a file. Content never changes once
// it is there. Names that come from outside never become part of a path. Memory
// does not grow with the size of files.
package media

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schema embed.FS

// Options are the limits and the place of the store. Zero values have the meaning that the comments say.
type Options struct {
	Server    matrix.ServerName
	Dir       string
	MaxUpload int64 // bytes; 0 is 100 MiB
	MaxRemote int64 // bytes of a file of another server; 0 is 100 MiB
	MaxPixels int   // of a picture that is made smaller; 0 is 60 million
	// FixedSizes makes thumbnails of the standard sizes only, and not of those that clients ask for.
	FixedSizes bool
	// OpenDownloads serves new media on the deprecated endpoints that ask for no access token, too.
	OpenDownloads bool
	UserBytes     int64         // what one user may upload in all; 0 is no limit
	UserFiles     int64         // how many files one user may upload; 0 is no limit
	RemoteBytes   int64         // copies of other servers' files kept in all; 0 is no limit
	MaxPending    int           // media IDs that one user may have without content; 0 is 20
	PendingFor    time.Duration // how long such an ID waits; 0 is 24 hours
	Now           matrix.Now    // nil: time.Now
}

// Remote reads from other servers. Answers have a status below 400; everything else is an error, an
// *fedclient.Error where the server has answered.
type Remote interface {
	// Get sends a signed request to a server.
	Get(ctx context.Context, server matrix.ServerName, path string, query url.Values) (*http.Response, error)
	// GetURL fetches from a place that another server has named, if it is one that may be visited.
	GetURL(ctx context.Context, rawURL string) (*http.Response, error)
}

// Store is the content repository.
type Store struct {
	db     *sqldb.DB
	opts   Options
	remote Remote // nil: there is no federation

	// sweep lets files be removed while none is being added.
	sweep    sync.RWMutex
	fetching gate.Keyed[name]
	creating gate.Keyed[matrix.UserID]
	making   gate.Keyed[string] // thumbnails
	fetches  *gate.Semaphore
	pixels   *gate.Semaphore // millions of pixels in memory

	mu      sync.Mutex
	waiters map[name]*waiter
}

// name is the name of a file: mxc://origin/id.
type name struct {
	origin matrix.ServerName
	id     string
}

// MXC is the URI of a name.
func (n name) MXC() string { return "mxc://" + string(n.origin) + "/" + n.id }

const (
	defaultMaxFile   = 100 << 20
	defaultMaxPixels = 60_000_000
	maxFetches       = 32
	// pixelBudget is how many million pixels may be in memory at a time.
	pixelBudget = 64
)

// New prepares the table and the folder. remote may be nil.
func New(ctx context.Context, db *sqldb.DB, remote Remote, opts Options) (*Store, error) {
	if err := db.Migrate(ctx, "media", schema); err != nil {
		return nil, err
	}
	if opts.MaxUpload <= 0 {
		opts.MaxUpload = defaultMaxFile
	}
	if opts.MaxRemote <= 0 {
		opts.MaxRemote = defaultMaxFile
	}
	if opts.MaxPixels <= 0 {
		opts.MaxPixels = defaultMaxPixels
	}
	if opts.MaxPending <= 0 {
		opts.MaxPending = 20
	}
	if opts.PendingFor <= 0 {
		opts.PendingFor = 24 * time.Hour
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	s := &Store{
		db: db, opts: opts, remote: remote,
		fetches: gate.NewSemaphore(maxFetches), pixels: gate.NewSemaphore(pixelBudget),
		waiters: map[name]*waiter{},
	}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("preparing the media folder: %w", err)
	}
	return s, nil
}

// prepare makes the folders. What an earlier process was writing when it ended is of no use.
func (s *Store) prepare() error {
	if err := os.RemoveAll(s.tmp()); err != nil {
		return err
	}
	if err := os.MkdirAll(s.tmp(), 0o700); err != nil {
		return err
	}
	for i := range 256 {
		if err := os.MkdirAll(filepath.Dir(s.file(fmt.Sprintf("%02x", i))), 0o700); err != nil {
			return err
		}
	}
	return errors.Join(syncDir(filepath.Join(s.opts.Dir, "files")), syncDir(s.opts.Dir))
}

func (s *Store) tmp() string { return filepath.Join(s.opts.Dir, "tmp") }

// file is where content lies. hash comes from our own computation.
func (s *Store) file(hash string) string {
	return filepath.Join(s.opts.Dir, "files", hash[:2], hash)
}

func (s *Store) thumbnailDir(hash string) string {
	return filepath.Join(s.opts.Dir, "thumbnails", hash[:2], hash)
}

// MaxUpload is the size in bytes that uploads may have.
func (s *Store) MaxUpload() int64 { return s.opts.MaxUpload }

func (s *Store) nowMillis() int64 { return matrix.Millis(s.opts.Now()) }

// share is the least weight of one thumbnail, so that no more are made at a time than there are processors for.
func share() int64 { return max(pixelBudget/int64(2*runtime.GOMAXPROCS(0)), 1) }

// parseName checks the two parts of an mxc URI.
//
// Spec: client-server-api#content-repo-security-considerations
func parseName(origin, id string) (name, error) {
	if !matrix.ValidServerName(origin) || !validID(id) {
		return name{}, matrix.NotFound("no such media")
	}
	return name{matrix.ServerName(origin), id}, nil
}

func validID(id string) bool {
	if id == "" || len(id) > 255 {
		return false
	}
	return strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

// meta is a row of the table.
type meta struct {
	name
	uploader    matrix.UserID
	contentType string
	filename    string
	hash        string
	size        int64
	uploaded    int64
	expires     int64
	// authenticated media are not served on the deprecated endpoints.
	authenticated bool
}

func (m *meta) pending() bool { return m.hash == "" }

// find reads a row; M_NOT_FOUND if there is none or if it has waited too long for content.
func (s *Store) find(ctx context.Context, n name) (*meta, error) {
	m := &meta{name: n}
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qFind, string(n.origin), n.id).
			Scan(&m.uploader, &m.contentType, &m.filename, &m.hash, &m.size, &m.uploaded, &m.expires, &m.authenticated)
	})
	switch {
	case errors.Is(err, sqldb.ErrNoRows):
		return nil, matrix.NotFound("no such media")
	case err != nil:
		return nil, fmt.Errorf("reading media: %w", err)
	case m.pending() && m.expires <= s.nowMillis():
		return nil, matrix.NotFound("no such media")
	}
	return m, nil
}

const sweepEvery = time.Hour

// Run removes what has expired, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("sweeping media failed")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep removes IDs that never got content, and the oldest copies of other servers' files when there are too many.
func (s *Store) Sweep(ctx context.Context) error {
	now := s.nowMillis()
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qExpire, now)
		return err
	})
	if err != nil {
		return fmt.Errorf("removing expired media IDs: %w", err)
	}
	for s.opts.RemoteBytes > 0 {
		more, err := s.dropOldest(ctx)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// dropOldest removes some of the oldest copies if there are too many bytes of them.
func (s *Store) dropOldest(ctx context.Context) (dropped bool, err error) {
	var (
		total int64
		old   []meta
	)
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		if err := tx.QueryRow(qRemoteBytes, string(s.opts.Server)).Scan(&total); err != nil {
			return err
		}
		old, err = sqldb.Select(tx, func(r *sqldb.Rows) (m meta, err error) {
			err = r.Scan(&m.origin, &m.id, &m.hash, &m.size)
			return m, err
		}, qOldestRemote, string(s.opts.Server))
		return err
	})
	if err != nil {
		return false, fmt.Errorf("reading copies: %w", err)
	}
	for _, m := range old {
		if total <= s.opts.RemoteBytes {
			break
		}
		if err := s.Delete(ctx, m.origin, m.id); err != nil {
			return false, err
		}
		total -= m.size
		dropped = true
	}
	return dropped, nil
}

// Delete removes a file, and its content when nothing else has the same.
func (s *Store) Delete(ctx context.Context, origin matrix.ServerName, id string) error {
	s.sweep.Lock()
	defer s.sweep.Unlock()
	var (
		hash string
		left int64
	)
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		err := tx.QueryRow(qDelete, string(origin), id).Scan(&hash)
		if errors.Is(err, sqldb.ErrNoRows) {
			hash = ""
			return nil
		}
		if err != nil {
			return err
		}
		return tx.QueryRow(qUses, hash).Scan(&left)
	})
	if err != nil {
		return fmt.Errorf("deleting media: %w", err)
	}
	if hash == "" || left > 0 {
		return nil
	}
	if err := os.RemoveAll(s.thumbnailDir(hash)); err != nil {
		return fmt.Errorf("deleting thumbnails: %w", err)
	}
	if err := os.Remove(s.file(hash)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("deleting media: %w", err)
	}
	return nil
}
