package media

import (
	"image"
	"image/draw"

	xdraw "golang.org/x/image/draw"
)

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
