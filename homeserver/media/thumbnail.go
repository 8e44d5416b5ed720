package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// size is a thumbnail that is asked for.
type size struct {
	width, height int
	crop          bool
	animated      bool
	beyond        bool // more was asked for than there are thumbnails of
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
	// maxSide bounds thumbnails: who asks for larger ones gets the original where clients can show it.
	maxSide = 1600
	// maxWanted is the largest side that is told apart from that.
	maxWanted = 1 << 20
	// maxVariants is how many sizes of one file are kept; further ones are made each time.
	maxVariants = 24
	// maxAPNG is the largest animated PNG that is given out as its own thumbnail.
	maxAPNG = 4 << 20
	// usedStep is how exactly it is known when a thumbnail was last used.
	usedStep = 24 * time.Hour
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
		if *side.into, err = c.QueryInt(side.name, 0, 1, maxWanted); err != nil {
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

// bounded is want if it is not too large. A picture of its own size is its own thumbnail above that.
func (want size) bounded() size {
	want.beyond = want.width > maxSide || want.height > maxSide
	want.width, want.height = min(want.width, maxSide), min(want.height, maxSide)
	return want
}

// fixed is the smallest standard size that is not below want, or the largest there is.
func fixed(want size) size {
	best := standard[len(standard)-1]
	best.beyond = want.width > best.width || want.height > best.height
	for i := len(standard) - 1; i >= 0; i-- {
		if s := standard[i]; s.crop == want.crop && s.width >= want.width && s.height >= want.height {
			best = s // also not beyond
		}
	}
	best.animated = want.animated
	return best
}

// base is the name of a thumbnail of this size, without its type.
func (want size) base(animated bool) string {
	method := "scale"
	if want.crop {
		method = "crop"
	}
	if animated {
		method += "-animated"
	}
	return fmt.Sprintf("%dx%d-%s", want.width, want.height, method)
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
		m, err := s.get(c, r)
		if err != nil {
			return nil, err
		}
		p, err := s.picture(c.Ctx(), m, want)
		if err != nil {
			return nil, err
		}
		defer p.Close()
		fewRanges(c.R)
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

// pictorial says that a type can be one of a picture. Of what clients have not named the bytes decide; drawings
// that are programs (SVG) are none.
func pictorial(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	return err != nil || t == octets || strings.HasPrefix(t, "image/") && t != "image/svg+xml"
}

// picture returns the thumbnail of a file: one that is there, the file itself if it is small enough, or a new one.
func (s *Store) picture(ctx context.Context, m *meta, want size) (*picture, error) {
	if !pictorial(m.contentType) {
		return nil, errNoThumbnail
	}
	if want = want.bounded(); s.opts.FixedSizes {
		want = fixed(want)
	}
	if !want.beyond {
		if p := s.kept(m, want); p != nil {
			return p, nil
		}
	}
	f, err := s.spool(ctx, m)
	if err != nil {
		return nil, err
	}
	src, err := inspect(f, m.size)
	if err != nil {
		f.Close()
		return nil, errNoThumbnail
	}
	src.avif = s.opts.AVIF
	// As it is: nothing is ever made larger, and what is to stand still must.
	asItIs := want.beyond || src.fits(want)
	if src.animated {
		asItIs = want.animated && (asItIs || src.contentType == typePNG && m.size <= maxAPNG)
	}
	if asItIs && src.shown() {
		return &picture{f, f.Close, src.contentType, m.hash}, nil
	}
	defer f.Close()
	if src.width*src.height > s.opts.MaxPixels || src.memory() > memoryBudget {
		if m.origin != s.opts.Server {
			return nil, matrix.NewError(http.StatusBadGateway, "M_TOO_LARGE", "the content is too large for a thumbnail")
		}
		return nil, matrix.TooLarge("the content is too large for a thumbnail")
	}
	return s.make(ctx, m, src, want)
}

// spool is the content of a picture as a file, which is what decoders need.
func (s *Store) spool(ctx context.Context, m *meta) (*os.File, error) {
	r, err := s.open(ctx, m)
	if err != nil {
		return nil, s.lost(ctx, m, err)
	}
	if f, ok := r.(*os.File); ok {
		return f, nil
	}
	defer r.Close()
	release, err := s.spools.Acquire(ctx, 1)
	if err != nil {
		return nil, err
	}
	defer release()
	head := make([]byte, min(m.size, sniffSize))
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, s.lost(ctx, m, err)
	}
	if kindOf(head) == "" {
		return nil, errNoThumbnail // before all of it is fetched
	}
	f, err := os.CreateTemp(s.tmp(), "spool-")
	if err != nil {
		return nil, fmt.Errorf("storing media: %w", err)
	}
	_ = os.Remove(f.Name()) // it goes with its last use
	if _, err = f.Write(head); err == nil {
		_, err = io.Copy(f, r)
	}
	if err != nil {
		f.Close()
		return nil, s.lost(ctx, m, err)
	}
	return f, nil
}

func (s *Store) thumbnailDir(hash string) string {
	return filepath.Join(s.opts.Dir, "thumbnails", hash[:2], hash)
}

// still is the name of a mark that a picture does not move, or not so that it could be made smaller.
const still = "still"

// kept opens a thumbnail that has been made before. Who wants it to move gets it still if that is known to be all
// there is.
func (s *Store) kept(m *meta, want size) *picture {
	if want.animated {
		if p := s.keptAs(m, want.base(true), typeGIF); p != nil {
			return p
		}
		if _, err := os.Stat(filepath.Join(s.thumbnailDir(m.hash), still)); err != nil {
			return nil
		}
	}
	return s.keptAs(m, want.base(false), typeJPEG, typePNG)
}

func (s *Store) keptAs(m *meta, base string, types ...string) *picture {
	for _, t := range types {
		path := filepath.Join(s.thumbnailDir(m.hash), base+"."+extension(t))
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		now := s.opts.Now()
		if info, err := f.Stat(); err == nil && now.Sub(info.ModTime()) > usedStep {
			_ = os.Chtimes(path, now, now) // when it was used, for those that are removed first
		}
		return &picture{f, f.Close, t, m.hash + "-" + base}
	}
	return nil
}

// make makes a thumbnail, one at a time of the same, and as many as fit into memory.
func (s *Store) make(ctx context.Context, m *meta, src *source, want size) (*picture, error) {
	unlock, err := s.making.LockContext(ctx, m.hash+want.base(want.animated))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if p := s.kept(m, want); p != nil {
		return p, nil
	}
	release, err := s.memory.Acquire(ctx, max(src.memory(), share()))
	if err != nil {
		return nil, err
	}
	defer release()
	b, contentType, err := src.shrink(ctx, want)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, errNoThumbnail
	}
	base := want.base(contentType == typeGIF)
	err = s.keepThumbnail(m, base+"."+extension(contentType), b)
	if err == nil && want.animated && contentType != typeGIF {
		err = s.keepThumbnail(m, still, nil)
	}
	if err != nil { // it can be made anew
		log.WithError(err).Warn("a thumbnail could not be stored")
	}
	return &picture{bytes.NewReader(b), nil, contentType, m.hash + "-" + base}, nil
}

// share is the least weight of one thumbnail, so that no more are made at a time than there are processors for.
func share() int64 { return max(memoryBudget/int64(2*runtime.GOMAXPROCS(0)), 1) }

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
	if err := os.Rename(f.Name(), filepath.Join(dir, filename)); err != nil {
		return err
	}
	if s.thumbnailBytes.Load() < 0 { // not counted yet
		return nil
	}
	if s.thumbnailBytes.Add(int64(len(b))) > s.opts.ThumbnailBytes {
		unlock, free := s.making.TryLock("") // one sweep at a time
		if !free {
			return nil
		}
		defer unlock()
		return s.sweepThumbnails()
	}
	return nil
}
