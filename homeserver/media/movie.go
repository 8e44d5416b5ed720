package media

import (
	"bytes"
	"context"
	"image"
	"image/draw"
	"image/gif"
)

const (
	// maxFrames is how many frames of a moving picture are looked at; longer ones are not made smaller.
	maxFrames = 2000
	// maxMotion is how many pixels all frames may have that are read, maxShownMotion those that are written: of
	// longer ones every second frame is left out, or more.
	maxMotion, maxShownMotion = 250_000_000, 16_000_000
	// minDelay is the least time, in hundredths of a second, that is believed of a frame.
	minDelay = 2
)

// frames are the frames of a moving picture, which are read one at a time.
type frames struct {
	width, height int
	list          []frame
	loops         int // as in gif.GIF
	// read decodes one frame, which must have the dimensions of its rect.
	read func(f *frame) (image.Image, error)
}

// frame is where in the file a frame stands, and how it is drawn.
type frame struct {
	start, end int64
	rect       image.Rectangle
	delay      int // hundredths of a second
	disposal   byte
	over       bool   // drawn over what is there; else in its place
	control    []byte // GIF: the block that says how to draw it
}

// bearable says that all frames can be read in reasonable time.
func (m *frames) bearable() bool {
	return len(m.list) <= maxFrames && int64(len(m.list))*int64(m.width)*int64(m.height) <= maxMotion
}

// play draws the frames one after the other, and calls show with each canvas and how long it stands.
func (m *frames) play(ctx context.Context, n int, show func(i int, canvas *image.RGBA) error) error {
	canvas := image.NewRGBA(image.Rect(0, 0, m.width, m.height))
	var before *image.RGBA
	n = min(n, len(m.list))
	for i := range m.list[:n] {
		f := &m.list[i]
		if err := ctx.Err(); err != nil {
			return err
		}
		img, err := m.read(f)
		if err != nil {
			return err
		}
		if img.Bounds().Size() != f.rect.Size() {
			return errNoPicture
		}
		if f.disposal == gif.DisposalPrevious {
			if before == nil {
				before = image.NewRGBA(canvas.Rect)
			}
			copy(before.Pix, canvas.Pix)
		}
		op := draw.Src
		if f.over {
			op = draw.Over
		}
		draw.Draw(canvas, f.rect, img, img.Bounds().Min, op)
		if err := show(i, canvas); err != nil {
			return err
		}
		if i == n-1 {
			break // what was shown last stays
		}
		switch f.disposal {
		case gif.DisposalBackground:
			draw.Draw(canvas, f.rect, image.Transparent, image.Point{}, draw.Src)
		case gif.DisposalPrevious:
			copy(canvas.Pix, before.Pix)
		}
	}
	return nil
}

// first is the first frame as it is shown.
func (s *source) first(ctx context.Context) (img image.Image, err error) {
	if len(s.frames.list) == 0 {
		return nil, errNoPicture
	}
	err = s.frames.play(ctx, 1, func(_ int, canvas *image.RGBA) error {
		img = canvas
		return nil
	})
	return img, err
}

// shrinkMoving makes a moving thumbnail.
func (s *source) shrinkMoving(ctx context.Context, part image.Rectangle, to image.Point) ([]byte, error) {
	if !s.frames.bearable() {
		return nil, errNoPicture
	}
	every := 1 // of how many frames one is shown
	for (len(s.frames.list)/every+1)*to.X*to.Y > maxShownMotion {
		every++
	}
	size := to
	if s.turned() {
		size = image.Pt(to.Y, to.X)
	}
	film := newFilm(size, s.frames.loops)
	err := s.frames.play(ctx, len(s.frames.list), func(i int, canvas *image.RGBA) error {
		delay := s.frames.list[i].delay
		if i%every != 0 {
			film.linger(delay)
			return nil
		}
		film.add(upright(resize(canvas, part, to), s.orientation), delay)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return film.encode()
}

// film collects the frames of a moving picture that is written.
type film struct {
	out  gif.GIF
	last *image.RGBA
}

func newFilm(size image.Point, loops int) *film {
	return &film{out: gif.GIF{LoopCount: loops, Config: image.Config{Width: size.X, Height: size.Y}}}
}

// linger lets the last frame stand longer.
func (f *film) linger(delay int) { f.out.Delay[len(f.out.Delay)-1] += delay }

// add adds a frame. What has not changed is left open, as that takes little room; where something has to vanish, all
// is wiped before.
func (f *film) add(img *image.RGBA, delay int) {
	same := make([]bool, len(img.Pix)/4)
	wipe := f.last == nil
	for i := range same {
		p := img.Pix[i*4 : i*4+4]
		if f.last != nil {
			q := f.last.Pix[i*4 : i*4+4]
			same[i] = p[0] == q[0] && p[1] == q[1] && p[2] == q[2] && p[3] == q[3]
			wipe = wipe || p[3] < 128 && q[3] >= 128
		}
	}
	if wipe {
		clear(same)
		if n := len(f.out.Disposal); n > 0 {
			f.out.Disposal[n-1] = gif.DisposalBackground
		}
	}
	f.out.Image = append(f.out.Image, quantize(img, same))
	f.out.Delay = append(f.out.Delay, delay)
	f.out.Disposal = append(f.out.Disposal, gif.DisposalNone)
	f.last = img
}

func (f *film) encode() ([]byte, error) {
	var buf bytes.Buffer
	err := gif.EncodeAll(&buf, &f.out)
	return buf.Bytes(), err
}
