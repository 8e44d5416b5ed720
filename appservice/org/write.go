package org

import (
	"archive/zip"
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/xuri/excelize/v2"
)

// The formats org files are written in.
const (
	FormatCSV  = "csv" // a zip of units.csv and people.csv
	FormatXLSX = "xlsx"
)

// Names of the sheets in a written workbook.
const (
	unitsTitle  = "部门"
	peopleTitle = "人员"
	helpTitle   = "填写说明 Help"
)

// lastListRow is the last row of a workbook that gets lists to choose from.
const lastListRow = 10_001

// Write writes the import as a file that ReadFile reads back.
func (imp *Import) Write(w io.Writer, format string) error { return imp.write(w, format, nil) }

func (imp *Import) write(w io.Writer, format string, help [][]string) error {
	switch format {
	case FormatCSV:
		return imp.writeCSV(w, help)
	case FormatXLSX:
		return imp.writeXLSX(w, help)
	}
	return fmt.Errorf("unknown format %q: use %s or %s", format, FormatCSV, FormatXLSX)
}

func headerRow(kind sheetKind) []string {
	var row []string
	for _, d := range columnsOf(kind) {
		row = append(row, d.zh+"/"+d.key)
	}
	return row
}

func (imp *Import) unitRows() [][]string {
	rows := [][]string{headerRow(sheetUnits)}
	for _, u := range imp.Units {
		site := ""
		if u.OwnSite {
			site = u.Site
		}
		rows = append(rows, []string{
			u.ID, u.ParentID, u.Name, u.Code, orderText(u.Order), site, strings.Join(u.Managers, ";"),
			yesNo(u.ContainSub), yesNo(!u.NoRoom),
		})
	}
	return rows
}

func (imp *Import) personRows() [][]string {
	rows := [][]string{headerRow(sheetPeople)}
	for _, p := range imp.People {
		var mainPost Post
		others := p.Posts
		if len(p.Posts) > 0 {
			mainPost, others = p.Posts[0], p.Posts[1:]
		}
		var more []string
		for _, post := range others {
			post.Main = false
			more = append(more, formatPost(post))
		}
		rows = append(rows, []string{
			// A plus in front would be taken for a formula.
			p.ID, p.Name, strings.TrimPrefix(p.Mobile, "+86"), p.Email, mainPost.Unit, mainPost.Title,
			leaderCell(mainPost.Leader), strings.Join(more, ";"), orderText(mainPost.Order), p.Manager, p.Hired, p.Left,
			statusCell(p), adminCell(p.Admin),
		})
	}
	return rows
}

func yesNo(b bool) string { return pick(b, "是", "否") }

func adminCell(b bool) string { return pick(b, "是", "") }

func leaderCell(l Leader) string {
	switch l {
	case LeaderMain:
		return "正职"
	case LeaderDeputy:
		return "副职"
	}
	return ""
}

// statusCell writes only what the dates do not say.
func statusCell(p *Person) string { return pick(p.Status == StatusSuspended, "停用", "") }

func (imp *Import) writeCSV(w io.Writer, help [][]string) error {
	z := zip.NewWriter(w)
	add := func(name string, rows [][]string) error {
		f, err := z.Create(name)
		if err != nil {
			return err
		}
		// Without the mark, spreadsheet programs in China take the text for GBK.
		if _, err := io.WriteString(f, "\ufeff"); err != nil {
			return err
		}
		return csv.NewWriter(f).WriteAll(rows)
	}
	if err := add("units.csv", imp.unitRows()); err != nil {
		return fmt.Errorf("writing units.csv: %w", err)
	}
	if err := add("people.csv", imp.personRows()); err != nil {
		return fmt.Errorf("writing people.csv: %w", err)
	}
	if help != nil {
		f, err := z.Create("README.txt")
		if err != nil {
			return fmt.Errorf("writing README.txt: %w", err)
		}
		for _, row := range help {
			if _, err := fmt.Fprintf(f, "%s\r\n", strings.Join(row, "\t")); err != nil {
				return fmt.Errorf("writing README.txt: %w", err)
			}
		}
	}
	return z.Close()
}

func (imp *Import) writeXLSX(w io.Writer, help [][]string) (err error) {
	f := excelize.NewFile()
	defer f.Close()
	if err := f.SetSheetName("Sheet1", unitsTitle); err != nil {
		return fmt.Errorf("writing workbook: %w", err)
	}
	if _, err := f.NewSheet(peopleTitle); err != nil {
		return fmt.Errorf("writing workbook: %w", err)
	}
	if err := fillSheet(f, unitsTitle, imp.unitRows()); err != nil {
		return fmt.Errorf("writing units: %w", err)
	}
	if err := fillSheet(f, peopleTitle, imp.personRows()); err != nil {
		return fmt.Errorf("writing people: %w", err)
	}
	if err := addLists(f); err != nil {
		return fmt.Errorf("writing lists: %w", err)
	}
	if help != nil {
		if _, err := f.NewSheet(helpTitle); err != nil {
			return fmt.Errorf("writing help: %w", err)
		}
		if err := fillSheet(f, helpTitle, help); err != nil {
			return fmt.Errorf("writing help: %w", err)
		}
		if err := f.SetColWidth(helpTitle, "A", "D", 32); err != nil {
			return fmt.Errorf("writing help: %w", err)
		}
	}
	// The same content gives the same file.
	day := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Format(time.RFC3339)
	if err := f.SetDocProps(&excelize.DocProperties{Creator: "Carillon", Created: day, Modified: day}); err != nil {
		return fmt.Errorf("writing workbook: %w", err)
	}
	return f.Write(w)
}

// fillSheet writes rows as text under a bold header that stays in view. Text,
// because job numbers and mobiles are no quantities.
func fillSheet(f *excelize.File, sheet string, rows [][]string) error {
	plain, err := f.NewStyle(&excelize.Style{NumFmt: 49})
	if err != nil {
		return err
	}
	head, err := f.NewStyle(&excelize.Style{
		NumFmt: 49, Font: &excelize.Font{Bold: true},
		Fill: excelize.Fill{Type: "pattern", Pattern: 1, Color: []string{"DDEBF7"}},
	})
	if err != nil {
		return err
	}
	last, err := excelize.ColumnNumberToName(len(rows[0]))
	if err != nil {
		return err
	}
	if err := f.SetColStyle(sheet, "A:"+last, plain); err != nil {
		return err
	}
	if err := f.SetColWidth(sheet, "A", last, 18); err != nil {
		return err
	}
	for i, row := range rows {
		if err := f.SetSheetRow(sheet, "A"+strconv.Itoa(i+1), &row); err != nil {
			return err
		}
	}
	if err := f.SetCellStyle(sheet, "A1", last+"1", head); err != nil {
		return err
	}
	return f.SetPanes(sheet, &excelize.Panes{Freeze: true, YSplit: 1, TopLeftCell: "A2", ActivePane: "bottomLeft"})
}

// addLists lets the cells with few right answers be chosen from a list.
func addLists(f *excelize.File) error {
	choices := []struct {
		sheet string
		kind  sheetKind
		col   col
		list  []string
		from  string // or a range of cells
	}{
		{unitsTitle, sheetUnits, colUnitParent, nil, unitsTitle + "!$A$2:$A$10001"},
		{unitsTitle, sheetUnits, colUnitContainSub, []string{"是", "否"}, ""},
		{unitsTitle, sheetUnits, colUnitRoom, []string{"是", "否"}, ""},
		{peopleTitle, sheetPeople, colUnit, nil, unitsTitle + "!$A$2:$A$10001"},
		{peopleTitle, sheetPeople, colLeader, []string{"正职", "副职"}, ""},
		{peopleTitle, sheetPeople, colStatus, []string{"在职", "停用", "离职"}, ""},
		{peopleTitle, sheetPeople, colAdmin, []string{"是", "否"}, ""},
	}
	for _, c := range choices {
		column := ""
		for i, d := range columnsOf(c.kind) {
			if d.col == c.col {
				column, _ = excelize.ColumnNumberToName(i + 1)
			}
		}
		dv := excelize.NewDataValidation(true)
		dv.SetSqref(fmt.Sprintf("%s2:%s%d", column, column, lastListRow))
		if c.list != nil {
			if err := dv.SetDropList(c.list); err != nil {
				return err
			}
		} else {
			dv.SetSqrefDropList(c.from)
		}
		dv.SetError(excelize.DataValidationErrorStyleStop, "请从列表中选择", "请从列表中选择 / choose from the list")
		if err := f.AddDataValidation(c.sheet, dv); err != nil {
			return err
		}
	}
	return nil
}
