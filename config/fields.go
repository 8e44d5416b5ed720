package config

import (
	"reflect"
	"strings"
)

// field is one setting or section of a struct.
type field struct {
	index    int
	key      string
	doc      string
	def      string
	example  string
	required bool
	secret   bool
}

// fieldsOf lists the settings of a struct in the order of the file.
func fieldsOf(t reflect.Type) []field {
	fields := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		fields = append(fields, field{
			index:    i,
			key:      f.Tag.Get("yaml"),
			doc:      f.Tag.Get("doc"),
			def:      f.Tag.Get("default"),
			example:  f.Tag.Get("example"),
			required: f.Tag.Get("required") == "true",
			secret:   f.Type == reflect.TypeFor[Secret]() || f.Tag.Get("secret") == "true",
		})
	}
	return fields
}

// setDefaults fills a struct from its tags; a bad tag is a mistake in the
// source, which the tests of this package find.
func setDefaults(c *Config) { setDefaultsOf(reflect.ValueOf(c).Elem()) }

func setDefaultsOf(v reflect.Value) {
	for _, f := range fieldsOf(v.Type()) {
		fv := v.Field(f.index)
		switch {
		case fv.Kind() == reflect.Struct:
			setDefaultsOf(fv)
		case f.def != "" && fv.Kind() == reflect.Slice:
			fv.Set(reflect.ValueOf(strings.Split(f.def, ",")))
		case f.def != "":
			if message, _ := setText(fv, f.def); message != "" {
				panic("config: default of " + f.key + " is " + message)
			}
		}
	}
}
