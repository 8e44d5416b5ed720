package relations

import (
	"encoding/json"
	"testing"
)

// FuzzClaimed reads what other servers say of the children of events.
func FuzzClaimed(f *testing.F) {
	for _, s := range []string{
		`{"unsigned":{"children":{"m.reference":2,"x":1},"children_hash":"a"}}`, `{"unsigned":{"children":{"m.reference":-1}}}`, `{"unsigned":{"children":[]}}`,
		`{"unsigned":1}`, `{}`, `{"unsigned":{"children":{"a":1e400}}}`, `{"unsigned":{"children":{"a":9007199254740991}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !json.Valid(raw) {
			return
		}
		total, children := claimed(raw)
		if total < 0 || total > mostTypes<<30 {
			t.Errorf("%d children", total)
		}
		if total > 0 && !json.Valid(children) {
			t.Errorf("%q", children)
		}
	})
}
