package org

import (
	"embed"
	"time"
)

//go:embed demo
var demoFS embed.FS

// Job numbers of the demo people named in the documentation.
const (
	DemoAdmin    = "D1001"
	DemoHead     = "D1010"
	DemoEmployee = "D1013"
)

func readDemo() (*Import, Problems) {
	rd := newReader(ReadOptions{Now: time.Now()})
	for _, name := range []string{"units.csv", "people.csv"} {
		f, err := demoFS.Open("demo/" + name)
		if err != nil {
			rd.fail("file_unreadable", place{}, "", "", err)
			continue
		}
		rd.file(name, f)
		_ = f.Close() // in memory
	}
	return rd.finish()
}
