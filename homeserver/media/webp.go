package media

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/gif"
	"io"
	"os"

	"golang.org/x/image/webp"
)

const (
	// maxChunks is how many pieces of a WebP are looked at.
	maxChunks = 4 * maxFrames
	maxExif   = 64 << 10
)

// webpScan is what a WebP says of itself. A still one has no frames.
type webpScan struct {
	orientation int
	frames      frames
}

// chunk is a piece of a WebP.
type chunk struct {
	kind     string
	at, size int64 // of its data
}

// chunks reads the pieces between two places of a file.
func chunks(f *os.File, from, to int64, fn func(c chunk) error) error {
	var head [8]byte
	for range maxChunks {
		if from+8 > to {
			return nil
		}
		if _, err := f.ReadAt(head[:], from); err != nil {
			return err
		}
		c := chunk{string(head[:4]), from + 8, int64(binary.LittleEndian.Uint32(head[4:]))}
		if c.at+c.size > to {
			return nil // cut short
		}
		if err := fn(c); err != nil {
			return err
		}
		from = c.at + c.size + c.size&1
	}
	return nil
}

func (c chunk) read(f *os.File, n int64) ([]byte, error) {
	b := make([]byte, min(c.size, n))
	_, err := f.ReadAt(b, c.at)
	return b, err
}

// u24 is a number of three bytes.
func u24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

// scanWebP finds the frames of a WebP that moves, and the orientation.
func scanWebP(f *os.File, size int64) (*webpScan, error) {
	w := &webpScan{orientation: 1, frames: frames{loops: 0}}
	w.frames.read = func(fr *frame) (image.Image, error) { return readWebP(f, fr) }
	moves := false
	err := chunks(f, 12, size, func(c chunk) error {
		switch c.kind {
		case "VP8X":
			b, err := c.read(f, 10)
			if err != nil || len(b) < 10 {
				return errNoPicture
			}
			moves = b[0]&2 != 0
			w.frames.width, w.frames.height = u24(b[4:])+1, u24(b[7:])+1
		case "ANIM":
			b, err := c.read(f, 6)
			if err != nil || len(b) < 6 {
				return errNoPicture
			}
			if n := int(binary.LittleEndian.Uint16(b[4:])); n == 1 {
				w.frames.loops = -1
			} else if n > 1 {
				w.frames.loops = n - 1
			}
		case "ANMF":
			if moves && len(w.frames.list) <= maxFrames {
				return w.frame(f, c)
			}
		case "EXIF":
			b, err := c.read(f, maxExif)
			if err != nil {
				return err
			}
			w.orientation = exif(bytes.TrimPrefix(b, []byte("Exif\x00\x00")))
		}
		return nil
	})
	if err == nil && moves && len(w.frames.list) == 0 {
		err = errNoPicture
	}
	return w, err
}

func (w *webpScan) frame(f *os.File, c chunk) error {
	b, err := c.read(f, 16)
	if err != nil || len(b) < 16 {
		return errNoPicture
	}
	corner := image.Pt(2*u24(b), 2*u24(b[3:]))
	fr := frame{
		start: c.at + 16, end: c.at + c.size, delay: u24(b[12:]) / 10, over: b[15]&2 == 0,
		rect: image.Rectangle{corner, corner.Add(image.Pt(u24(b[6:])+1, u24(b[9:])+1))},
	}
	if b[15]&1 != 0 {
		fr.disposal = gif.DisposalBackground
	}
	if fr.delay < minDelay {
		fr.delay = slowDelay
	}
	if !fr.rect.In(image.Rect(0, 0, w.frames.width, w.frames.height)) {
		return errNoPicture
	}
	w.frames.list = append(w.frames.list, fr)
	return nil
}

// readWebP makes a still picture of a frame, for the decoder knows no others.
func readWebP(f *os.File, fr *frame) (image.Image, error) {
	var alpha, data chunk
	err := chunks(f, fr.start, fr.end, func(c chunk) error {
		switch c.kind {
		case "ALPH":
			alpha = c
		case "VP8 ", "VP8L":
			data = c
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if data.kind == "" {
		return nil, errNoPicture
	}
	still := func() io.Reader {
		var (
			parts []io.Reader
			total = int64(4)
		)
		add := func(kind string, size int64, body io.Reader) {
			head := binary.LittleEndian.AppendUint32([]byte(kind), uint32(size))
			parts = append(parts, bytes.NewReader(head), body, bytes.NewReader(make([]byte, size&1)))
			total += 8 + size + size&1
		}
		if alpha.kind != "" && data.kind == "VP8 " {
			size := fr.rect.Size().Sub(image.Pt(1, 1))
			x := []byte{0x10, 0, 0, 0, byte(size.X), byte(size.X >> 8), byte(size.X >> 16), byte(size.Y), byte(size.Y >> 8), byte(size.Y >> 16)}
			add("VP8X", 10, bytes.NewReader(x))
			add("ALPH", alpha.size, io.NewSectionReader(f, alpha.at, alpha.size))
		}
		add(data.kind, data.size, io.NewSectionReader(f, data.at, data.size))
		head := append(binary.LittleEndian.AppendUint32([]byte("RIFF"), uint32(total)), "WEBP"...)
		return io.MultiReader(append([]io.Reader{bytes.NewReader(head)}, parts...)...)
	}
	cfg, err := webp.DecodeConfig(still())
	if err != nil {
		return nil, err
	}
	if image.Pt(cfg.Width, cfg.Height) != fr.rect.Size() {
		return nil, errNoPicture
	}
	return webp.Decode(still())
}
