package media

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"image"
	"image/draw"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"
	"math"

	xdraw "golang.org/x/image/draw"
	"golang.org/x/image/webp"
)

// Types of pictures that thumbnails are made of.
const (
	typeJPEG = "image/jpeg"
	typePNG  = "image/png"
	typeGIF  = "image/gif"
	typeWebP = "image/webp"
)

var errNoPicture = errors.New("not a picture that can be read")

// source is a picture whose head has been read.
type source struct {
	r             io.ReadSeeker
	contentType   string // by its bytes, whatever the uploader said
	width, height int    // as it is looked at
	orientation   int    // of Exif, 1 to 8
	animated      bool
}

// headSize is how much of a file is looked at to find its orientation and whether it moves.
const headSize = 256 << 10

// inspect reads the head of a picture.
func inspect(r io.ReadSeeker, size int64) (*source, error) {
	head := make([]byte, min(size, headSize))
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	s := &source{r: r, orientation: 1}
	var (
		cfg image.Config
		err error
	)
	rewound := func() io.Reader {
		_, err = r.Seek(0, io.SeekStart)
		return bufio.NewReader(r)
	}
	switch {
	case bytes.HasPrefix(head, []byte("\xff\xd8\xff")):
		s.contentType, s.orientation = typeJPEG, orientation(head)
		cfg, err = jpeg.DecodeConfig(rewound())
	case bytes.HasPrefix(head, []byte("\x89PNG\r\n\x1a\n")):
		s.contentType, s.animated = typePNG, animatedPNG(head)
		cfg, err = png.DecodeConfig(rewound())
	case bytes.HasPrefix(head, []byte("GIF8")):
		s.contentType, s.animated = typeGIF, true // as good as all of them are
		cfg, err = gif.DecodeConfig(rewound())
	case len(head) > 20 && string(head[:4]) == "RIFF" && string(head[8:12]) == "WEBP":
		s.contentType, s.animated = typeWebP, string(head[12:16]) == "VP8X" && head[20]&2 != 0
		cfg, err = webp.DecodeConfig(rewound())
	default:
		return nil, errNoPicture
	}
	if err != nil {
		return nil, err
	}
	if cfg.Width <= 0 || cfg.Height <= 0 {
		return nil, errNoPicture
	}
	s.width, s.height = cfg.Width, cfg.Height
	if s.turned() {
		s.width, s.height = s.height, s.width
	}
	_, err = r.Seek(0, io.SeekStart)
	return s, err
}

// turned says that width and height are exchanged.
func (s *source) turned() bool { return s.orientation >= 5 }

// ratio is the factor from the source to a thumbnail: 1 or more when the source is not larger.
func (s *source) ratio(want size) float64 {
	x, y := float64(want.width)/float64(s.width), float64(want.height)/float64(s.height)
	if want.crop {
		return max(x, y)
	}
	return min(x, y)
}

// fits says that the source is its own thumbnail: nothing is ever made larger.
func (s *source) fits(want size) bool { return s.ratio(want) >= 1 }

// shrink makes the thumbnail.
func (s *source) shrink(want size) (b []byte, contentType string, err error) {
	defer func() {
		if recover() != nil { // the decoders read what strangers send
			err = errNoPicture
		}
	}()
	img, err := s.decode()
	if err != nil {
		return nil, "", err
	}
	ratio := min(s.ratio(want), 1)
	cut := image.Pt(s.width, s.height) // the part of the source that is shown
	dst := image.Pt(scaled(s.width, ratio), scaled(s.height, ratio))
	if want.crop && ratio < 1 {
		dst = image.Pt(want.width, want.height)
		cut = image.Pt(min(scaled(want.width, 1/ratio), s.width), min(scaled(want.height, 1/ratio), s.height))
	}
	if s.turned() {
		cut, dst = image.Pt(cut.Y, cut.X), image.Pt(dst.Y, dst.X)
	}
	bounds := img.Bounds()
	corner := bounds.Min.Add(bounds.Size().Sub(cut).Div(2))
	out := upright(resize(img, image.Rectangle{corner, corner.Add(cut)}, dst), s.orientation)
	var buf bytes.Buffer
	if s.contentType == typeJPEG || s.contentType == typeWebP && out.Opaque() {
		err = jpeg.Encode(&buf, out, &jpeg.Options{Quality: 82})
		return buf.Bytes(), typeJPEG, err
	}
	err = png.Encode(&buf, out)
	return buf.Bytes(), typePNG, err
}

func scaled(n int, ratio float64) int { return max(int(math.Round(float64(n)*ratio)), 1) }

func (s *source) decode() (image.Image, error) {
	if _, err := s.r.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(s.r, 64<<10)
	switch s.contentType {
	case typeJPEG:
		return jpeg.Decode(r)
	case typePNG:
		return png.Decode(r)
	case typeGIF:
		img, err := gif.Decode(r) // the first frame, which may cover a part only
		if err != nil || img.Bounds() == image.Rect(0, 0, s.width, s.height) {
			return img, err
		}
		canvas := image.NewRGBA(image.Rect(0, 0, s.width, s.height))
		draw.Draw(canvas, img.Bounds(), img, img.Bounds().Min, draw.Src)
		return canvas, nil
	case typeWebP:
		return webp.Decode(r)
	}
	return nil, errNoPicture
}

// resize makes a part of a picture smaller. Averaging over whole blocks first keeps both the quality and, as the
// strips are narrow, little memory; a finer filter does the rest.
func resize(img image.Image, part image.Rectangle, to image.Point) *image.RGBA {
	block := int(min(float64(part.Dx())/float64(to.X), float64(part.Dy())/float64(to.Y)) / 2)
	if block >= 2 {
		img = average(img, part, block)
		part = img.Bounds()
	}
	out := image.NewRGBA(image.Rectangle{Max: to})
	xdraw.CatmullRom.Scale(out, out.Bounds(), img, part, xdraw.Src, nil)
	return out
}

// average makes one pixel of each n by n.
func average(img image.Image, part image.Rectangle, n int) *image.RGBA {
	w, h := part.Dx()/n, part.Dy()/n
	out := image.NewRGBA(image.Rect(0, 0, w, h))
	strip := image.NewRGBA(image.Rect(0, 0, w*n, n))
	sums := make([]uint32, w*4)
	area := uint32(n * n)
	for y := range h {
		draw.Draw(strip, strip.Bounds(), img, part.Min.Add(image.Pt(0, y*n)), draw.Src)
		clear(sums)
		for row := range n {
			pix := strip.Pix[row*strip.Stride : row*strip.Stride+w*n*4]
			for x := range w {
				sum := sums[x*4 : x*4+4 : x*4+4]
				for i := x * n * 4; i < (x+1)*n*4; i += 4 {
					p := pix[i : i+4 : i+4]
					sum[0] += uint32(p[0])
					sum[1] += uint32(p[1])
					sum[2] += uint32(p[2])
					sum[3] += uint32(p[3])
				}
			}
		}
		line := out.Pix[y*out.Stride : y*out.Stride+w*4]
		for i, sum := range sums {
			line[i] = uint8((sum + area/2) / area)
		}
	}
	return out
}

// upright turns and mirrors a picture as Exif says.
func upright(img *image.RGBA, orientation int) *image.RGBA {
	if orientation <= 1 || orientation > 8 {
		return img
	}
	w, h := img.Rect.Dx(), img.Rect.Dy()
	size := image.Rect(0, 0, w, h)
	if orientation >= 5 {
		size = image.Rect(0, 0, h, w)
	}
	out := image.NewRGBA(size)
	for y := range h {
		for x := range w {
			var p image.Point
			switch orientation {
			case 2:
				p = image.Pt(w-1-x, y)
			case 3:
				p = image.Pt(w-1-x, h-1-y)
			case 4:
				p = image.Pt(x, h-1-y)
			case 5:
				p = image.Pt(y, x)
			case 6:
				p = image.Pt(h-1-y, x)
			case 7:
				p = image.Pt(h-1-y, w-1-x)
			default:
				p = image.Pt(y, w-1-x)
			}
			copy(out.Pix[out.PixOffset(p.X, p.Y):][:4], img.Pix[img.PixOffset(x, y):][:4])
		}
	}
	return out
}

// orientation finds the Exif orientation in the head of a JPEG; 1 when there is none.
func orientation(head []byte) int {
	for p := 2; p+4 <= len(head) && head[p] == 0xff; {
		marker, n := head[p+1], int(binary.BigEndian.Uint16(head[p+2:]))
		if marker == 0xda || n < 2 || p+2+n > len(head) {
			break
		}
		if body := head[p+4 : p+2+n]; marker == 0xe1 && bytes.HasPrefix(body, []byte("Exif\x00\x00")) {
			return exif(body[6:])
		}
		p += 2 + n
	}
	return 1
}

// exif reads the orientation from the first directory of a TIFF.
func exif(b []byte) int {
	if len(b) < 8 {
		return 1
	}
	var order binary.ByteOrder = binary.LittleEndian
	if b[0] == 'M' {
		order = binary.BigEndian
	}
	at := int64(order.Uint32(b[4:]))
	if at+2 > int64(len(b)) {
		return 1
	}
	entries := int(order.Uint16(b[at:]))
	for i := range entries {
		e := at + 2 + int64(i)*12
		if e+12 > int64(len(b)) {
			break
		}
		if order.Uint16(b[e:]) == 0x0112 {
			if v := int(order.Uint16(b[e+8:])); v >= 1 && v <= 8 {
				return v
			}
		}
	}
	return 1
}

// animatedPNG looks for the chunk that makes a PNG move; it stands before the picture.
func animatedPNG(head []byte) bool {
	for p := int64(8); p+8 <= int64(len(head)); {
		n, kind := int64(binary.BigEndian.Uint32(head[p:])), string(head[p+4:p+8])
		switch kind {
		case "acTL":
			return true
		case "IDAT":
			return false
		}
		p += 12 + n
	}
	return false
}
