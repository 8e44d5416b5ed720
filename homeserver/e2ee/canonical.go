package e2ee

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
)

// errNotCanonical is returned for JSON that cannot be signed, such as one with fractions.
var errNotCanonical = errors.New("the JSON cannot be signed")

// object is a JSON object whose values are kept as they came.
type object map[string]json.RawMessage

func parseObject(b []byte) (object, error) {
	var o object
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, err
	}
	if o == nil {
		return nil, errNotCanonical
	}
	return o, nil
}

// signable is the object in the form that signatures are made over: canonical, without signatures and unsigned.
//
// Spec: appendices#signing-json
func (o object) signable() ([]byte, error) {
	rest := make(object, len(o))
	for name, v := range o {
		if name != "signatures" && name != "unsigned" {
			rest[name] = v
		}
	}
	b, err := json.Marshal(rest)
	if err != nil {
		return nil, err
	}
	return canonical(b)
}

// signatures of the object by user and key ID. Malformed ones are left out.
func (o object) signatures() map[string]map[string]string {
	var all map[string]map[string]string
	if json.Unmarshal(o["signatures"], &all) != nil {
		return nil
	}
	return all
}

// keyMap is the object's "keys".
func (o object) keyMap() map[string]string {
	var m map[string]string
	if json.Unmarshal(o["keys"], &m) != nil {
		return nil
	}
	return m
}

// canonical rewrites JSON in the form of the specification.
//
// Spec: appendices#canonical-json
func canonical(b []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	return appendCanonical(make([]byte, 0, len(b)), v)
}

func appendCanonical(dst []byte, v any) ([]byte, error) {
	var err error
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...), nil
	case bool:
		return strconv.AppendBool(dst, v), nil
	case string:
		return appendString(dst, v), nil
	case json.Number:
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil || n > 1<<53-1 || n < -(1<<53-1) {
			return nil, errNotCanonical
		}
		return strconv.AppendInt(dst, n, 10), nil
	case []any:
		dst = append(dst, '[')
		for i, e := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			if dst, err = appendCanonical(dst, e); err != nil {
				return nil, err
			}
		}
		return append(dst, ']'), nil
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		slices.Sort(names) // the order of UTF-8 bytes is that of code points
		dst = append(dst, '{')
		for i, name := range names {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendString(dst, name), ':')
			if dst, err = appendCanonical(dst, v[name]); err != nil {
				return nil, err
			}
		}
		return append(dst, '}'), nil
	}
	return nil, errNotCanonical
}

func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\b':
			dst = append(dst, '\\', 'b')
		case c == '\f':
			dst = append(dst, '\\', 'f')
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

// decodeBase64 reads unpadded Base64; padding is forgiven.
func decodeBase64(s string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
}

// verify checks an Ed25519 signature over an object.
func verify(o object, publicKey, signature string) bool {
	key, err := decodeBase64(publicKey)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return false
	}
	sig, err := decodeBase64(signature)
	if err != nil || len(sig) != ed25519.SignatureSize {
		return false
	}
	msg, err := o.signable()
	return err == nil && ed25519.Verify(key, msg, sig)
}
