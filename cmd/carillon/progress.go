package main

import (
	"io"
	"os"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// bar shows how far long work has come, on a terminal only: in a file or a pipe it
// would be noise.
type bar struct {
	w     io.Writer
	shown bool
	phase string
	pb    *progressbar.ProgressBar
}

func newBar(w io.Writer) *bar {
	f, ok := w.(*os.File)
	return &bar{w: w, shown: ok && term.IsTerminal(int(f.Fd()))}
}

// set says that done of total are done in this phase.
func (b *bar) set(phase string, done, total int) {
	if !b.shown || total == 0 {
		return
	}
	if b.pb == nil || phase != b.phase {
		b.finish()
		b.phase = phase
		b.pb = progressbar.NewOptions(total,
			progressbar.OptionSetWriter(b.w),
			progressbar.OptionSetDescription(phase),
			progressbar.OptionShowCount(),
			progressbar.OptionSetWidth(30),
			progressbar.OptionClearOnFinish(),
		)
	}
	if b.pb.GetMax() != total {
		b.pb.ChangeMax(total)
	}
	_ = b.pb.Set(done) // the bar is only for the eye
}

// finish takes the bar away.
func (b *bar) finish() {
	if b.pb != nil {
		_ = b.pb.Finish()
		b.pb = nil
	}
}
