package org

import (
	"bytes"
	"fmt"

	"github.com/xuri/excelize/v2"
)

// workbook reads the sheets of an XLSX file row by row.
func (rd *reader) workbook(name string, data []byte) {
	at := place{sheet: &sheetInfo{name: name}}
	defer func() {
		// The parser is not ours and its input comes from outside.
		if p := recover(); p != nil {
			rd.fail("file_unreadable", at, "", "", "the workbook is damaged")
		}
	}()
	f, err := excelize.OpenReader(bytes.NewReader(data), excelize.Options{
		UnzipSizeLimit:    maxUnzipped,
		UnzipXMLSizeLimit: 16 << 20,
		ShortDatePattern:  "yyyy-mm-dd",
	})
	if err != nil {
		rd.fail("file_unreadable", at, "", "", err)
		return
	}
	defer f.Close()
	date1904 := false
	if props, err := f.GetWorkbookProps(); err == nil && props.Date1904 != nil {
		date1904 = *props.Date1904
	}
	for _, sheet := range f.GetSheetList() {
		if err := rd.sheet(f, sheet, date1904); err != nil {
			rd.fail("file_unreadable", place{sheet: &sheetInfo{name: sheet}}, "", "", err)
		}
	}
}

// sheet reads the shown and the stored values side by side: a job number is what
// is shown (with its leading zeros), a date is what is stored.
func (rd *reader) sheet(f *excelize.File, sheet string, date1904 bool) error {
	shown, err := f.Rows(sheet)
	if err != nil {
		return fmt.Errorf("opening the sheet: %w", err)
	}
	defer shown.Close()
	stored, err := f.Rows(sheet)
	if err != nil {
		return fmt.Errorf("opening the sheet: %w", err)
	}
	defer stored.Close()

	t := rd.table(sheet, sheet)
	t.date1904 = date1904
	defer t.close()
	for n := 1; shown.Next() && stored.Next(); n++ {
		cells, err := shown.Columns()
		if err != nil {
			return fmt.Errorf("reading row %d: %w", n, err)
		}
		raw, err := stored.Columns(excelize.Options{RawCellValue: true})
		if err != nil {
			return fmt.Errorf("reading row %d: %w", n, err)
		}
		if !t.row(n, cells, raw) {
			return nil
		}
	}
	if err := shown.Error(); err != nil {
		return fmt.Errorf("reading the sheet: %w", err)
	}
	return nil
}
