package org

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Lang is a language the package speaks.
type Lang string

// The languages of problems and plans.
const (
	English Lang = "en"
	Chinese Lang = "zh"
)

// Problem is one fault of a file: where it stands, what is wrong, what to do.
type Problem struct {
	// Code names the kind of fault for programs.
	Code   string `json:"code"`
	Sheet  string `json:"sheet,omitempty"`
	Row    int    `json:"row,omitempty"` // as the spreadsheet counts, the header is a row
	Column string `json:"column,omitempty"`
	Value  string `json:"value,omitempty"`

	Message   string `json:"message"`
	Mend      string `json:"mend"`
	MessageZH string `json:"message_zh"`
	MendZH    string `json:"mend_zh"`
}

// maxShownValue bounds how much of a faulty cell is shown back.
const maxShownValue = 80

// maxProblems bounds the list of a file that is wrong from end to end.
const maxProblems = 10000

// newProblem makes a problem from the catalogue. The texts' arguments are the
// value and then args.
func newProblem(code string, at place, column, value string, args ...any) Problem {
	t := catalogue[code]
	value = shorten(value)
	all := append([]any{value}, args...)
	p := Problem{
		Code: code, Column: column, Value: value, Row: at.row,
		Message: fill(t.en, all), Mend: fill(t.mendEN, all),
		MessageZH: fill(t.zh, all), MendZH: fill(t.mendZH, all),
	}
	if at.sheet != nil {
		p.Sheet = at.sheet.name
	}
	return p
}

// fill puts the arguments into {0}, {1}, ... in one pass, so that a value which
// itself has braces stays as it is.
func fill(text string, args []any) string {
	pairs := make([]string, 0, 2*len(args))
	for i, a := range args {
		pairs = append(pairs, fmt.Sprintf("{%d}", i), fmt.Sprint(a))
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

func shorten(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if r := []rune(s); len(r) > maxShownValue {
		return string(r[:maxShownValue-1]) + "…"
	}
	return s
}

// Text is the problem in one line.
func (p Problem) Text(lang Lang) string {
	var b strings.Builder
	message, mend := p.Message, p.Mend
	where := func(format, s string) {
		if s != "" && s != "0" {
			if b.Len() > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, format, s)
		}
	}
	if lang == Chinese {
		message, mend = p.MessageZH, p.MendZH
		where("%s", p.Sheet)
		where("第 %s 行", fmt.Sprint(p.Row))
		where("“%s”列", p.Column)
		where("值“%s”", p.Value)
	} else {
		where("%s", p.Sheet)
		where("row %s", fmt.Sprint(p.Row))
		where("column %s", p.Column)
		where("value %q", p.Value)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(message)
	if mend != "" {
		b.WriteString(" → " + mend)
	}
	return b.String()
}

// Problems is every fault of a file. It implements error; use Err to make an
// error of a list that may be empty.
type Problems []Problem

// Error lists all problems in English, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Text(English)
	}
	return strings.Join(lines, "\n")
}

// Err is nil when there is no problem.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// WriteText lists all problems, one a line, with a count above them.
func (ps Problems) WriteText(w io.Writer, lang Lang) error {
	head := fmt.Sprintf("%d problem(s), nothing was changed:\n", len(ps))
	if lang == Chinese {
		head = fmt.Sprintf("共 %d 个问题，未做任何更改：\n", len(ps))
	}
	if _, err := io.WriteString(w, head); err != nil {
		return err
	}
	for _, p := range ps {
		if _, err := fmt.Fprintf(w, "  %s\n", p.Text(lang)); err != nil {
			return err
		}
	}
	return nil
}

// Has tells whether a problem of the code is in the list.
func (ps Problems) Has(code string) bool {
	return slices.ContainsFunc(ps, func(p Problem) bool { return p.Code == code })
}

// sorted orders problems as a reader walks through the file, drops doubles and
// bounds the list.
func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Sheet, b.Sheet), cmp.Compare(a.Row, b.Row))
	})
	seen := make(map[Problem]bool, len(ps))
	ps = slices.DeleteFunc(ps, func(p Problem) bool {
		double := seen[p]
		seen[p] = true
		return double
	})
	if len(ps) > maxProblems {
		rest := len(ps) - maxProblems
		ps = append(ps[:maxProblems:maxProblems], newProblem("more", place{}, "", "", rest))
	}
	return ps
}
