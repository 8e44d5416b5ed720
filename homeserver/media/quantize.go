package media

import (
	"image"
	"image/color"
	"slices"
)

const (
	// maxColours is how many colours a frame has beside the transparent one.
	maxColours = 255
	// binBits is how exactly colours are told apart, in bits of each channel.
	binBits = 5
	bins    = 1 << (3 * binBits)
)

// bin is all pixels of nearly the same colour.
type bin struct {
	index   int32
	n       uint32
	r, g, b uint32 // sums
}

func binOf(p []byte) int {
	const drop = 8 - binBits
	return int(p[0]>>drop)<<(2*binBits) | int(p[1]>>drop)<<binBits | int(p[2]>>drop)
}

// channel is one of the three of a bin, 0 to 31.
func (b bin) channel(c int) int32 { return b.index >> ((2 - c) * binBits) & (1<<binBits - 1) }

// quantize finds the colours of a frame by cutting the space of those that occur in two, again and again where
// there is most. Pixels to skip become transparent; half transparent ones are one or the other.
func quantize(img *image.RGBA, skip []bool) *image.Paletted {
	all := make([]bin, bins)
	for i, s := range skip {
		p := img.Pix[i*4 : i*4+4 : i*4+4]
		if s || p[3] < 128 {
			continue
		}
		b := &all[binOf(p)]
		b.n++
		b.r += uint32(p[0])
		b.g += uint32(p[1])
		b.b += uint32(p[2])
	}
	used := make([]bin, 0, 4096)
	for i := range all {
		if all[i].n > 0 {
			all[i].index = int32(i)
			used = append(used, all[i])
		}
	}
	palette := color.Palette{color.RGBA{}}
	entry := make([]uint8, bins)
	for _, box := range medianCut(used, maxColours) {
		var n, r, g, b uint32
		for _, x := range box {
			entry[x.index] = uint8(len(palette))
			n += x.n
			r += x.r
			g += x.g
			b += x.b
		}
		palette = append(palette, color.RGBA{uint8(r / n), uint8(g / n), uint8(b / n), 255})
	}
	out := image.NewPaletted(img.Rect, palette)
	for i, s := range skip {
		if p := img.Pix[i*4 : i*4+4 : i*4+4]; !s && p[3] >= 128 {
			out.Pix[i] = entry[binOf(p)]
		}
	}
	return out
}

// medianCut divides bins into at most n boxes.
func medianCut(used []bin, n int) [][]bin {
	if len(used) == 0 {
		return nil
	}
	boxes := [][]bin{used}
	weights := []int64{weigh(used)}
	for len(boxes) < n {
		i := 0
		for j := range weights {
			if weights[j] > weights[i] {
				i = j
			}
		}
		if weights[i] == 0 {
			break // every box is one bin
		}
		a, b := split(boxes[i])
		boxes[i], weights[i] = a, weigh(a)
		boxes, weights = append(boxes, b), append(weights, weigh(b))
	}
	return boxes
}

// spread is the channel in which the bins of a box differ most, and by how much.
func spread(box []bin) (channel int, width int32) {
	for c := range 3 {
		lo, hi := box[0].channel(c), box[0].channel(c)
		for _, b := range box[1:] {
			lo, hi = min(lo, b.channel(c)), max(hi, b.channel(c))
		}
		if hi-lo > width {
			channel, width = c, hi-lo
		}
	}
	return channel, width
}

// weigh says how much a box deserves to be divided; 0 if it cannot be.
func weigh(box []bin) int64 {
	if len(box) < 2 {
		return 0
	}
	var n int64
	for _, b := range box {
		n += int64(b.n)
	}
	_, width := spread(box)
	return n * int64(width) * int64(width)
}

// split divides a box of two bins or more where half of its pixels are on either side.
func split(box []bin) (a, b []bin) {
	c, _ := spread(box)
	slices.SortFunc(box, func(x, y bin) int { return int(x.channel(c)) - int(y.channel(c)) })
	var total, seen uint64
	for _, x := range box {
		total += uint64(x.n)
	}
	at := 1
	for ; at < len(box)-1; at++ {
		if seen += uint64(box[at-1].n); seen >= total/2 {
			break
		}
	}
	return box[:at], box[at:]
}
