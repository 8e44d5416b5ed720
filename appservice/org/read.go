package org

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Limits of a file that the caller does not set.
const (
	defaultMaxBytes  = 16 << 20
	defaultMaxUnits  = 10_000
	defaultMaxPeople = 100_000
	maxColumns       = 64
	maxCellLength    = 4096
	// maxUnzipped bounds what a compressed file may grow to.
	maxUnzipped = 256 << 20
	maxZipFiles = 64
)

// ReadOptions bound and complete the reading of a file. The zero value is for a
// file that is whole in itself.
type ReadOptions struct {
	MaxBytes  int64 // 16 MiB if zero
	MaxUnits  int   // 10,000 if zero
	MaxPeople int   // 100,000 if zero
	// Current is the organisation the file's references may point into besides
	// the file itself; needed for files that hold a part of the company.
	Current *Tree
	// Now decides which days have passed; the current time if zero.
	Now time.Time
}

func (o ReadOptions) withDefaults() ReadOptions {
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.MaxUnits <= 0 {
		o.MaxUnits = defaultMaxUnits
	}
	if o.MaxPeople <= 0 {
		o.MaxPeople = defaultMaxPeople
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	return o
}

// ReadFile reads an org file: XLSX with the sheets units and people, a zip of
// units.csv and people.csv, or one CSV with either of them (or both, under lines
// "[units]" and "[people]"). What it is, is found from the content; the name is
// used in problems. All faults are answered together; the import is usable only
// if there are none.
func ReadFile(name string, r io.Reader, opts ReadOptions) (*Import, Problems) {
	rd := newReader(opts)
	rd.file(filepath.Base(name), r)
	return rd.finish()
}

// ReadFiles reads an org from files on disk, such as units.csv and people.csv.
func ReadFiles(opts ReadOptions, names ...string) (*Import, Problems) {
	rd := newReader(opts)
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			rd.fail("file_unreadable", place{sheet: &sheetInfo{name: filepath.Base(name)}}, "", "", err)
			continue
		}
		rd.file(filepath.Base(name), f)
		_ = f.Close() // only read
	}
	return rd.finish()
}

// reader gathers what the tables of one import say.
type reader struct {
	opts ReadOptions
	imp  *Import
	// noTables tells that a file could not be opened, so missing sheets are no
	// further fault.
	broken bool
}

func newReader(opts ReadOptions) *reader {
	return &reader{opts: opts.withDefaults(), imp: &Import{}}
}

func (rd *reader) fail(code string, at place, column, value string, args ...any) {
	rd.imp.problems = append(rd.imp.problems, newProblem(code, at, column, value, args...))
}

// finish looks at the whole: sheets, references, circles, doubles.
func (rd *reader) finish() (*Import, Problems) {
	imp := rd.imp
	if !imp.HasUnits && !imp.HasPeople && !rd.broken && len(imp.problems) == 0 {
		rd.fail("no_sheet", place{}, "", "")
	}
	today := rd.opts.Now.Format(dateLayout)
	v := merge(rd.opts.Current, imp, false, nil, today)
	found := append(Problems{}, imp.problems...)
	found = append(found, check(rd.opts.Current, imp, v)...)
	return imp, found.sorted()
}

// file finds out what the bytes are and reads them.
func (rd *reader) file(name string, r io.Reader) {
	at := place{sheet: &sheetInfo{name: name}}
	data, err := io.ReadAll(io.LimitReader(r, rd.opts.MaxBytes+1))
	switch {
	case err != nil:
		rd.fail("file_unreadable", at, "", "", err)
	case int64(len(data)) > rd.opts.MaxBytes:
		rd.fail("file_too_large", at, "", "", rd.opts.MaxBytes>>20)
	case len(bytes.TrimSpace(data)) == 0:
		rd.fail("file_empty", at, "", "")
	case bytes.HasPrefix(data, []byte("\xd0\xcf\x11\xe0")):
		rd.fail("old_excel", at, "", "")
	case bytes.HasPrefix(data, []byte("PK\x03\x04")), bytes.HasPrefix(data, []byte("PK\x05\x06")):
		rd.zipped(name, data)
	default:
		rd.csv(name, data)
		return
	}
	rd.broken = rd.broken || len(rd.imp.problems) > 0
}

// zipped tells a workbook from a zip of CSV files.
func (rd *reader) zipped(name string, data []byte) {
	at := place{sheet: &sheetInfo{name: name}}
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		rd.fail("file_unreadable", at, "", "", err)
		return
	}
	for _, f := range z.File {
		if f.Name == "[Content_Types].xml" {
			rd.workbook(name, data)
			return
		}
	}
	if len(z.File) > maxZipFiles {
		rd.fail("file_unreadable", at, "", "", fmt.Sprintf("more than %d files in the zip", maxZipFiles))
		return
	}
	for _, f := range z.File {
		base := path.Base(strings.ReplaceAll(f.Name, `\`, "/"))
		if f.FileInfo().IsDir() || strings.HasPrefix(f.Name, "__MACOSX") || strings.HasPrefix(base, ".") ||
			!strings.EqualFold(path.Ext(base), ".csv") {
			continue
		}
		rd.zippedCSV(base, f)
	}
}

func (rd *reader) zippedCSV(base string, f *zip.File) {
	at := place{sheet: &sheetInfo{name: strings.ToValidUTF8(base, "?")}}
	text, err := unzip(f, rd.opts.MaxBytes)
	switch {
	case errors.Is(err, errTooLarge):
		rd.fail("file_too_large", at, "", "", rd.opts.MaxBytes>>20)
	case err != nil:
		rd.fail("file_unreadable", at, "", "", err)
	case len(bytes.TrimSpace(text)) > 0:
		rd.csv(at.sheet.name, text)
	}
}

var errTooLarge = errors.New("too large")

func unzip(f *zip.File, limit int64) ([]byte, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	// The size in the zip's directory may lie: count while reading.
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errTooLarge
	}
	return data, err
}
