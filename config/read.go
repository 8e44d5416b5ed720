package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds the configuration file.
const maxFile = 1 << 20

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	Line    int    // 0: not about one line
	Field   string // homeserver.media.dir
	Message string // what is wrong
	Mend    string // what to write instead
}

// Problems is everything that is wrong with the configuration; an error.
type Problems []Problem

// Error lists the problems, one a line.
func (p Problems) Error() string {
	var b strings.Builder
	for i, one := range p {
		if i > 0 {
			b.WriteByte('\n')
		}
		if one.Line > 0 {
			fmt.Fprintf(&b, "line %d: ", one.Line)
		}
		if one.Field != "" {
			b.WriteString(one.Field + ": ")
		}
		b.WriteString(one.Message)
		if one.Mend != "" {
			b.WriteString("; " + one.Mend)
		}
	}
	return b.String()
}

// Load reads and checks a file, or standard input for "-". What is wrong is reported as Problems.
func Load(path string) (*Config, error) {
	if path == "-" {
		return Read(os.Stdin)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	return Read(f)
}

// Read reads and checks a configuration. What is wrong is reported as Problems.
func Read(r io.Reader) (*Config, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if len(b) > maxFile {
		return nil, Problems{{Message: "the file is larger than 1 MiB", Mend: "check that it is the configuration"}}
	}
	c := Default()
	rd := reader{lines: map[string]int{}}
	rd.file(b, c)
	if len(rd.problems) > 0 {
		return nil, rd.problems
	}
	rd.resolve(reflect.ValueOf(c).Elem(), "")
	c.check(rd.problem)
	if len(rd.problems) > 0 {
		return nil, rd.problems
	}
	return c, nil
}

// reader walks the file beside the struct.
type reader struct {
	lines    map[string]int // of each field that the file sets
	problems Problems
}

func (r *reader) problem(field, message, mend string) {
	r.problems = append(r.problems, Problem{r.lines[field], field, message, mend})
}

func (r *reader) file(b []byte, c *Config) {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	f, err := parser.ParseBytes(b, 0)
	if err != nil {
		line := 0
		var located yaml.Error
		message := err.Error()
		if errors.As(err, &located) {
			message = located.GetMessage()
			if t := located.GetToken(); t != nil {
				line = t.Position.Line
			}
		}
		r.problems = append(r.problems, Problem{Line: line, Message: "this is not YAML: " + message, Mend: "check the indentation, quotes and colons there"})
		return
	}
	switch len(f.Docs) {
	case 0:
	case 1:
		r.section(f.Docs[0].Body, reflect.ValueOf(c).Elem(), "")
	default:
		r.problems = append(r.problems, Problem{Message: "the file holds several documents", Mend: "remove the lines ---"})
	}
}

// section reads a mapping into a struct.
func (r *reader) section(n ast.Node, v reflect.Value, path string) {
	var entries []*ast.MappingValueNode
	switch n := n.(type) {
	case nil, *ast.NullNode, *ast.CommentGroupNode:
		return
	case *ast.MappingNode:
		entries = n.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{n}
	default:
		r.at(n, path, "settings are needed here, not a value", `write "key: value" lines, indented, below it`)
		return
	}
	fields := fieldsOf(v.Type())
	for _, e := range entries {
		key := strings.Trim(e.Key.String(), `"'`)
		full := join(path, key)
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		if i < 0 {
			r.at(e.Key, full, "there is no such setting", unknownMend(path, key, fields))
			continue
		}
		if _, twice := r.lines[full]; twice {
			r.at(e.Key, full, "it is set twice", "remove one of them")
			continue
		}
		r.lines[full] = e.Key.GetToken().Position.Line
		fv := v.Field(fields[i].index)
		if fv.Kind() == reflect.Struct {
			r.section(e.Value, fv, full)
			continue
		}
		if isList(fv.Type()) {
			r.list(e.Value, fv, full)
			continue
		}
		r.value(e.Value, fv, full)
	}
}

// isList says whether a setting is a list of sections.
func isList(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct
}

// list reads a list of sections.
func (r *reader) list(n ast.Node, v reflect.Value, path string) {
	if n == nil || n.Type() == ast.NullType {
		return
	}
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		r.at(n, path, "a list of sections is needed", `begin each with "- ", indented`)
		return
	}
	for i, item := range seq.Values {
		entry := reflect.New(v.Type().Elem()).Elem()
		setDefaultsOf(entry)
		full := fmt.Sprintf("%s[%d]", path, i)
		r.lines[full] = item.GetToken().Position.Line
		r.section(item, entry, full)
		v.Set(reflect.Append(v, entry))
	}
}

// value reads one setting. A null leaves the default.
func (r *reader) value(n ast.Node, v reflect.Value, path string) {
	if n == nil || n.Type() == ast.NullType {
		return
	}
	text, isScalar := scalar(n)
	if v.Type() == reflect.TypeFor[[]string]() {
		list, ok := []string{text}, isScalar
		if seq, isList := n.(*ast.SequenceNode); isList {
			list, ok = make([]string, len(seq.Values)), true
			for i, item := range seq.Values {
				s, isScalar := scalar(item)
				list[i], ok = s, ok && isScalar
			}
		}
		if !ok {
			r.at(n, path, "a list is needed", `write [first, second], or one "- value" a line`)
			return
		}
		v.Set(reflect.ValueOf(list))
		return
	}
	if !isScalar {
		r.at(n, path, "one value is needed, not a list or a section", "write it behind the colon")
		return
	}
	if message, mend := setText(v, text); message != "" {
		r.at(n, path, fmt.Sprintf("%q is %s", text, message), mend)
	}
}

// scalar is the text of a single value. Tags and anchors are not values here.
func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return strings.TrimSpace(n.Value.Value), true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// setText sets a setting that has one value from its text.
func setText(v reflect.Value, text string) (message, mend string) {
	switch v.Interface().(type) {
	case Duration:
		d, err := parseDuration(text)
		if err != nil || d < 0 {
			return "not a time span", "write a number and a unit, such as 90s, 15m, 24h or 90d"
		}
		v.SetInt(int64(d))
		return "", ""
	case Rate:
		if _, _, err := parseRate(text); err != nil {
			return "not a rate", "write how many in s, min or h, and how many at once, such as 10/s burst 100"
		}
		v.SetString(text)
		return "", ""
	case Size:
		s, err := ParseSize(text)
		if err != nil {
			return "not a size", "write a number of bytes, or one with a unit, such as 100MiB"
		}
		v.SetInt(int64(s))
		return "", ""
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		switch text {
		case "true":
			v.SetBool(true)
		case "false":
			v.SetBool(false)
		default:
			return "neither true nor false", "write true or false"
		}
	case reflect.Int:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return "not a whole number", "write digits only"
		}
		v.SetInt(n)
	case reflect.Float64:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || n != n || n > 1e12 || n < -1e12 {
			return "not a number", "write a number such as 0.5"
		}
		v.SetFloat(n)
	default:
		return "of a kind that cannot be read", ""
	}
	return "", ""
}

func (r *reader) at(n ast.Node, field, message, mend string) {
	p := Problem{Field: field, Message: message, Mend: mend}
	if n != nil && n.GetToken() != nil {
		p.Line = n.GetToken().Position.Line
	}
	r.problems = append(r.problems, p)
}

// resolve follows file: and env: of the secrets.
func (r *reader) resolve(v reflect.Value, path string) {
	for _, f := range fieldsOf(v.Type()) {
		fv := v.Field(f.index)
		full := join(path, f.key)
		if fv.Kind() == reflect.Struct {
			r.resolve(fv, full)
			continue
		}
		if isList(fv.Type()) {
			for i := range fv.Len() {
				r.resolve(fv.Index(i), fmt.Sprintf("%s[%d]", full, i))
			}
			continue
		}
		if !f.secret || fv.String() == "" {
			continue
		}
		s, err := resolveSecret(fv.String())
		if err != nil {
			r.problem(full, err.Error(), "write file:PATH, env:NAME or the value itself")
			continue
		}
		fv.SetString(s)
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// unknownMend says which setting was perhaps meant.
func unknownMend(path, key string, fields []field) string {
	best, bestDist := "", 1+len(key)/3
	for _, f := range fields {
		if d := distance(key, f.key); d <= bestDist {
			best, bestDist = f.key, d
		}
	}
	if best != "" {
		return "did you mean " + join(path, best) + "?"
	}
	if where := findKey(reflect.TypeFor[Config](), "", key); where != "" {
		return "did you mean " + where + "?"
	}
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
	}
	return "possible here: " + strings.Join(keys, ", ")
}

// findKey looks for a setting of that name in any section.
func findKey(t reflect.Type, path, key string) string {
	for _, f := range fieldsOf(t) {
		full := join(path, f.key)
		if f.key == key {
			return full
		}
		if ft := t.Field(f.index).Type; ft.Kind() == reflect.Struct {
			if found := findKey(ft, full, key); found != "" {
				return found
			}
		}
	}
	return ""
}

// distance is the number of letters to change, add or remove between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last = row[j+1]
			row[j+1] = min(cost, row[j]+1, last+1)
		}
	}
	return row[len(b)]
}
