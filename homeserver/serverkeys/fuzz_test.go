package serverkeys

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// FuzzKeyList reads what other servers say that their keys are.
func FuzzKeyList(f *testing.F) {
	own, err := Load(f.TempDir(), "a.example")
	if err != nil {
		f.Fatal(err)
	}
	list, err := own.published(time.Unix(1_700_000_000, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(list)
	f.Add([]byte(`{"server_name":"a.example","valid_until_ts":1,"verify_keys":{"ed25519:x":{"key":""}},"signatures":{"a.example":{"ed25519:x":""}}}`))
	f.Add([]byte(`{"server_name":"a.example","verify_keys":[],"signatures":1,"valid_until_ts":1e99}`))
	f.Add([]byte(`{"signatures":{"a.example":{"ed25519:x":"AA","ed25519:x":"BB"}},"signatures":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		keys, err := checked("a.example", raw)
		if err != nil {
			return
		}
		if len(keys.VerifyKeys) == 0 || !json.Valid(raw) {
			t.Errorf("accepted: %q", raw)
		}
		for id, k := range keys.VerifyKeys {
			if len(k.Key) != 32 && len(id) > 8 && id[:8] == "ed25519:" {
				t.Errorf("a key of %d bytes is accepted: %q", len(k.Key), raw)
			}
		}
		if matrix.ServerName(keys.ServerName) != "a.example" {
			t.Errorf("the list of %s is accepted", keys.ServerName)
		}
	})
}
