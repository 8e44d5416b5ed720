package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// size is a thumbnail that is asked for.
type size struct {
	width, height int
	crop          bool
	animated      bool
}

// standard are the sizes that everybody uses, small ones first.
//
// Spec: client-server-api#thumbnails
var standard = [...]size{
	{width: 32, height: 32, crop: true},
	{width: 96, height: 96, crop: true},
	{width: 320, height: 240},
	{width: 640, height: 480},
	{width: 800, height: 600},
}

const (
	// maxSide bounds thumbnails: larger ones are no thumbnails any more.
	maxSide = 1600
	// maxVariants is how many sizes of one file are kept; further ones are made each time.
	maxVariants = 24
	// maxAnimation is the largest animated picture that is given out as its own thumbnail.
	maxAnimation = 4 << 20
)

var errNoThumbnail = matrix.Unknown("cannot generate thumbnails for the requested content")

// readSize reads the query of a thumbnail request.
func readSize(c *httpapi.Call) (want size, err error) {
	for _, side := range []struct {
		name string
		into *int
	}{{"width", &want.width}, {"height", &want.height}} {
		if c.Query(side.name) == "" {
			return want, matrix.MissingParam("%s is missing", side.name)
		}
		if *side.into, err = c.QueryInt(side.name, 0, 1, maxSide); err != nil {
			return want, err
		}
	}
	switch c.Query("method") {
	case "", "scale":
	case "crop":
		want.crop = true
	default:
		return want, matrix.InvalidParam("method must be crop or scale")
	}
	want.animated, err = c.Bool("animated")
	return want, err
}

// fixed is the smallest standard size that is not below want, or the largest there is.
func fixed(want size) size {
	best := standard[len(standard)-1]
	for i := len(standard) - 1; i >= 0; i-- {
		if s := standard[i]; s.crop == want.crop && s.width >= want.width && s.height >= want.height {
			best = s
		}
	}
	best.animated = want.animated
	return best
}

// thumbnail is GET /thumbnail.
func (s *Store) thumbnail(open bool) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		r, err := readRequest(c, open)
		if err != nil {
			return nil, err
		}
		want, err := readSize(c)
		if err != nil {
			return nil, err
		}
		m, err := s.get(c.Ctx(), r)
		if err != nil {
			return nil, err
		}
		p, err := s.picture(c.Ctx(), m, want)
		if err != nil {
			return nil, err
		}
		defer p.Close()
		setHeaders(c.W.Header(), p.contentType, p.disposition(), p.etag, open)
		http.ServeContent(c.W, c.R, "", time.UnixMilli(m.uploaded), p)
		return httpapi.Done, nil
	}
}

// picture is a thumbnail to be served.
type picture struct {
	io.ReadSeeker
	close       func() error
	contentType string
	etag        string
}

// Close frees the file, if it is one.
func (p *picture) Close() {
	if p.close != nil {
		_ = p.close()
	}
}

func (p *picture) disposition() string {
	return `inline; filename="thumbnail.` + extension(p.contentType) + `"`
}

func extension(contentType string) string {
	switch contentType {
	case typeJPEG:
		return "jpg"
	case typeGIF:
		return "gif"
	case typeWebP:
		return "webp"
	}
	return "png"
}

// picture returns the thumbnail of a file: one that is there, the file itself if it is small enough, or a new one.
func (s *Store) picture(ctx context.Context, m *meta, want size) (*picture, error) {
	if s.opts.FixedSizes {
		want = fixed(want)
	}
	base := fmt.Sprintf("%dx%d-scale", want.width, want.height)
	if want.crop {
		base = fmt.Sprintf("%dx%d-crop", want.width, want.height)
	}
	if !want.animated {
		if p := s.kept(m, base); p != nil {
			return p, nil
		}
	}
	f, err := s.open(m)
	if err != nil {
		return nil, err
	}
	src, err := inspect(f, m.size)
	if err != nil {
		f.Close()
		return nil, errNoThumbnail
	}
	if want.animated && src.animated && m.size <= maxAnimation || !src.animated && src.fits(want) {
		return &picture{f, f.Close, src.contentType, m.hash}, nil
	}
	defer f.Close()
	if src.width*src.height > s.opts.MaxPixels {
		if m.origin != s.opts.Server {
			return nil, matrix.NewError(http.StatusBadGateway, "M_TOO_LARGE", "the content is too large for a thumbnail")
		}
		return nil, matrix.TooLarge("the content is too large for a thumbnail")
	}
	return s.make(ctx, m, src, want, base)
}

// kept opens a thumbnail that has been made before.
func (s *Store) kept(m *meta, base string) *picture {
	for _, t := range [...]string{typeJPEG, typePNG} {
		f, err := os.Open(filepath.Join(s.thumbnailDir(m.hash), base+"."+extension(t)))
		if err == nil {
			return &picture{f, f.Close, t, m.hash + "-" + base}
		}
	}
	return nil
}

// make makes a thumbnail, one at a time of the same, and as many as fit into memory.
func (s *Store) make(ctx context.Context, m *meta, src *source, want size, base string) (*picture, error) {
	unlock, err := s.making.LockContext(ctx, m.hash+base)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if p := s.kept(m, base); p != nil {
		return p, nil
	}
	release, err := s.pixels.Acquire(ctx, max(int64(src.width*src.height/1_000_000), share()))
	if err != nil {
		return nil, err
	}
	defer release()
	b, contentType, err := src.shrink(want)
	if err != nil {
		return nil, errNoThumbnail
	}
	if err := s.keepThumbnail(m, base+"."+extension(contentType), b); err != nil {
		return nil, fmt.Errorf("storing thumbnail: %w", err)
	}
	return &picture{bytes.NewReader(b), nil, contentType, m.hash + "-" + base}, nil
}

// keepThumbnail writes a thumbnail beside the others of its file, unless there are many.
func (s *Store) keepThumbnail(m *meta, filename string, b []byte) error {
	dir := s.thumbnailDir(m.hash)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) >= maxVariants {
		return err
	}
	f, err := os.CreateTemp(s.tmp(), "thumbnail-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, filename))
}
