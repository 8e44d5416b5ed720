package config

import (
	"fmt"
	"io"
	"reflect"
	"strings"
)

//go:generate go run ../cmd/carillon check-config --print-example --output ../carillon.example.yaml
//go:generate go run ../cmd/carillon check-config --print-reference --output ../docs/configuration.md

// WriteExample writes the example file: every setting with its description.
// Settings that have a default are commented out, so the file works as it is.
func WriteExample(w io.Writer) error {
	p := &printer{w: w}
	p.line("# Configuration of Carillon. Three lines are enough: the server name, the data")
	p.line("# folder and the listening address. Every other setting is shown with its default;")
	p.line("# take away the # in front of a key, and of its section, to change it.")
	p.line("#")
	p.line("# Secrets may be written as file:PATH or env:NAME. Check a file before a restart")
	p.line("# with: carillon check-config -c carillon.yaml")
	p.section(reflect.ValueOf(Default()).Elem(), "")
	return p.err
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) section(v reflect.Value, indent string) {
	for _, f := range fieldsOf(v.Type()) {
		fv := v.Field(f.index)
		p.line("")
		for _, l := range wrap(f.doc, 88-len(indent)) {
			p.line("%s# %s", indent, l)
		}
		switch {
		case fv.Kind() == reflect.Struct:
			p.line("%s%s:", indent, f.key)
			p.section(fv, indent+"  ")
		case isList(fv.Type()):
			p.list(fv.Type().Elem(), f.key, indent)
		case f.required:
			p.line("%s%s: %s", indent, f.key, f.example)
		default:
			p.line("%s#%s: %s", indent, f.key, show(fv))
		}
	}
}

// list shows a list of sections by one entry of it, which stays a comment.
func (p *printer) list(t reflect.Type, key, indent string) {
	p.line("%s#%s: []", indent, key)
	p.line("%s# An entry:", indent)
	entry := reflect.New(t).Elem()
	setDefaultsOf(entry)
	dash := "- "
	for _, f := range fieldsOf(t) {
		for _, l := range wrap(f.doc, 80-len(indent)) {
			p.line("%s#     # %s", indent, l)
		}
		value := show(entry.Field(f.index))
		if f.example != "" {
			value = f.example
		}
		p.line("%s#   %s%s: %s", indent, dash, f.key, value)
		dash = "  "
	}
}

// show writes a default as it would stand in the file.
func show(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case []string:
		return "[" + strings.Join(x, ", ") + "]"
	case Secret:
		return `""`
	case string:
		if x == "" || strings.ContainsAny(x, ":#{}[]") || strings.Trim(x, "0123456789.") == "" {
			return fmt.Sprintf("%q", x)
		}
		return x
	default:
		return fmt.Sprint(x)
	}
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// WriteReference writes the page docs/configuration.md.
func WriteReference(w io.Writer) error {
	p := &printer{w: w}
	p.line("# Configuration")
	p.line("")
	p.line("<!-- Made from the struct in config/config.go: change it there, then run `go generate ./config`. -->")
	p.line("")
	p.line("One YAML file. These three lines are a whole configuration:")
	p.line("")
	p.line("```yaml")
	for _, f := range fieldsOf(reflect.TypeFor[Config]()) {
		if f.required {
			p.line("%s: %s", f.key, f.example)
		}
	}
	p.line("```")
	p.line("")
	p.line("[carillon.example.yaml](../carillon.example.yaml) holds every setting with its default. `carillon check-config -c FILE` explains what is wrong in a file and what to write instead; it ends with 2 if there is something. An unknown key is an error.")
	p.line("")
	p.line("Settings marked *secret* may be written as `file:PATH` (the content of a file) or `env:NAME` (a variable of the environment), so that the file itself need not be kept secret.")
	p.line("")
	p.line("Time spans are written like `90s`, `15m` or `24h`, sizes like `4096` or `100MiB`.")
	p.reference(2, "", "At the top", "", reflect.ValueOf(Default()).Elem())
	return p.err
}

// reference writes one section of the page and those below it.
func (p *printer) reference(level int, path, title, doc string, v reflect.Value) {
	p.line("")
	p.line("%s %s", strings.Repeat("#", level), title)
	if doc != "" {
		p.line("")
		p.line("%s", doc)
	}
	fields := fieldsOf(v.Type())
	head := false
	for _, f := range fields {
		fv := v.Field(f.index)
		if fv.Kind() == reflect.Struct || isList(fv.Type()) {
			continue
		}
		if !head {
			p.line("")
			p.line("| setting | default | meaning |")
			p.line("| --- | --- | --- |")
			head = true
		}
		def := "`" + show(fv) + "`"
		if f.required {
			def = "*required*"
		}
		text := f.doc
		if f.secret {
			text += " *Secret.*"
		}
		p.line("| `%s` | %s | %s |", f.key, def, strings.ReplaceAll(text, "|", "\\|"))
	}
	for _, f := range fields {
		if fv := v.Field(f.index); fv.Kind() == reflect.Struct {
			full := join(path, f.key)
			p.reference(2+strings.Count(full, "."), full, "`"+full+"`", f.doc, fv)
		} else if isList(fv.Type()) {
			full := join(path, f.key)
			entry := reflect.New(fv.Type().Elem()).Elem()
			setDefaultsOf(entry)
			p.reference(2+strings.Count(full, "."), full, "`"+full+"`", f.doc, entry)
		}
	}
}
