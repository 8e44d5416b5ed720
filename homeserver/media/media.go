// Package media is the content repository: uploads, downloads, thumbnails and
// copies of files of other servers.
//
// Tables: media, media_usage, media_quarantine. Content lies under its SHA-256, in
// a folder or in a bucket of an object store, so that the same content is kept
// once; thumbnails lie in a folder and can be made anew.
//
// Spec: client-server-api#content-repository, server-server-api#content-repository
//
// Invariants: content is durable before its row is committed, so that a row never
// points to half a file; content that no row knows is swept away. Content never
// changes once it is there. Names that come from outside never become part of a
// path. Memory does not grow with the size of files. What users and servers have in
// all is counted in the transaction that changes it.
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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schema embed.FS

// Options are the limits and the place of the store. Zero values have the meaning that the comments say.
type Options struct {
	Server matrix.ServerName
	Dir    string
	// Bucket keeps content in an object store; nil: in Dir. Thumbnails and uploads on their way are in Dir always.
	Bucket *Bucket
	// Redirect sends clients and servers that permit it to the bucket for files of at least RedirectFrom bytes.
	Redirect     bool
	RedirectFrom int64
	MaxUpload    int64 // bytes; 0 is 100 MiB
	MaxRemote    int64 // bytes of a file of another server; 0 is 100 MiB
	MaxPixels    int   // of a picture that is made smaller; 0 is 60 million
	// AVIF is the program, with its arguments, that decodes AVIF with WriteAVIF; none: no thumbnails are made of it.
	AVIF []string
	// TypeLimits are the largest uploads in bytes by type, "image/*" for a kind; 0 forbids. The first that fits counts.
	TypeLimits []TypeLimit
	// FixedSizes makes thumbnails of the standard sizes only, and not of those that clients ask for.
	FixedSizes bool
	// OpenDownloads serves new media on the deprecated endpoints that ask for no access token, too.
	OpenDownloads bool
	// Public names media that are served there in any case, such as the icons of sign-in pages; nil: none.
	Public      func(uri string) bool
	UserBytes   int64 // what one user may upload in all; 0 is no limit
	UserFiles   int64 // how many files one user may upload; 0 is no limit
	ServerBytes int64 // what all users of this server may upload in all; 0 is no limit
	// RemoteBytes is how much of other servers' files is kept; those asked for longest ago go first. 0 is no limit.
	RemoteBytes    int64
	RemoteFor      time.Duration // how long such a file is kept that nobody asks for; 0: for ever
	LocalFor       time.Duration // the same for uploads; 0: for ever
	ThumbnailBytes int64         // how much of thumbnails is kept; 0 is 4 GiB
	// InUse says that an upload is not to be removed though nobody has asked for it, such as an avatar; nil: none is.
	InUse      func(uploader matrix.UserID, uri string) bool
	MaxPending int           // media IDs that one user may have without content; 0 is 20
	PendingFor time.Duration // how long such an ID waits; 0 is 24 hours
	Now        matrix.Now    // nil: time.Now
}

// TypeLimit bounds uploads of one type.
type TypeLimit struct {
	Type string // image/png, image/* or *
	Max  int64  // bytes; 0: none of it
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
	files  contents

	// holding keeps content from being removed while it gets a row, by its hash.
	holding  gate.Keyed[string]
	creating gate.Keyed[matrix.UserID]
	making   gate.Keyed[string] // thumbnails
	fetches  *gate.Semaphore
	spools   *gate.Semaphore // copies of content for decoders that need a file
	memory   *gate.Semaphore // bytes that decoders may use

	thumbnailBytes atomic.Int64 // on the disk; -1: not counted yet

	mu      sync.Mutex
	waiters map[name]*waiter
	flights map[name]*flight
	asked   map[name]int64 // when they were asked for, to be stored
}

// name is the name of a file: mxc://origin/id.
type name struct {
	origin matrix.ServerName
	id     string
}

// MXC is the URI of a name.
func (n name) MXC() string { return "mxc://" + string(n.origin) + "/" + n.id }

const (
	defaultMaxFile    = 100 << 20
	defaultMaxPixels  = 60_000_000
	defaultThumbnails = 4 << 30
	maxFetches        = 32
	maxSpools         = 4
	// memoryBudget is how many bytes decoders may use at a time, together.
	memoryBudget = 512 << 20
)

// New prepares the tables and the place of the content. remote may be nil.
func New(ctx context.Context, db *sqldb.DB, remote Remote, opts Options) (*Store, error) {
	if err := db.Migrate(ctx, "media", schema); err != nil {
		return nil, err
	}
	opts.defaults()
	s := &Store{
		db: db, opts: opts, remote: remote,
		fetches: gate.NewSemaphore(maxFetches), spools: gate.NewSemaphore(maxSpools), memory: gate.NewSemaphore(memoryBudget),
		waiters: map[name]*waiter{}, flights: map[name]*flight{}, asked: map[name]int64{},
	}
	s.thumbnailBytes.Store(-1)
	if err := s.prepare(ctx); err != nil {
		return nil, fmt.Errorf("preparing the media store: %w", err)
	}
	return s, nil
}

func (o *Options) defaults() {
	if o.MaxUpload <= 0 {
		o.MaxUpload = defaultMaxFile
	}
	if o.MaxRemote <= 0 {
		o.MaxRemote = defaultMaxFile
	}
	if o.MaxPixels <= 0 {
		o.MaxPixels = defaultMaxPixels
	}
	if o.ThumbnailBytes <= 0 {
		o.ThumbnailBytes = defaultThumbnails
	}
	if o.MaxPending <= 0 {
		o.MaxPending = 20
	}
	if o.PendingFor <= 0 {
		o.PendingFor = 24 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// prepare makes the folders. What an earlier process was writing when it ended is of no use.
func (s *Store) prepare(ctx context.Context) (err error) {
	if err := os.RemoveAll(s.tmp()); err != nil {
		return err
	}
	if err := os.MkdirAll(s.tmp(), 0o700); err != nil {
		return err
	}
	if s.opts.Bucket != nil {
		s.files, err = newBucket(ctx, *s.opts.Bucket)
		return err
	}
	s.files, err = newFolder(filepath.Join(s.opts.Dir, "files"))
	return err
}

func (s *Store) tmp() string { return filepath.Join(s.opts.Dir, "tmp") }

// MaxUpload is the size in bytes that uploads may have.
func (s *Store) MaxUpload() int64 { return s.opts.MaxUpload }

func (s *Store) nowMillis() int64 { return matrix.Millis(s.opts.Now()) }

// parseName checks the two parts of an mxc URI.
//
// Spec: client-server-api#content-repo-security-considerations
func parseName(origin, id string) (name, error) {
	if !matrix.ValidServerName(origin) || !validID(id) {
		return name{}, errNone
	}
	return name{matrix.ServerName(origin), id}, nil
}

func validID(id string) bool {
	if id == "" || len(id) > 255 {
		return false
	}
	return strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

// errNone is what is heard of media that are not there, or not for the one who asks.
var errNone = matrix.NotFound("no such media")

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
	accessed    int64
	// authenticated media are not served on the deprecated endpoints.
	authenticated bool
	protected     bool
	quarantined   bool
}

func (m *meta) pending() bool { return m.hash == "" }

// row reads a row; nil if there is none.
func (s *Store) row(ctx context.Context, n name) (*meta, error) {
	m := &meta{name: n}
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qFind, string(n.origin), n.id, n.MXC()).Scan(&m.uploader, &m.contentType, &m.filename, &m.hash, &m.size,
			&m.uploaded, &m.expires, &m.accessed, &m.authenticated, &m.protected, &m.quarantined)
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading media: %w", err)
	}
	return m, nil
}

// errUnknown says that there is no row, which for other servers' files is a reason to fetch.
var errUnknown = fmt.Errorf("unknown: %w", errNone)

// find reads a row to be served: errUnknown if there is none, errNone if it may not be served.
func (s *Store) find(ctx context.Context, n name) (*meta, error) {
	m, err := s.row(ctx, n)
	switch {
	case err != nil:
		return nil, err
	case m == nil:
		return nil, errUnknown
	case m.quarantined, m.pending() && m.expires <= s.nowMillis():
		return nil, errNone
	}
	return m, nil
}
