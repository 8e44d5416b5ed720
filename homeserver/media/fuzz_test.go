package media

import (
	"bytes"
	"context"
	"image"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"
)

// Whatever is uploaded, a thumbnail of the right dimensions is made or refused, and what its head announces bounds
// what decoding it costs.
func FuzzPicture(f *testing.F) {
	files, err := filepath.Glob("testdata/*.*")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	img := image.NewRGBA(image.Rect(0, 0, 40, 20))
	for _, encode := range []func(*bytes.Buffer) error{
		func(b *bytes.Buffer) error { return bmp.Encode(b, img) },
		func(b *bytes.Buffer) error { return tiff.Encode(b, img, nil) },
		func(b *bytes.Buffer) error {
			film := newFilm(image.Pt(40, 20), 0)
			for i := range 3 {
				frame := image.NewRGBA(img.Rect)
				frame.Pix[3+4*i] = 255
				film.add(frame, 5)
			}
			out, err := film.encode()
			b.Write(out)
			return err
		},
	} {
		var b bytes.Buffer
		if err := encode(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), true)
	}
	path := filepath.Join(f.TempDir(), "picture")
	f.Fuzz(func(t *testing.T, b []byte, animated bool) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		src, err := inspect(file, int64(len(b)))
		if err != nil || src.memory() > 4<<20 {
			return
		}
		want := size{width: 10, height: 10, crop: true, animated: animated}
		out, kind, err := src.shrink(context.Background(), want)
		if err != nil {
			return
		}
		cfg, format, err := image.DecodeConfig(bytes.NewReader(out))
		if err != nil || kind != "image/"+format || cfg.Width > 10 || cfg.Height > 10 {
			t.Errorf("%s as %s of %d x %d: %v", format, kind, cfg.Width, cfg.Height, err)
		}
	})
}
