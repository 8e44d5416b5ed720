package org

import (
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/unicode"
)

// csv reads one CSV file: comma, semicolon or tab, with or without a byte order
// mark, UTF-8 or UTF-16 ("Unicode text" of spreadsheet programs).
func (rd *reader) csv(name string, data []byte) {
	at := place{sheet: &sheetInfo{name: name}}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		decoded, err := unicode.UTF16(unicode.LittleEndian, unicode.ExpectBOM).NewDecoder().Bytes(data)
		if err != nil {
			rd.fail("not_utf8", at, "", "")
			return
		}
		data = decoded
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(data) {
		at.row = firstInvalidLine(data)
		rd.fail("not_utf8", at, "", "")
		return
	}
	t := rd.table(strings.TrimSuffix(name, path.Ext(name)), name)
	r := csv.NewReader(bytes.NewReader(data))
	r.Comma = delimiter(data)
	r.FieldsPerRecord = -1
	r.ReuseRecord = true
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		var syntax *csv.ParseError
		if errors.As(err, &syntax) {
			at.row = syntax.StartLine
			rd.fail("csv_syntax", at, "", "", syntax.Err)
			break
		}
		if err != nil {
			rd.fail("file_unreadable", at, "", "", err)
			break
		}
		line, _ := r.FieldPos(0)
		if kind, ok := sectionLine(record); ok {
			t.close()
			t = rd.table("", name)
			t.kind = kind
			continue
		}
		if !t.row(line, record, nil) {
			break
		}
	}
	t.close()
}

// sectionLine knows the line "[people]" that begins a table in a joint file.
func sectionLine(record []string) (sheetKind, bool) {
	s := strings.TrimSpace(strings.Join(record, ""))
	if !strings.HasPrefix(s, "[") || !strings.HasSuffix(s, "]") {
		return sheetNone, false
	}
	kind := kindByName(s[1 : len(s)-1])
	return kind, kind != sheetNone
}

// delimiter is what the first line of text is cut with.
func delimiter(data []byte) rune {
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '[' || line[0] == '#' {
			continue
		}
		best, most := ',', bytes.Count(line, []byte(","))
		for _, d := range []byte{'\t', ';'} {
			if n := bytes.Count(line, []byte{d}); n > most {
				best, most = rune(d), n
			}
		}
		return best
	}
	return ','
}

func firstInvalidLine(data []byte) int {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if !utf8.Valid(line) {
			return n
		}
	}
	return n
}
