package media_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/gif"
	"image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gen2brain/avif"
	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"

	"github.com/carillon-chat/carillon/homeserver/media"
)

// encoded is a picture of four quarters in a format of every kind.
func encoded(t testing.TB, kind string, w, h int) []byte {
	t.Helper()
	var (
		buf bytes.Buffer
		img image.Image = quarters(w, h)
		err error
	)
	switch kind {
	case "bmp":
		err = bmp.Encode(&buf, img)
	case "tiff":
		err = tiff.Encode(&buf, img, nil)
	case "tiff packed":
		err = tiff.Encode(&buf, img, &tiff.Options{Compression: tiff.Deflate, Predictor: true})
	case "png of 16 bits":
		deep := image.NewNRGBA64(img.Bounds())
		draw.Draw(deep, deep.Rect, img, image.Point{}, draw.Src)
		err = png.Encode(&buf, deep)
	case "grey png of 16 bits":
		grey := image.NewGray16(img.Bounds())
		draw.Draw(grey, grey.Rect, image.White, image.Point{}, draw.Src)
		err = png.Encode(&buf, grey)
	default: // the files of testdata were made with other programs; see its README
		b, err := os.ReadFile(filepath.Join("testdata", kind))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestMain makes the test program its own decoder of AVIF, as the server's program is.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "decode-avif" {
		if err := media.WriteAVIF(os.Stdin, os.Stdout, avif.Decode); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func decoder(t testing.TB) []string {
	t.Helper()
	args, err := media.ExecutableAVIF("decode-avif")
	if err != nil {
		t.Fatal(err)
	}
	return args
}

func TestKindsOfPictures(t *testing.T) {
	t.Parallel()
	s := start(t, media.Options{AVIF: decoder(t)}, nil)
	for _, tt := range []struct{ kind, quarters, format string }{
		{"still.avif", "rgbw", "jpeg"},
		{"turned.avif", "brwg", "jpeg"},
		{"clear.avif", "????", "png"},
		{"bmp", "rgbw", "png"},
		{"tiff", "rgbw", "jpeg"},
		{"tiff packed", "rgbw", "jpeg"},
		{"png of 16 bits", "rgbw", "png"},
		{"grey png of 16 bits", "wwww", "png"},
		{"cmyk.jpg", "rgbw", "jpeg"},
		{"progressive.jpg", "rgbw", "jpeg"},
		{"interlaced.png", "rgbw", "png"},
		{"lossy.webp", "rgbw", "jpeg"},
		{"turned.webp", "brwg", "jpeg"}, // Exif says 6
		{"turned.png", "brwg", "png"},
		{"turned.tiff", "brwg", "jpeg"},
		{"moving.webp", "rgbw", "jpeg"}, // its first frame
	} {
		id := s.upload(alice, "image/x", "", encoded(t, tt.kind, 200, 200))
		for _, method := range []string{"scale", "crop"} {
			if method == "crop" && strings.HasSuffix(tt.kind, ".avif") {
				continue // starting the decoder takes a second
			}
			a := s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?width=50&height=50&method="+method, "")
			img, format, err := image.Decode(bytes.NewReader(a.Body))
			if err != nil {
				t.Errorf("%s: %v", tt.kind, err)
				continue
			}
			if format != tt.format || img.Bounds().Dx() != 50 || a.Header.Get("Content-Type") != "image/"+format {
				t.Errorf("%s: %s of %v as %s", tt.kind, format, img.Bounds(), a.Header.Get("Content-Type"))
			}
			checkQuarters(t, tt.kind, img, tt.quarters)
		}
	}
	// What not all clients can show is given in a form that they can, also when it is small enough.
	for _, kind := range []string{"bmp", "tiff"} {
		id := s.upload(alice, "image/"+kind, "", encoded(t, kind, 20, 20))
		a := s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?width=50&height=50", "")
		if w, _, format := dimensions(t, a.Body); w != 20 || format == kind {
			t.Errorf("a small %s: %s of %d", kind, format, w)
		}
	}
}

// Of AVIF that lies, is broken or cannot be decoded here no thumbnail is made, and nothing is left behind.
func TestBadAVIF(t *testing.T) {
	t.Parallel()
	good := encoded(t, "still.avif", 0, 0)
	change := func(what string, fn func(b []byte)) []byte {
		t.Helper()
		b := bytes.Clone(good)
		at := bytes.Index(b, []byte(what))
		if at < 0 {
			t.Fatalf("no %s", what)
		}
		fn(b[at+len(what):])
		return b
	}
	for name, c := range map[string]struct {
		opts   media.Options
		body   []byte
		status int
	}{
		"no decoder":        {media.Options{}, good, 400},
		"a failing decoder": {media.Options{AVIF: []string{"/bin/false"}}, good, 400},
		"no such decoder":   {media.Options{AVIF: []string{"/nowhere"}}, good, 400},
		"a silent decoder":  {media.Options{AVIF: []string{"/bin/true"}}, good, 400},
		"cut short":         {media.Options{AVIF: decoder(t)}, good[:len(good)-100], 400},
		"head only":         {media.Options{AVIF: decoder(t)}, good[:40], 400},
		"huge":              {media.Options{AVIF: decoder(t)}, change("ispe", func(b []byte) { binary.BigEndian.PutUint32(b[4:], 1<<20) }), 413},
		"no dimensions":     {media.Options{AVIF: decoder(t)}, change("ispe", func(b []byte) { clear(b[4:12]) }), 400},
	} {
		s := start(t, c.opts, nil)
		id := s.upload(alice, "image/avif", "", c.body)
		if a := s.do(bob, "GET", auth+"/thumbnail/"+id+"?width=50&height=50", nil); a.Status != c.status {
			t.Errorf("%s: %d %.100s", name, a.Status, a.Body)
		}
		if a := s.want(200, "", bob, "GET", auth+"/download/"+id, ""); !strings.HasPrefix(a.Header.Get("Content-Disposition"), "inline") {
			t.Errorf("%s: %v", name, a.Header)
		}
	}
}

// A drawing that is a program is never run, and given out as a file to save.
func TestSVG(t *testing.T) {
	s := start(t, media.Options{}, nil)
	svg := []byte(`<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>`)
	for _, kind := range []string{"image/svg+xml", "image/png", ""} {
		id := s.upload(alice, kind, "a.svg", svg)
		s.want(400, "M_UNKNOWN", bob, "GET", auth+"/thumbnail/"+id+"?width=50&height=50", "")
	}
	a := s.want(200, "svg", bob, "GET", auth+"/download/"+s.upload(alice, "image/svg+xml", "a.svg", svg), "")
	if d := a.Header.Get("Content-Disposition"); d != "attachment; filename=a.svg" {
		t.Errorf("disposition %s", d)
	}
}

// movie is a GIF in which a red square moves over the canvas; each frame covers a part only.
func movie(t testing.TB, w, h, n int, disposal byte) []byte {
	t.Helper()
	colours := color.Palette{color.Transparent, color.RGBA{255, 0, 0, 255}, color.White}
	g := &gif.GIF{Config: image.Config{Width: w, Height: h, ColorModel: colours}, LoopCount: 3}
	for i := range n {
		r := image.Rect(0, 0, w, h)
		if i > 0 {
			x := i * (w - w/4) / n
			r = image.Rect(x, h/4, x+w/4, h/2)
		}
		p := image.NewPaletted(r, colours)
		index := uint8(2)
		if i > 0 {
			index = 1
		}
		for j := range p.Pix {
			p.Pix[j] = index
		}
		g.Image, g.Delay, g.Disposal = append(g.Image, p), append(g.Delay, 5+i), append(g.Disposal, disposal)
	}
	var buf bytes.Buffer
	if err := gif.EncodeAll(&buf, g); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// playGIF draws a GIF as a browser does, and returns what is seen at each frame.
func playGIF(t testing.TB, b []byte) (g *gif.GIF, seen []*image.RGBA) {
	t.Helper()
	g, err := gif.DecodeAll(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	canvas := image.NewRGBA(image.Rect(0, 0, g.Config.Width, g.Config.Height))
	for i, p := range g.Image {
		before := image.NewRGBA(canvas.Rect)
		copy(before.Pix, canvas.Pix)
		draw.Draw(canvas, p.Rect, p, p.Rect.Min, draw.Over)
		now := image.NewRGBA(canvas.Rect)
		copy(now.Pix, canvas.Pix)
		seen = append(seen, now)
		switch g.Disposal[i] {
		case gif.DisposalBackground:
			draw.Draw(canvas, p.Rect, image.Transparent, image.Point{}, draw.Src)
		case gif.DisposalPrevious:
			copy(canvas.Pix, before.Pix)
		}
	}
	return g, seen
}

func TestMovingPictures(t *testing.T) {
	t.Parallel()
	s := start(t, media.Options{}, nil)
	for _, disposal := range []byte{gif.DisposalNone, gif.DisposalBackground, gif.DisposalPrevious} {
		in := movie(t, 200, 160, 6, disposal)
		id := s.upload(alice, "image/gif", "", in)
		_, original := playGIF(t, in)
		for range 2 { // made, then kept
			a := s.want(200, "GIF89a", bob, "GET", auth+"/thumbnail/"+id+"?width=50&height=50&animated=true", "")
			g, seen := playGIF(t, a.Body)
			if len(seen) != 6 || g.LoopCount != 3 || g.Delay[2] != 7 || g.Config.Width != 50 || g.Config.Height != 40 || len(a.Body) >= len(in)*4 {
				t.Fatalf("disposal %d: %d frames, loops %d, delays %v, %d x %d, %d bytes", disposal, len(seen), g.LoopCount, g.Delay, g.Config.Width, g.Config.Height, len(a.Body))
			}
			for i := range seen {
				for _, p := range []image.Point{{5, 5}, {20, 15}, {40, 15}, {5, 15}, {45, 35}} {
					got, want := seen[i].RGBAAt(p.X, p.Y), original[i].RGBAAt(p.X*4, p.Y*4)
					if far(got, want) {
						t.Errorf("disposal %d frame %d at %v: %v, want %v", disposal, i, p, got, want)
					}
				}
			}
		}
		for _, query := range []string{"", "&animated=false"} {
			a := s.want(200, "PNG", bob, "GET", auth+"/thumbnail/"+id+"?width=50&height=50"+query, "")
			if w, h, _ := dimensions(t, a.Body); w != 50 || h != 40 {
				t.Errorf("still: %d x %d", w, h)
			}
		}
		// Small enough as it is: the same when it may move, its first frame when not.
		if a := s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?width=300&height=300&animated=true", ""); !bytes.Equal(a.Body, in) {
			t.Errorf("%d bytes", len(a.Body))
		}
		s.want(200, "PNG", bob, "GET", auth+"/thumbnail/"+id+"?width=300&height=300", "")
	}
	// WebP that moves becomes GIF; PNG that moves and is not large is its own thumbnail.
	a := s.want(200, "GIF89a", bob, "GET", auth+"/thumbnail/"+s.upload(alice, "image/webp", "", encoded(t, "moving.webp", 0, 0))+"?width=50&height=50&animated=true", "")
	if g, seen := playGIF(t, a.Body); len(seen) != 3 || g.Config.Width != 50 {
		t.Errorf("WebP: %d frames, %d wide", len(seen), g.Config.Width)
	} else {
		for i, want := range []string{"rgbw", "wwww", "rgbw"} {
			checkQuarters(t, fmt.Sprint("frame ", i), seen[i], want)
		}
	}
	apng := encoded(t, "moving.png", 0, 0)
	id := s.upload(alice, "image/png", "", apng)
	if a := s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?width=50&height=50&animated=true", ""); !bytes.Equal(a.Body, apng) {
		t.Errorf("APNG: %d bytes", len(a.Body))
	}
	a = s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?width=400&height=400", "")
	if bytes.Contains(a.Body, []byte("acTL")) {
		t.Error("APNG: it moves though nobody has asked for that")
	}
	// What cannot move stands still, again and again.
	still := s.upload(alice, "image/png", "", picture(t, "png", 200, 100))
	for range 2 {
		s.want(200, "PNG", bob, "GET", auth+"/thumbnail/"+still+"?width=50&height=50&animated=true", "")
	}
}

func far(a, b color.RGBA) bool {
	d := func(x, y uint8) int { return max(int(x)-int(y), int(y)-int(x)) }
	return d(a.R, b.R) > 16 || d(a.G, b.G) > 16 || d(a.B, b.B) > 16 || d(a.A, b.A) > 16
}

// Many colours are brought down to those that a GIF may have, near to what they were.
func TestManyColours(t *testing.T) {
	s := start(t, media.Options{}, nil)
	b := encoded(t, "moving.webp", 0, 0)
	id := s.upload(alice, "image/webp", "", b)
	a := s.want(200, "GIF", bob, "GET", auth+"/thumbnail/"+id+"?width=100&height=100&animated=true", "")
	g, _ := playGIF(t, a.Body)
	for i, p := range g.Image {
		if len(p.Palette) > 256 {
			t.Errorf("frame %d has %d colours", i, len(p.Palette))
		}
	}
}

// Pictures that are small to send and huge to unpack are refused by their heads.
func TestBombs(t *testing.T) {
	t.Parallel()
	s := start(t, media.Options{}, nil)
	const thumb = "?width=10&height=10"
	refuse := func(what string, b []byte) {
		t.Helper()
		id := s.upload(alice, "image/x", "", b)
		for _, animated := range []string{"", "&animated=true"} {
			a := s.do(bob, "GET", auth+"/thumbnail/"+id+thumb+animated, nil)
			if a.Status != 413 && a.Status != 400 {
				t.Errorf("%s: %d", what, a.Status)
			}
		}
	}
	bomb := picture(t, "png", 10, 10)
	binary.BigEndian.PutUint32(bomb[16:], 30_000)
	binary.BigEndian.PutUint32(bomb[20:], 30_000)
	refuse("png", bomb)
	bomb = encoded(t, "bmp", 10, 10)
	binary.LittleEndian.PutUint32(bomb[18:], 30_000)
	binary.LittleEndian.PutUint32(bomb[22:], 30_000)
	refuse("bmp", bomb)
	bomb = picture(t, "gif", 10, 10)
	binary.LittleEndian.PutUint16(bomb[6:], 65_535)
	binary.LittleEndian.PutUint16(bomb[8:], 65_535)
	refuse("gif", bomb)
	bomb = picture(t, "jpeg", 16, 16)
	at := bytes.Index(bomb, []byte{0xff, 0xc0})
	binary.BigEndian.PutUint16(bomb[at+5:], 65_000)
	binary.BigEndian.PutUint16(bomb[at+7:], 65_000)
	refuse("jpeg", bomb)
	refuse("webp", webpPicture(16_000, 16_000, color.RGBA{1, 2, 3, 255}))
	// Coefficients of a progressive JPEG take five times as much as its pixels, so that it is bounded sooner.
	bomb = encoded(t, "progressive.jpg", 0, 0)
	at = bytes.Index(bomb, []byte{0xff, 0xc2})
	binary.BigEndian.PutUint16(bomb[at+5:], 7000)
	binary.BigEndian.PutUint16(bomb[at+7:], 8000)
	refuse("progressive jpeg", bomb)
	// A film whose frames are more than can be read stands still.
	id := s.upload(alice, "image/gif", "", movie(t, 2000, 2000, 64, gif.DisposalNone))
	a := s.want(200, "PNG", bob, "GET", auth+"/thumbnail/"+id+thumb+"&animated=true", "")
	if w, _, _ := dimensions(t, a.Body); w != 10 {
		t.Errorf("%d wide", w)
	}
	// One with many small frames is made shorter, not slower.
	id = s.upload(alice, "image/gif", "", movie(t, 200, 200, 800, gif.DisposalNone))
	a = s.want(200, "GIF", bob, "GET", auth+"/thumbnail/"+id+"?width=180&height=180&animated=true", "")
	g, err := gif.DecodeAll(bytes.NewReader(a.Body))
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, d := range g.Delay {
		total += d
	}
	if len(g.Image) >= 800 || total != 800*5+799*800/2 {
		t.Errorf("%d frames, %d hundredths", len(g.Image), total)
	}
}

// Benchmarks of what a thumbnail costs. A photograph of 12 megapixels is what a telephone takes.
func BenchmarkThumbnail(b *testing.B) {
	photo := noisy(4000, 3000)
	var jpg, pic bytes.Buffer
	if err := jpeg.Encode(&jpg, photo, &jpeg.Options{Quality: 85}); err != nil {
		b.Fatal(err)
	}
	if err := png.Encode(&pic, noisy(1920, 1080)); err != nil {
		b.Fatal(err)
	}
	for _, bb := range []struct {
		name, query string
		content     []byte
	}{
		{"JPEG of 12 MP to 800x600", "width=800&height=600", jpg.Bytes()},
		{"JPEG of 12 MP to 96x96", "width=96&height=96&method=crop", jpg.Bytes()},
		{"PNG of 2 MP to 800x600", "width=800&height=600", pic.Bytes()},
		{"GIF of 40 frames 400x300 to 200x150", "width=200&height=150&animated=true", movie(b, 400, 300, 40, gif.DisposalNone)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s := start(b, media.Options{}, nil)
			id := s.upload(alice, "image/x", "", bb.content)
			defer processor(b)()
			for b.Loop() {
				if err := os.RemoveAll(filepath.Join(s.dir, "thumbnails")); err != nil {
					b.Fatal(err)
				}
				s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?"+bb.query, "")
			}
		})
		b.Run(bb.name+", kept", func(b *testing.B) {
			s := start(b, media.Options{}, nil)
			id := s.upload(alice, "image/x", "", bb.content)
			s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?"+bb.query, "")
			defer processor(b)()
			for b.Loop() {
				s.want(200, "", bob, "GET", auth+"/thumbnail/"+id+"?"+bb.query, "")
			}
		})
	}
}

// noisy is a picture that is as hard to pack as a photograph.
func noisy(w, h int) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	x := uint32(1)
	for i := range img.Pix {
		x = x*1664525 + 1013904223
		img.Pix[i] = byte(i/4%w*255/w) + byte(x>>28)
		if i%4 == 3 {
			img.Pix[i] = 255
		}
	}
	return img
}
