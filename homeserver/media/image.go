package media

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"
	"math"
	"os"

	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"
	"golang.org/x/image/webp"
)

// Types of pictures that thumbnails are made of.
const (
	typeJPEG = "image/jpeg"
	typePNG  = "image/png"
	typeGIF  = "image/gif"
	typeWebP = "image/webp"
	typeBMP  = "image/bmp"
	typeTIFF = "image/tiff"
)

var errNoPicture = errors.New("not a picture that can be read")

const (
	// sniffSize is how much of a file tells what it is.
	sniffSize = 32
	// headSize is how much of a file is looked at to find its orientation and the like.
	headSize = 256 << 10
)

// kindOf tells the type of a picture by its first bytes, whatever its uploader said; "" for none that can be read.
func kindOf(head []byte) string {
	starts := func(s string) bool { return bytes.HasPrefix(head, []byte(s)) }
	switch {
	case starts("\xff\xd8\xff"):
		return typeJPEG
	case starts("\x89PNG\r\n\x1a\n"):
		return typePNG
	case starts("GIF87a"), starts("GIF89a"):
		return typeGIF
	case len(head) >= 16 && starts("RIFF") && string(head[8:12]) == "WEBP":
		return typeWebP
	case len(head) >= 18 && starts("BM") && binary.LittleEndian.Uint32(head[14:]) <= 124:
		return typeBMP
	case starts("II*\x00"), starts("MM\x00*"):
		return typeTIFF
	case isAVIF(head):
		return typeAVIF
	}
	return ""
}

// source is a picture whose head has been read.
type source struct {
	f             *os.File
	size          int64
	contentType   string // by its bytes
	width, height int    // as it is looked at
	orientation   int    // of Exif, 1 to 8
	animated      bool
	pixelBytes    int64 // that its decoder needs for a pixel
	frames        *frames
	avif          []string // the decoder of AVIF
}

// inspect reads the head of a picture. Nothing is decoded yet, and no more memory used than for the head.
func inspect(f *os.File, size int64) (*source, error) {
	head := make([]byte, min(size, headSize))
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	s := &source{f: f, size: size, contentType: kindOf(head), orientation: 1}
	cfg, err := s.config(head)
	if err != nil {
		return nil, err
	}
	if cfg.Width <= 0 || cfg.Height <= 0 || cfg.Width > math.MaxInt32 || cfg.Height > math.MaxInt32 {
		return nil, errNoPicture
	}
	s.width, s.height = cfg.Width, cfg.Height
	if s.turned() {
		s.width, s.height = s.height, s.width
	}
	return s, nil
}

// reader reads the picture from its beginning.
func (s *source) reader() io.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(s.f, 0, s.size), 64<<10)
}

// config reads the dimensions, and what else must be known of the type.
func (s *source) config(head []byte) (cfg image.Config, err error) {
	switch s.contentType {
	case typeJPEG:
		var progressive bool
		s.orientation, progressive = scanJPEG(head)
		cfg, err = jpeg.DecodeConfig(s.reader())
		s.pixelBytes = channelBytes(cfg.ColorModel)
		if progressive { // its coefficients stay in memory until the end
			s.pixelBytes += 4 * s.pixelBytes
		}
	case typePNG:
		s.orientation, s.animated = scanPNG(head)
		cfg, err = png.DecodeConfig(s.reader())
		s.pixelBytes = channelBytes(cfg.ColorModel)
		if len(head) > 28 && head[28] == 1 { // interlaced: the passes are pictures of their own
			s.pixelBytes *= 2
		}
	case typeGIF:
		if s.frames, err = scanGIF(s.f, s.size); err == nil {
			cfg.Width, cfg.Height = s.frames.width, s.frames.height
			s.animated, s.pixelBytes = len(s.frames.list) > 1, 4+1
		}
	case typeWebP:
		cfg, err = s.configWebP()
	case typeBMP:
		cfg, err = bmp.DecodeConfig(s.reader())
		s.pixelBytes = channelBytes(cfg.ColorModel)
	case typeTIFF:
		cfg, err = tiff.DecodeConfig(io.NewSectionReader(s.f, 0, s.size))
		s.orientation = exif(head)
		s.pixelBytes = channelBytes(cfg.ColorModel) + 8 // the strips are unpacked one by one
	case typeAVIF:
		if !wholeAVIF(s.f, s.size) {
			return cfg, errNoPicture
		}
		cfg, s.orientation, err = configAVIF(head)
		s.pixelBytes = avifPixelBytes
	default:
		err = errNoPicture
	}
	return cfg, err
}

func (s *source) configWebP() (cfg image.Config, err error) {
	r, err := scanWebP(s.f, s.size)
	if err != nil {
		return cfg, err
	}
	s.orientation = r.orientation
	if s.animated = len(r.frames.list) > 1; len(r.frames.list) > 0 {
		s.frames, s.pixelBytes = &r.frames, 4+8
		return image.Config{Width: r.frames.width, Height: r.frames.height}, nil
	}
	s.pixelBytes = 8
	return webp.DecodeConfig(s.reader())
}

// channelBytes is how much memory a pixel of a decoded picture takes.
func channelBytes(m color.Model) int64 {
	switch m {
	case color.GrayModel:
		return 1
	case color.Gray16Model:
		return 2
	case color.YCbCrModel:
		return 3
	case color.RGBAModel, color.NRGBAModel, color.CMYKModel:
		return 4
	}
	if _, ok := m.(color.Palette); ok {
		return 1
	}
	return 8
}

// memory is about how much decoding takes, in bytes.
func (s *source) memory() int64 {
	return int64(s.width) * int64(s.height) * s.pixelBytes
}

// turned says that width and height are exchanged.
func (s *source) turned() bool { return s.orientation >= 5 }

// shown says that clients can show a picture of this type as a thumbnail.
func (s *source) shown() bool {
	switch s.contentType {
	case typeJPEG, typePNG, typeGIF, typeWebP:
		return true
	}
	return false
}

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

// cutting says which part of a picture, not turned yet, becomes a thumbnail of which dimensions.
func (s *source) cutting(want size) (part image.Rectangle, to image.Point) {
	ratio := min(s.ratio(want), 1)
	cut := image.Pt(s.width, s.height)
	to = image.Pt(scaled(s.width, ratio), scaled(s.height, ratio))
	if want.crop && ratio < 1 {
		to = image.Pt(want.width, want.height)
		cut = image.Pt(min(scaled(want.width, 1/ratio), s.width), min(scaled(want.height, 1/ratio), s.height))
	}
	whole := image.Pt(s.width, s.height)
	if s.turned() {
		cut, to, whole = image.Pt(cut.Y, cut.X), image.Pt(to.Y, to.X), image.Pt(whole.Y, whole.X)
	}
	corner := whole.Sub(cut).Div(2)
	return image.Rectangle{corner, corner.Add(cut)}, to
}

// shrink makes the thumbnail.
func (s *source) shrink(ctx context.Context, want size) (b []byte, contentType string, err error) {
	defer func() {
		if recover() != nil { // the decoders read what strangers send
			err = errNoPicture
		}
	}()
	part, to := s.cutting(want)
	if s.animated && want.animated && s.frames != nil {
		if b, err = s.shrinkMoving(ctx, part, to); err == nil || ctx.Err() != nil {
			return b, typeGIF, err
		} // else its first frame may do
	}
	img, err := s.decode(ctx)
	if err != nil {
		return nil, "", err
	}
	out := upright(resize(img, part.Add(img.Bounds().Min), to), s.orientation)
	var buf bytes.Buffer
	if s.photo() && out.Opaque() {
		err = jpeg.Encode(&buf, out, &jpeg.Options{Quality: 82})
		return buf.Bytes(), typeJPEG, err
	}
	err = png.Encode(&buf, out)
	return buf.Bytes(), typePNG, err
}

// photo says that the type is one of photographs, and not mostly of drawings, on which JPEG shows.
func (s *source) photo() bool {
	return s.contentType == typeJPEG || s.contentType == typeWebP || s.contentType == typeTIFF || s.contentType == typeAVIF
}

func scaled(n int, ratio float64) int { return max(int(math.Round(float64(n)*ratio)), 1) }

// decode gives the picture, of moving ones the first frame.
func (s *source) decode(ctx context.Context) (img image.Image, err error) {
	switch s.contentType {
	case typeJPEG:
		img, err = jpeg.Decode(s.reader())
	case typePNG:
		img, err = png.Decode(s.reader())
	case typeGIF:
		img, err = s.first(ctx)
	case typeWebP:
		if s.frames != nil {
			img, err = s.first(ctx)
		} else {
			img, err = webp.Decode(s.reader())
		}
	case typeBMP:
		img, err = bmp.Decode(s.reader())
	case typeTIFF:
		img, err = tiff.Decode(io.NewSectionReader(s.f, 0, s.size))
	case typeAVIF:
		img, err = s.decodeAVIF(ctx)
	default:
		err = errNoPicture
	}
	if err != nil {
		return nil, err
	}
	if got := img.Bounds().Size(); s.turned() && got != image.Pt(s.height, s.width) || !s.turned() && got != image.Pt(s.width, s.height) {
		return nil, errNoPicture // it is not what its head said
	}
	return img, nil
}

// scanJPEG finds the Exif orientation in the head of a JPEG, 1 when there is none, and whether it is progressive,
// which it may be if the head does not tell.
func scanJPEG(head []byte) (orientation int, progressive bool) {
	orientation = 1
	for p := 2; p+4 <= len(head) && head[p] == 0xff; {
		marker, n := head[p+1], int(binary.BigEndian.Uint16(head[p+2:]))
		switch marker {
		case 0xc0, 0xc1:
			return orientation, false
		case 0xc2, 0xda:
			return orientation, true
		case 0xff: // filling
			p++
			continue
		}
		if n < 2 || p+2+n > len(head) {
			break
		}
		if body := head[p+4 : p+2+n]; marker == 0xe1 && bytes.HasPrefix(body, []byte("Exif\x00\x00")) {
			orientation = exif(body[6:])
		}
		p += 2 + n
	}
	return orientation, true
}

// scanPNG finds the Exif orientation in the head of a PNG, and whether it moves, which stand before the picture.
func scanPNG(head []byte) (orientation int, animated bool) {
	orientation = 1
	for p := int64(8); p+8 <= int64(len(head)); {
		n, kind := int64(binary.BigEndian.Uint32(head[p:])), string(head[p+4:p+8])
		switch kind {
		case "acTL":
			animated = true
		case "eXIf":
			if p+8+n <= int64(len(head)) {
				orientation = exif(head[p+8 : p+8+n])
			}
		case "IDAT":
			return orientation, animated
		}
		p += 12 + n
	}
	return orientation, animated
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
