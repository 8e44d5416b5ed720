package media

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"image"
	"image/gif"
	"io"
	"os"
)

// slowDelay is how long frames stand, in hundredths of a second, that say no time or next to none, as browsers do it.
const slowDelay = 10

// gifScan walks through the blocks of a GIF without unpacking them.
type gifScan struct {
	r    *bufio.Reader
	pos  int64
	head []byte // what every frame needs before it
	out  *frames
	next frame // what has been said of the next frame
}

// scanGIF finds the frames of a GIF. What comes after a broken one is left out.
func scanGIF(f *os.File, size int64) (*frames, error) {
	g := &gifScan{r: bufio.NewReader(io.NewSectionReader(f, 0, size)), out: &frames{loops: -1}, next: frame{over: true}}
	if err := g.header(); err != nil {
		return nil, err
	}
	g.out.read = func(fr *frame) (image.Image, error) {
		return gif.Decode(io.MultiReader(bytes.NewReader(g.head), bytes.NewReader(fr.control),
			io.NewSectionReader(f, fr.start, fr.end-fr.start), bytes.NewReader([]byte{0x3b})))
	}
	for len(g.out.list) <= maxFrames {
		if more, err := g.block(); err != nil || !more {
			break
		}
	}
	if len(g.out.list) == 0 {
		return nil, errNoPicture
	}
	return g.out, nil
}

func (g *gifScan) take(n int) ([]byte, error) {
	b := make([]byte, n)
	m, err := io.ReadFull(g.r, b)
	g.pos += int64(m)
	return b, err
}

func (g *gifScan) skip(n int) error {
	m, err := g.r.Discard(n)
	g.pos += int64(m)
	return err
}

// tableSize is the size of the colour table that a byte of flags announces.
func tableSize(flags byte) int {
	if flags&0x80 == 0 {
		return 0
	}
	return 3 << (flags&7 + 1)
}

func (g *gifScan) header() error {
	b, err := g.take(13)
	if err != nil {
		return err
	}
	g.out.width, g.out.height = int(binary.LittleEndian.Uint16(b[6:])), int(binary.LittleEndian.Uint16(b[8:]))
	table, err := g.take(tableSize(b[10]))
	g.head = append(b, table...)
	return err
}

// block reads one block; there is no more after the last.
func (g *gifScan) block() (more bool, err error) {
	kind, err := g.take(1)
	if err != nil {
		return false, err
	}
	switch kind[0] {
	case 0x21:
		return true, g.extension()
	case 0x2c:
		return true, g.picture()
	case 0x3b:
		return false, nil
	}
	return false, errNoPicture
}

func (g *gifScan) extension() error {
	label, err := g.take(1)
	if err != nil {
		return err
	}
	switch label[0] {
	case 0xf9: // how the next frame is drawn
		b, err := g.take(6)
		if err != nil {
			return err
		}
		if b[0] != 4 || b[5] != 0 {
			return errNoPicture
		}
		g.next.control = append([]byte{0x21, 0xf9}, b...)
		g.next.disposal = b[1] >> 2 & 7
		g.next.delay = int(binary.LittleEndian.Uint16(b[2:]))
		return nil
	case 0xff: // of an application: how often all is shown
		n, err := g.take(1)
		if err != nil {
			return err
		}
		id, err := g.take(int(n[0]))
		if err != nil {
			return err
		}
		return g.subBlocks(func(b []byte) {
			if string(id) == "NETSCAPE2.0" && len(b) == 3 && b[0] == 1 {
				g.out.loops = int(binary.LittleEndian.Uint16(b[1:]))
			}
		})
	}
	return g.subBlocks(nil)
}

// subBlocks reads the rest of a block; fn, if there is one, sees its pieces.
func (g *gifScan) subBlocks(fn func([]byte)) error {
	for {
		n, err := g.take(1)
		if err != nil || n[0] == 0 {
			return err
		}
		if fn == nil {
			err = g.skip(int(n[0]))
		} else {
			var b []byte
			if b, err = g.take(int(n[0])); err == nil {
				fn(b)
			}
		}
		if err != nil {
			return err
		}
	}
}

func (g *gifScan) picture() error {
	f := g.next
	g.next = frame{over: true}
	f.start = g.pos - 1
	b, err := g.take(9)
	if err != nil {
		return err
	}
	u16 := func(at int) int { return int(binary.LittleEndian.Uint16(b[at:])) }
	f.rect = image.Rect(u16(0), u16(2), u16(0)+u16(4), u16(2)+u16(6))
	if f.rect.Empty() || !f.rect.In(image.Rect(0, 0, g.out.width, g.out.height)) {
		return errNoPicture
	}
	if f.delay < minDelay {
		f.delay = slowDelay
	}
	if err := g.skip(tableSize(b[8]) + 1); err != nil { // and the size of the codes
		return err
	}
	err = g.subBlocks(nil)
	if err != nil && (!errors.Is(err, io.EOF) || len(g.out.list) > 0) {
		return err
	}
	f.end = g.pos
	g.out.list = append(g.out.list, f) // also when it is the only one and cut short
	return err
}
