package media_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/media"
)

// quarters is a picture whose four quarters have different colours: red, green / blue, white.
func quarters(w, h int) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			c := color.RGBA{255, 255, 255, 255}
			switch {
			case x < w/2 && y < h/2:
				c = color.RGBA{255, 0, 0, 255}
			case y < h/2:
				c = color.RGBA{0, 255, 0, 255}
			case x < w/2:
				c = color.RGBA{0, 0, 255, 255}
			}
			img.Set(x, y, c)
		}
	}
	return img
}

func picture(t testing.TB, format string, w, h int) []byte {
	t.Helper()
	var (
		buf bytes.Buffer
		err error
	)
	switch img := quarters(w, h); format {
	case "png":
		err = png.Encode(&buf, img)
	case "jpeg":
		err = jpeg.Encode(&buf, img, &jpeg.Options{Quality: 95})
	case "gif":
		p := image.NewPaletted(img.Bounds(), color.Palette{color.RGBA{255, 0, 0, 255}, color.RGBA{0, 255, 0, 255}, color.RGBA{0, 0, 255, 255}, color.White})
		for y := range h {
			for x := range w {
				p.Set(x, y, img.At(x, y))
			}
		}
		err = gif.EncodeAll(&buf, &gif.GIF{Image: []*image.Paletted{p, p}, Delay: []int{10, 10}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func dimensions(t testing.TB, b []byte) (w, h int, format string) {
	t.Helper()
	cfg, format, err := image.DecodeConfig(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%v in %.40q", err, b)
	}
	return cfg.Width, cfg.Height, format
}

func TestThumbnails(t *testing.T) {
	s := start(t, media.Options{}, nil)
	ids := map[string]string{
		"jpeg":  s.upload(alice, "image/jpeg", "", picture(t, "jpeg", 400, 200)),
		"png":   s.upload(alice, "application/octet-stream", "", picture(t, "png", 400, 200)), // by its bytes
		"gif":   s.upload(alice, "image/gif", "", picture(t, "gif", 400, 200)),
		"small": s.upload(alice, "image/png", "", picture(t, "png", 20, 10)),
	}
	for _, tt := range []struct {
		id, query string
		w, h      int
		format    string
	}{
		{"jpeg", "width=100&height=100", 100, 50, "jpeg"},
		{"jpeg", "width=100&height=100&method=scale", 100, 50, "jpeg"},
		{"jpeg", "width=100&height=100&method=crop", 100, 100, "jpeg"},
		{"jpeg", "width=399&height=199", 398, 199, "jpeg"},
		{"jpeg", "width=1&height=1&method=crop", 1, 1, "jpeg"},
		{"jpeg", "width=300&height=300&method=crop", 400, 200, "jpeg"}, // never larger than it is
		{"jpeg", "width=800&height=600", 400, 200, "jpeg"},
		{"jpeg", "width=100000&height=100000", 400, 200, "jpeg"},
		{"png", "width=32&height=32&method=crop", 32, 32, "png"},
		{"png", "width=64&height=64", 64, 32, "png"},
		{"gif", "width=64&height=64", 64, 32, "png"},
		{"gif", "width=64&height=64&animated=false", 64, 32, "png"},
		{"gif", "width=64&height=64&animated=true", 64, 32, "gif"},
		{"gif", "width=64&height=64&animated=true&method=crop", 64, 64, "gif"},
		{"gif", "width=400&height=200&animated=true", 400, 200, "gif"}, // as it is
		{"gif", "width=800&height=600", 400, 200, "png"},               // still, though not smaller
		{"jpeg", "width=64&height=64&animated=true", 64, 32, "jpeg"},
		{"small", "width=32&height=32&method=crop", 20, 10, "png"},
	} {
		for range 2 { // made, then kept
			a := s.want(200, "", bob, "GET", auth+"/thumbnail/"+ids[tt.id]+"?"+tt.query, "")
			if w, h, format := dimensions(t, a.Body); w != tt.w || h != tt.h || format != tt.format {
				t.Errorf("%s %s: %s of %d x %d", tt.id, tt.query, format, w, h)
			}
			if a.Header.Get("Content-Type") != "image/"+tt.format || !strings.HasPrefix(a.Header.Get("Content-Disposition"), "inline; filename=\"thumbnail.") {
				t.Errorf("%s %s: %v", tt.id, tt.query, a.Header)
			}
		}
	}
	for _, tt := range []struct{ code, query string }{
		{"M_MISSING_PARAM", "width=10"},
		{"M_MISSING_PARAM", "height=10"},
		{"M_INVALID_PARAM", "width=-1&height=10"},
		{"M_INVALID_PARAM", "width=0&height=10"},
		{"M_INVALID_PARAM", "width=x&height=10"},
		{"M_INVALID_PARAM", "width=10&height=10&method=stretch"},
		{"M_INVALID_PARAM", "width=10&height=10&animated=maybe"},
	} {
		s.want(400, tt.code, bob, "GET", auth+"/thumbnail/"+ids["png"]+"?"+tt.query, "")
	}
	for _, bad := range [][]byte{[]byte("no picture"), nil, picture(t, "png", 40, 40)[:60], []byte("GIF89a"), []byte("\xff\xd8\xff")} {
		s.want(400, "M_UNKNOWN", bob, "GET", auth+"/thumbnail/"+s.upload(alice, "image/png", "", bad)+"?width=10&height=10", "")
	}
}

// The colours are where they belong, so cropping and averaging take the right parts.
func TestThumbnailContent(t *testing.T) {
	t.Parallel()
	s := start(t, media.Options{}, nil)
	for _, size := range []int{100, 1000} { // without and with averaging
		for _, format := range []string{"png", "jpeg"} {
			id := s.upload(alice, "image/png", "", picture(t, format, 2*size, size))
			for _, query := range []string{"width=40&height=40", "width=40&height=40&method=crop"} {
				a := s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?"+query, "")
				img, _, err := image.Decode(bytes.NewReader(a.Body))
				if err != nil {
					t.Fatal(err)
				}
				checkQuarters(t, fmt.Sprint(format, size, query), img, "rgbw")
			}
		}
	}
}

// checkQuarters compares the colours of the four quarters.
func checkQuarters(t *testing.T, what string, img image.Image, want string) {
	t.Helper()
	b := img.Bounds()
	got := ""
	for _, p := range []image.Point{{b.Dx() / 4, b.Dy() / 4}, {b.Dx() * 3 / 4, b.Dy() / 4}, {b.Dx() / 4, b.Dy() * 3 / 4}, {b.Dx() * 3 / 4, b.Dy() * 3 / 4}} {
		r, g, bl, _ := img.At(p.X, p.Y).RGBA()
		switch {
		case r > 0xc000 && g > 0xc000 && bl > 0xc000:
			got += "w"
		case r > 0xc000:
			got += "r"
		case g > 0xc000:
			got += "g"
		case bl > 0xc000:
			got += "b"
		default:
			got += "?"
		}
	}
	if got != want {
		t.Errorf("%s: quarters are %s, want %s", what, got, want)
	}
}

// withOrientation puts an Exif orientation into a JPEG.
func withOrientation(b []byte, orientation uint16, order binary.AppendByteOrder) []byte {
	tiff := []byte("II*\x00")
	if order == binary.BigEndian {
		tiff = []byte("MM\x00*")
	}
	tiff = order.AppendUint32(tiff, 8)
	tiff = order.AppendUint16(tiff, 2) // entries
	for _, e := range [][2]uint16{{0x0100, 7}, {0x0112, orientation}} {
		tiff = order.AppendUint16(tiff, e[0])
		tiff = order.AppendUint16(tiff, 3) // a short
		tiff = order.AppendUint32(tiff, 1)
		tiff = order.AppendUint16(tiff, e[1])
		tiff = order.AppendUint16(tiff, 0)
	}
	body := append([]byte("Exif\x00\x00"), tiff...)
	out := append([]byte{0xff, 0xd8, 0xff, 0xe1}, byte((len(body)+2)>>8), byte(len(body)+2))
	return append(append(out, body...), b[2:]...)
}

func TestOrientation(t *testing.T) {
	s := start(t, media.Options{}, nil)
	base := picture(t, "jpeg", 400, 200)
	for o, want := range map[uint16]string{1: "rgbw", 2: "grwb", 3: "wbgr", 4: "bwrg", 5: "rbgw", 6: "brwg", 7: "wgbr", 8: "gwrb"} {
		var order binary.AppendByteOrder = binary.LittleEndian
		if o%2 == 0 {
			order = binary.BigEndian
		}
		id := s.upload(alice, "image/jpeg", "", withOrientation(base, o, order))
		for _, method := range []string{"scale", "crop"} {
			a := s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?width=80&height=80&method="+method, "")
			img, _, err := image.Decode(bytes.NewReader(a.Body))
			if err != nil {
				t.Fatal(err)
			}
			if w, h := img.Bounds().Dx(), img.Bounds().Dy(); method == "scale" && (o >= 5) != (h > w) || method == "crop" && w != h {
				t.Errorf("orientation %d %s: %d x %d", o, method, w, h)
			}
			checkQuarters(t, fmt.Sprint("orientation ", o, method), img, want)
		}
	}
}

// webpPicture is a lossless WebP of one colour: each of its five codes has a single symbol, so pixels take no bits.
func webpPicture(w, h int, c color.RGBA) []byte {
	var (
		bits []byte
		n    int
	)
	put := func(v, count int) {
		for i := range count {
			if n%8 == 0 {
				bits = append(bits, 0)
			}
			bits[n/8] |= byte(v>>i&1) << (n % 8)
			n++
		}
	}
	put(0x2f, 8)
	put(w-1, 14)
	put(h-1, 14)
	put(1, 1) // alpha is used
	put(0, 3) // version
	put(0, 1) // no transforms
	put(0, 1) // no colour cache
	put(0, 1) // one group of codes
	for _, symbol := range []byte{c.G, c.R, c.B, c.A, 0} {
		put(1, 1) // a simple code
		put(0, 1) // of one symbol
		put(1, 1) // of eight bits
		put(int(symbol), 8)
	}
	if len(bits)%2 == 1 {
		bits = append(bits, 0)
	}
	chunk := append(binary.LittleEndian.AppendUint32([]byte("VP8L"), uint32(len(bits))), bits...)
	return append(append(binary.LittleEndian.AppendUint32([]byte("RIFF"), uint32(4+len(chunk))), "WEBP"...), chunk...)
}

func TestWebP(t *testing.T) {
	s := start(t, media.Options{}, nil)
	for format, c := range map[string]color.RGBA{"jpeg": {255, 0, 0, 255}, "png": {255, 0, 0, 100}} { // opaque or not
		id := s.upload(alice, "image/webp", "", webpPicture(64, 48, c))
		a := s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?width=32&height=32", "")
		if w, h, f := dimensions(t, a.Body); w != 32 || h != 24 || f != format {
			t.Errorf("%s of %d x %d, want %s", f, w, h, format)
		}
		a = s.want(200, "WEBP", bob, "GET", auth+"/thumbnail/"+id+"?width=320&height=320", "")
		if a.Header.Get("Content-Type") != "image/webp" {
			t.Errorf("the original: %s", a.Header.Get("Content-Type"))
		}
	}
}

func TestLimits(t *testing.T) {
	s := start(t, media.Options{MaxPixels: 10_000}, nil)
	s.want(413, "M_TOO_LARGE", bob, "GET", auth+"/thumbnail/"+s.upload(alice, "image/png", "", picture(t, "png", 200, 100))+"?width=10&height=10", "")
	// A head that promises a huge picture costs nothing.
	huge := picture(t, "png", 10, 10)
	binary.BigEndian.PutUint32(huge[16:], 1<<30)
	binary.BigEndian.PutUint32(huge[20:], 1<<30)
	if a := s.do(bob, "GET", auth+"/thumbnail/"+s.upload(alice, "image/png", "", huge)+"?width=10&height=10", nil); a.Status != 400 && a.Status != 413 {
		t.Errorf("huge: %d %s", a.Status, a.Body)
	}
	far := start(t, media.Options{Server: "far.example.org"}, nil)
	s = start(t, media.Options{MaxPixels: 10_000}, &toServer{url: far.url})
	id := far.upload("@carol:far.example.org", "image/png", "", picture(t, "png", 200, 100))
	s.want(502, "M_TOO_LARGE", bob, "GET", auth+"/thumbnail/"+id+"?width=10&height=10", "")
}

func TestFixedSizes(t *testing.T) {
	t.Parallel()
	s := start(t, media.Options{FixedSizes: true}, nil)
	id := s.upload(alice, "image/png", "", picture(t, "png", 2000, 2000))
	for query, width := range map[string]int{
		"width=10&height=10&method=crop":   32,
		"width=33&height=10&method=crop":   96,
		"width=500&height=500&method=crop": 600, // no such crop: the largest
		"width=100&height=100":             240,
		"width=641&height=1":               600,
		"width=1500&height=1500":           2000, // larger than any: the original, as smaller is not permitted
	} {
		a := s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?"+query, "")
		if w, _, _ := dimensions(t, a.Body); w != width {
			t.Errorf("%s: %d wide", query, w)
		}
	}
}

// However many sizes are asked for, the disk does not fill up.
func TestVariants(t *testing.T) {
	t.Parallel()
	s := start(t, media.Options{}, nil)
	id := s.upload(alice, "image/png", "", picture(t, "png", 200, 200))
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			a := s.want(200, "", bob, "GET", fmt.Sprintf("%s/thumbnail/%s?width=%d&height=%d", auth, id, 10+i/2, 10+i/2), "")
			if w, _, _ := dimensions(t, a.Body); w != 10+i/2 {
				t.Errorf("%d wide, want %d", w, 10+i/2)
			}
		})
	}
	wg.Wait()
	for i := range 20 {
		s.want(200, "", bob, "GET", fmt.Sprintf("%s/thumbnail/%s?width=%d&height=%d", auth, id, 50+i, 50+i), "")
	}
	kept, err := filepath.Glob(filepath.Join(s.dir, "thumbnails", "*", "*", "*"))
	if err != nil || len(kept) > 24 {
		t.Errorf("%d thumbnails are kept, %v", len(kept), err)
	}
	left, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
