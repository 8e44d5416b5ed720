package media

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"image"
	"image/draw"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// AVIF is decoded in a process of its own: its decoder is a C library in a sandbox, and what strangers send may keep
// it busy for ever, or make it want more memory than there is. Its dimensions are read here.

const (
	typeAVIF = "image/avif"
	// avifTime is how long a picture may take, avifMemory how much address space its process may have.
	avifTime   = 30 * time.Second
	avifMemory = 3 << 30
	// avifPixelBytes is about what decoding a pixel takes in that process and this one.
	avifPixelBytes = 16
	maxBoxes       = 1000
)

// isAVIF says that a file begins as an AVIF.
func isAVIF(head []byte) bool {
	if len(head) < 16 || string(head[4:8]) != "ftyp" {
		return false
	}
	brands := head[8:min(uint64(binary.BigEndian.Uint32(head)), uint64(len(head)), sniffSize)]
	for i := 0; i+4 <= len(brands); i += 4 {
		if b := string(brands[i : i+4]); b == "avif" || b == "avis" {
			return true
		}
	}
	return false
}

// eachBox calls fn with the boxes that stand one after the other in b.
func eachBox(b []byte, fn func(kind string, body []byte)) {
	for range maxBoxes {
		if len(b) < 8 {
			return
		}
		size, head := uint64(binary.BigEndian.Uint32(b)), uint64(8)
		switch size {
		case 0:
			size = uint64(len(b))
		case 1:
			if len(b) < 16 {
				return
			}
			size, head = binary.BigEndian.Uint64(b[8:]), 16
		}
		if size < head {
			return
		}
		fn(string(b[4:8]), b[head:max(head, min(size, uint64(len(b))))])
		if size >= uint64(len(b)) {
			return
		}
		b = b[size:]
	}
}

// wholeAVIF says that the boxes of a file end with it. The decoder would make something up for what is missing.
func wholeAVIF(f *os.File, size int64) bool {
	var head [16]byte
	for at := int64(0); at < size; {
		if _, err := f.ReadAt(head[:min(int64(len(head)), size-at)], at); err != nil || size-at < 8 {
			return false
		}
		n := uint64(binary.BigEndian.Uint32(head[:]))
		switch n {
		case 0:
			return true // up to the end
		case 1:
			n = binary.BigEndian.Uint64(head[8:])
		}
		if n < 8 || n > uint64(size-at) {
			return false
		}
		at += int64(n)
	}
	return true
}

// property is a box that says something of a picture of an AVIF.
type property struct {
	kind string
	body []byte
}

// configAVIF reads the dimensions of the main picture of an AVIF, and how it is turned.
func configAVIF(head []byte) (cfg image.Config, orientation int, err error) {
	var (
		primary uint64
		all     []property
		links   [][]byte // ipma boxes
	)
	eachBox(head, func(kind string, meta []byte) {
		if kind != "meta" || len(meta) < 4 {
			return
		}
		eachBox(meta[4:], func(kind string, b []byte) {
			switch {
			case kind == "pitm" && len(b) >= 6 && b[0] == 0:
				primary = uint64(binary.BigEndian.Uint16(b[4:]))
			case kind == "pitm" && len(b) >= 8:
				primary = uint64(binary.BigEndian.Uint32(b[4:]))
			case kind == "iprp":
				eachBox(b, func(kind string, b []byte) {
					switch kind {
					case "ipco":
						eachBox(b, func(kind string, b []byte) { all = append(all, property{kind, b}) })
					case "ipma":
						links = append(links, b)
					}
				})
			}
		})
	})
	turn, mirror := 0, -1
	for _, b := range links {
		for _, i := range linked(b, primary) {
			if i < 1 || i > len(all) {
				continue
			}
			switch p := all[i-1]; {
			case p.kind == "ispe" && len(p.body) >= 12:
				cfg.Width, cfg.Height = int(binary.BigEndian.Uint32(p.body[4:])), int(binary.BigEndian.Uint32(p.body[8:]))
			case p.kind == "irot" && len(p.body) >= 1:
				turn = int(p.body[0] & 3)
			case p.kind == "imir" && len(p.body) >= 1:
				mirror = int(p.body[0] & 1)
			}
		}
	}
	if cfg.Width == 0 || cfg.Height == 0 {
		return cfg, 1, errNoPicture
	}
	// By quarter turns to the left; first not mirrored, then top to bottom, then left to right.
	table := [4][3]int{{1, 4, 2}, {8, 5, 7}, {3, 2, 4}, {6, 7, 5}}
	return cfg, table[turn][mirror+1], nil
}

// linked are the numbers of the properties that an ipma box gives to an item.
func linked(b []byte, item uint64) (numbers []int) {
	if len(b) < 8 {
		return nil
	}
	idBytes, wide := 2, b[3]&1 != 0
	if b[0] > 0 {
		idBytes = 4
	}
	n := binary.BigEndian.Uint32(b[4:])
	b = b[8:]
	for range min(n, maxBoxes) {
		if len(b) < idBytes+1 {
			return numbers
		}
		id := uint64(binary.BigEndian.Uint16(b))
		if idBytes == 4 {
			id = uint64(binary.BigEndian.Uint32(b))
		}
		count := int(b[idBytes])
		b = b[idBytes+1:]
		for range count {
			size, number := 1, 0
			if wide {
				size = 2
			}
			if len(b) < size {
				return numbers
			}
			if number = int(b[0] & 0x7f); wide {
				number = number<<8 | int(b[1])
			}
			if b = b[size:]; id == item {
				numbers = append(numbers, number)
			}
		}
	}
	return numbers
}

// decodeAVIF has the picture decoded.
func (s *source) decodeAVIF(ctx context.Context) (image.Image, error) {
	if len(s.avif) == 0 {
		return nil, errNoPicture
	}
	ctx, cancel := context.WithTimeout(ctx, avifTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.avif[0], s.avif[1:]...)
	cmd.Stdin = io.NewSectionReader(s.f, 0, s.size)
	cmd.Env = []string{"GOMAXPROCS=1"} // none of this process's secrets
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the decoder of AVIF: %w", err)
	}
	img, err := readPixels(out, s.width, s.height, s.turned())
	cancel() // whatever it still does
	_ = cmd.Wait()
	return img, err
}

// readPixels reads what WriteAVIF writes.
func readPixels(r io.Reader, width, height int, turned bool) (image.Image, error) {
	if turned {
		width, height = height, width
	}
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, errNoPicture
	}
	if int(binary.BigEndian.Uint32(head[:])) != width || int(binary.BigEndian.Uint32(head[4:])) != height {
		return nil, errNoPicture
	}
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	if _, err := io.ReadFull(r, img.Pix); err != nil {
		return nil, errNoPicture
	}
	return img, nil
}

// WriteAVIF is what the process does that Options.AVIF starts: it decodes what comes in and writes the pixels. It
// bounds the memory and time of the whole process first.
func WriteAVIF(in io.Reader, out io.Writer, decode func(io.Reader) (image.Image, error)) error {
	seconds := uint64(avifTime / time.Second)
	for which, limit := range map[int]uint64{syscall.RLIMIT_AS: avifMemory, syscall.RLIMIT_CPU: seconds} {
		if err := syscall.Setrlimit(which, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("bounding the decoder: %w", err)
		}
	}
	img, err := decode(in)
	if err != nil {
		return err
	}
	rgba, ok := img.(*image.RGBA)
	if size := img.Bounds().Size(); !ok || rgba.Stride != 4*size.X {
		rgba = image.NewRGBA(image.Rectangle{Max: size})
		draw.Draw(rgba, rgba.Rect, img, img.Bounds().Min, draw.Src)
	}
	w := bufio.NewWriter(out)
	head := binary.BigEndian.AppendUint32(nil, uint32(rgba.Rect.Dx()))
	if _, err := w.Write(binary.BigEndian.AppendUint32(head, uint32(rgba.Rect.Dy()))); err != nil {
		return err
	}
	if _, err := w.Write(rgba.Pix); err != nil {
		return err
	}
	return w.Flush()
}

// ExecutableAVIF is how this program is started as the decoder, with the arguments that lead it to WriteAVIF.
func ExecutableAVIF(args ...string) ([]string, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding the decoder of AVIF: %w", err)
	}
	return append([]string{path}, args...), nil
}
