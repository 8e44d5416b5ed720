package matrix

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// maxDepth bounds how deep JSON from outside may nest.
const maxDepth = 512

// maxInteger is the largest integer that canonical JSON allows, and the smallest
// one negated.
const maxInteger = 1<<53 - 1

// CanonicalJSON writes a JSON value in canonical form: keys sorted by code
// point, no insignificant space, the shortest escapes. Numbers that are no
// integers within ±(2^53−1) are an error when strict (room version 6 on, and
// everything that is signed) and left as they are otherwise. Of keys that occur
// twice the last one counts, as readers take it.
//
// Spec: appendices#canonical-json
func CanonicalJSON(raw []byte, strict bool) ([]byte, error) {
	if !gjson.ValidBytes(raw) {
		return nil, errors.New("not valid JSON")
	}
	if !utf8.Valid(raw) {
		return nil, errors.New("not valid UTF-8")
	}
	return appendCanonical(make([]byte, 0, len(raw)), gjson.ParseBytes(raw), strict, 0)
}

// CanonicalObject is CanonicalJSON of an object without some of its keys.
func CanonicalObject(raw []byte, strict bool, without ...string) ([]byte, error) {
	if !gjson.ValidBytes(raw) || !utf8.Valid(raw) {
		return nil, errors.New("not valid JSON")
	}
	v := gjson.ParseBytes(raw)
	if !v.IsObject() {
		return nil, errors.New("not a JSON object")
	}
	return appendObject(make([]byte, 0, len(raw)), v, strict, 0, without...)
}

// AddSignature adds a signature, in unpadded Base64, to an object that is in
// canonical form.
//
// Spec: appendices#signing-json
func AddSignature(object []byte, server ServerName, keyID, signature string) ([]byte, error) {
	var all map[string]map[string]json.RawMessage
	if old := gjson.GetBytes(object, "signatures"); old.Exists() {
		if err := json.Unmarshal([]byte(old.Raw), &all); err != nil {
			return nil, fmt.Errorf("reading the signatures: %w", err)
		}
	}
	if all == nil {
		all = map[string]map[string]json.RawMessage{}
	}
	if all[string(server)] == nil {
		all[string(server)] = map[string]json.RawMessage{}
	}
	all[string(server)][keyID] = AppendJSONString(nil, signature)
	sigs, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("writing the signatures: %w", err)
	}
	rest, err := CanonicalObject(object, false, "signatures")
	if err != nil {
		return nil, err
	}
	out := append(make([]byte, 0, len(rest)+len(sigs)+16), `{"signatures":`...)
	out = append(out, sigs...)
	if len(rest) > 2 {
		out = append(out, ',')
	}
	return CanonicalJSON(append(out, rest[1:]...), false)
}

func appendCanonical(b []byte, v gjson.Result, strict bool, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	var err error
	switch {
	case v.Type == gjson.String:
		return AppendJSONString(b, v.Str), nil
	case v.Type == gjson.Number:
		return appendNumber(b, v.Raw, strict)
	case v.IsObject():
		return appendObject(b, v, strict, depth)
	case v.IsArray():
		b = append(b, '[')
		first := true
		v.ForEach(func(_, e gjson.Result) bool {
			if !first {
				b = append(b, ',')
			}
			first = false
			b, err = appendCanonical(b, e, strict, depth+1)
			return err == nil
		})
		return append(b, ']'), err
	}
	return append(b, v.Raw...), nil // true, false, null
}

func appendObject(b []byte, v gjson.Result, strict bool, depth int, without ...string) ([]byte, error) {
	type entry struct {
		key   string
		value gjson.Result
	}
	var few [24]entry
	entries := few[:0]
	v.ForEach(func(k, e gjson.Result) bool {
		if !slices.Contains(without, k.Str) {
			entries = append(entries, entry{k.Str, e})
		}
		return true
	})
	slices.SortStableFunc(entries, func(x, y entry) int { return strings.Compare(x.key, y.key) })
	var err error
	b = append(b, '{')
	first := true
	for i, e := range entries {
		if i+1 < len(entries) && entries[i+1].key == e.key {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(AppendJSONString(b, e.key), ':')
		if b, err = appendCanonical(b, e.value, strict, depth+1); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendNumber(b []byte, raw string, strict bool) ([]byte, error) {
	if n, err := strconv.ParseInt(raw, 10, 64); err == nil {
		if strict && (n > maxInteger || n < -maxInteger) {
			return nil, fmt.Errorf("the number %s is out of range", raw)
		}
		return strconv.AppendInt(b, n, 10), nil
	}
	if strict {
		return nil, fmt.Errorf("%s is not an integer", raw)
	}
	if f, err := strconv.ParseFloat(raw, 64); err == nil && f == math.Trunc(f) && math.Abs(f) <= maxInteger {
		return strconv.AppendInt(b, int64(f), 10), nil
	}
	return append(b, raw...), nil
}

// AppendJSONString appends s as a JSON string with the escapes of canonical
// JSON and no others. Invalid UTF-8 becomes U+FFFD.
func AppendJSONString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		start = i + 1
	}
	return append(append(dst, s[start:]...), '"')
}
