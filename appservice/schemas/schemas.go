// Package schemas holds the JSON schemas of the im.carillon.* events and checks contents against them. The files are
// also what client authors read. It owns no tables.
package schemas

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

//go:embed data/*.json
var files embed.FS

// Set is all schemas, compiled.
type Set struct {
	byType map[string]*jsonschema.Schema
}

// Load compiles the schemas.
func Load() (*Set, error) {
	names, err := fs.Glob(files, "data/*.json")
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	for _, name := range names {
		b, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("schema %s: %w", name, err)
		}
		if err := c.AddResource(name, doc); err != nil {
			return nil, fmt.Errorf("schema %s: %w", name, err)
		}
	}
	s := &Set{byType: map[string]*jsonschema.Schema{}}
	for _, name := range names {
		sch, err := c.Compile(name)
		if err != nil {
			return nil, fmt.Errorf("schema %s: %w", name, err)
		}
		s.byType[strings.TrimSuffix(path.Base(name), ".json")] = sch
	}
	return s, nil
}

// Types are the names of all schemas.
func (s *Set) Types() []string {
	types := make([]string, 0, len(s.byType))
	for t := range s.byType {
		types = append(types, t)
	}
	slices.Sort(types)
	return types
}

// JSON is the text of a schema, nil if there is none of that name.
func (s *Set) JSON(typ string) []byte {
	if s.byType[typ] == nil {
		return nil
	}
	b, err := files.ReadFile("data/" + typ + ".json")
	if err != nil { // it was read when it was compiled
		return nil
	}
	return b
}

// Validate checks a content against the schema of its type. What does not fit is M_BAD_JSON with the place.
func (s *Set) Validate(typ string, content []byte) error {
	sch := s.byType[typ]
	if sch == nil {
		return fmt.Errorf("no schema is called %s", typ)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
	if err != nil {
		return matrix.NotJSON("not valid JSON")
	}
	err = sch.Validate(doc)
	var bad *jsonschema.ValidationError
	if errors.As(err, &bad) {
		for len(bad.Causes) > 0 {
			bad = bad.Causes[0]
		}
		where := strings.Join(bad.InstanceLocation, ".")
		if where == "" {
			where = "the object"
		}
		return matrix.BadJSON("%s: %s", where, bad.ErrorKind.LocalizedString(message.NewPrinter(language.English)))
	}
	return err
}
