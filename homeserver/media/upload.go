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
	err := s.keep(ctx, r, s.maxUpload(contentType), func(c stored) error {
		return s.db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qInsert, string(n.origin), n.id, string(uploader), cleanType(contentType), cleanName(filename),
				c.hash, c.size, s.nowMillis(), !s.opts.OpenDownloads)
			if err != nil {
				return err
			}
			return s.charge(tx, uploader, n.origin, c.size)
		})
	})
	if err != nil {
		return "", err
	}
	return n.MXC(), nil
}

var (
	// errTooLarge is content beyond the limit.
	errTooLarge = errors.New("the content is too large")
	// errBanned is content that the administrators have put away.
	errBanned = matrix.Forbidden("this content is not permitted here")
)

// keep streams content to the disk, puts it where it belongs, and calls commit when it is safe there; while commit
// runs the content cannot be swept away.
func (s *Store) keep(ctx context.Context, r io.Reader, limit int64, commit func(stored) error) error {
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
	if banned, err := s.banned(ctx, c.hash); err != nil || banned != nil {
		return errors.Join(err, ifBanned(banned))
	}
	unlock, err := s.holding.LockContext(ctx, c.hash)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.files.put(ctx, c.hash, f, size); err != nil {
		return fmt.Errorf("storing media: %w", err)
	}
	return commit(c)
}

// maxUpload is how large an upload of a type may be.
func (s *Store) maxUpload(contentType string) int64 {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		t = octets
	}
	kind, _, _ := strings.Cut(t, "/")
	for _, l := range s.opts.TypeLimits {
		if l.Type == t || l.Type == kind+"/*" || l.Type == "*" {
			return min(l.Max, s.opts.MaxUpload)
		}
	}
	return s.opts.MaxUpload
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
		if r == unicode.ReplacementChar || unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return -1 // what writes from right to left can make an .exe look like a .txt
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
	limit := s.maxUpload(c.R.Header.Get("Content-Type"))
	if limit == 0 {
		return matrix.Forbidden("files of this type are not permitted here")
	}
	if c.R.ContentLength > limit {
		return uploadTooLarge(limit)
	}
	return s.checkQuota(c.Ctx(), c.Caller.User, max(c.R.ContentLength, 0))
}

func uploadTooLarge(limit int64) error {
	return matrix.TooLarge("uploads of this type may have %d bytes at most", limit)
}

// uploadError is what a client hears of an upload that failed.
func (s *Store) uploadError(c *httpapi.Call, err error) error {
	switch {
	case errors.Is(err, errTooLarge):
		return uploadTooLarge(s.maxUpload(c.R.Header.Get("Content-Type")))
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
	contentType := c.R.Header.Get("Content-Type")
	err = s.keep(c.Ctx(), c.BodyReader(), s.maxUpload(contentType), func(content stored) error {
		return s.db.Write(c.Ctx(), func(tx *sqldb.Tx) error {
			now := s.nowMillis()
			rows, err := tx.Exec(qFill, string(n.origin), n.id, cleanType(contentType), cleanName(c.Query("filename")),
				content.hash, content.size, now, !s.opts.OpenDownloads)
			switch {
			case err != nil:
				return err
			case rows == 0 && m.expires <= now:
				return errNone // while it came in
			case rows == 0:
				return errFilled // by a request at the same time
			}
			return s.charge(tx, m.uploader, n.origin, content.size)
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
