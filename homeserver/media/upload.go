package media

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// octets is the type of content whose type is not known.
const octets = "application/octet-stream"

// stored is content that lies under its hash.
type stored struct {
	hash string
	size int64
}

// Upload stores content for a user, or for the server itself when uploader is empty, and returns its mxc URI.
func (s *Store) Upload(ctx context.Context, uploader matrix.UserID, contentType, filename string, r io.Reader) (string, error) {
	n := name{s.opts.Server, matrix.RandomString(32)}
	err := s.keep(r, s.opts.MaxUpload, func(c stored) error {
		if err := s.checkQuota(ctx, uploader, c.size); err != nil {
			return err
		}
		return s.db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qInsert, string(n.origin), n.id, string(uploader), cleanType(contentType), cleanName(filename),
				c.hash, c.size, s.nowMillis(), !s.opts.OpenDownloads)
			return err
		})
	})
	if err != nil {
		return "", err
	}
	return n.MXC(), nil
}

// errTooLarge is content beyond the limit.
var errTooLarge = errors.New("the content is too large")

// keep streams content to the disk, and calls commit when it is safe there; while commit runs the content cannot
// be swept away.
func (s *Store) keep(r io.Reader, limit int64, commit func(stored) error) error {
	f, err := os.CreateTemp(s.tmp(), "upload-")
	if err != nil {
		return fmt.Errorf("storing media: %w", err)
	}
	defer os.Remove(f.Name()) // it is gone already when all went well
	defer f.Close()
	hash := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, hash), io.LimitReader(r, limit+1))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over) || size > limit:
		return errTooLarge
	case err != nil:
		return fmt.Errorf("receiving media: %w", err)
	}
	c := stored{hex.EncodeToString(hash.Sum(nil)), size}
	s.sweep.RLock()
	defer s.sweep.RUnlock()
	if err := s.place(f, c.hash); err != nil {
		return fmt.Errorf("storing media: %w", err)
	}
	return commit(c)
}

// place puts a finished file under its hash so that it survives a power cut.
func (s *Store) place(f *os.File, hash string) error {
	path := s.file(hash)
	if _, err := os.Stat(path); err != nil { // else the same content is there
		if err := f.Sync(); err != nil {
			return err
		}
		if err := os.Rename(f.Name(), path); err != nil {
			return err
		}
	}
	// Also where another upload has just put the file: it may not have come to this yet.
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// checkQuota refuses an upload that would be too much for its user.
func (s *Store) checkQuota(ctx context.Context, uploader matrix.UserID, size int64) error {
	if uploader == "" || s.opts.UserBytes <= 0 && s.opts.UserFiles <= 0 {
		return nil
	}
	var files, bytes int64
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qUsed, string(uploader)).Scan(&files, &bytes) })
	if err != nil {
		return fmt.Errorf("reading quota: %w", err)
	}
	if s.opts.UserFiles > 0 && files >= s.opts.UserFiles || s.opts.UserBytes > 0 && bytes+size > s.opts.UserBytes {
		return matrix.Forbidden("your quota for uploads is used up")
	}
	return nil
}

// cleanType is a content type that can be sent to clients.
func cleanType(s string) string {
	if s == "" || len(s) > 255 {
		return octets
	}
	if t, _, err := mime.ParseMediaType(s); err != nil || !strings.Contains(t, "/") {
		return octets
	}
	return s
}

// cleanName is a file name that can be sent to clients.
func cleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || unicode.IsControl(r) {
			return -1
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > 255 {
		s = string(runes[:255])
	}
	return s
}

// admit checks what can be known before an upload is read.
func (s *Store) admit(c *httpapi.Call) error {
	if c.R.ContentLength > s.opts.MaxUpload {
		return s.uploadTooLarge()
	}
	return s.checkQuota(c.Ctx(), c.Caller.User, max(c.R.ContentLength, 0))
}

func (s *Store) uploadTooLarge() error {
	return matrix.TooLarge("uploads may have %d bytes at most", s.opts.MaxUpload)
}

// uploadError is what a client hears of an upload that failed.
func (s *Store) uploadError(c *httpapi.Call, err error) error {
	switch {
	case errors.Is(err, errTooLarge):
		return s.uploadTooLarge()
	case errors.Is(err, io.ErrUnexpectedEOF) || c.Ctx().Err() != nil:
		return matrix.Unknown("the upload ended too early")
	}
	return err
}

// upload is POST /upload.
func (s *Store) upload(c *httpapi.Call) (any, error) {
	if err := s.admit(c); err != nil {
		return nil, err
	}
	uri, err := s.Upload(c.Ctx(), c.Caller.User, c.R.Header.Get("Content-Type"), c.Query("filename"), c.BodyReader())
	if err != nil {
		return nil, s.uploadError(c, err)
	}
	return struct {
		URI string `json:"content_uri"`
	}{uri}, nil
}

// create is POST /create.
func (s *Store) create(c *httpapi.Call) (any, error) {
	user := c.Caller.User
	if err := s.checkQuota(c.Ctx(), user, 0); err != nil {
		return nil, err
	}
	unlock, err := s.creating.LockContext(c.Ctx(), user)
	if err != nil {
		return nil, err
	}
	defer unlock()
	now := s.opts.Now()
	expires := matrix.Millis(now.Add(s.opts.PendingFor))
	n := name{s.opts.Server, matrix.RandomString(32)}
	err = s.db.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		var pending int
		if err := tx.QueryRow(qPending, string(user), matrix.Millis(now)).Scan(&pending); err != nil {
			return err
		}
		if pending >= s.opts.MaxPending {
			return matrix.LimitExceeded(time.Minute)
		}
		_, err := tx.Exec(qReserve, string(n.origin), n.id, string(user), matrix.Millis(now), expires)
		return err
	})
	if err != nil {
		return nil, err
	}
	return struct {
		URI     string `json:"content_uri"`
		Expires int64  `json:"unused_expires_at"`
	}{n.MXC(), expires}, nil
}

// fill is PUT /upload/{serverName}/{mediaId}.
func (s *Store) fill(c *httpapi.Call) (any, error) {
	n, err := parseName(c.Var("serverName"), c.Var("mediaId"))
	if err != nil {
		return nil, err
	}
	if n.origin != s.opts.Server {
		return nil, matrix.NotFound("that media ID is not of this server")
	}
	m, err := s.find(c.Ctx(), n)
	if err != nil {
		return nil, err
	}
	switch {
	case m.uploader != c.Caller.User:
		return nil, matrix.Forbidden("another user has created this media ID")
	case !m.pending():
		return nil, errFilled
	}
	if err := s.admit(c); err != nil {
		return nil, err
	}
	err = s.keep(c.BodyReader(), s.opts.MaxUpload, func(content stored) error {
		if err := s.checkQuota(c.Ctx(), c.Caller.User, content.size); err != nil {
			return err
		}
		return s.db.Write(c.Ctx(), func(tx *sqldb.Tx) error {
			rows, err := tx.Exec(qFill, string(n.origin), n.id, cleanType(c.R.Header.Get("Content-Type")), cleanName(c.Query("filename")),
				content.hash, content.size, s.nowMillis(), !s.opts.OpenDownloads)
			if err == nil && rows == 0 {
				return errFilled // by a request at the same time
			}
			return err
		})
	})
	if err != nil {
		return nil, s.uploadError(c, err)
	}
	s.announce(n)
	return nil, nil
}

var errFilled = matrix.NewError(http.StatusConflict, "M_CANNOT_OVERWRITE_MEDIA", "this media ID has content already")

// waiter is woken when content comes for a name.
type waiter struct {
	filled chan struct{}
	refs   int
}

// await returns a channel that is closed when content comes, and the function to call afterwards.
func (s *Store) await(n name) (<-chan struct{}, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waiters[n]
	if w == nil {
		w = &waiter{filled: make(chan struct{})}
		s.waiters[n] = w
	}
	w.refs++
	return w.filled, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if w.refs--; w.refs == 0 && s.waiters[n] == w {
			delete(s.waiters, n)
		}
	}
}

func (s *Store) announce(n name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.waiters[n]; w != nil {
		close(w.filled)
		delete(s.waiters, n)
	}
}
