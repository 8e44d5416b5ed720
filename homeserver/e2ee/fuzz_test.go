package e2ee

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// FuzzKeys reads what clients upload as keys: of a device, for one time, for
// cross-signing and into a backup.
func FuzzKeys(f *testing.F) {
	const user = matrix.UserID("@alice:a.example")
	for _, s := range []string{
		`{"device_keys":{"user_id":"@alice:a.example","device_id":"D","algorithms":["a"],"keys":{"ed25519:D":"x"},"signatures":{"@alice:a.example":{"ed25519:D":"x"}},"unsigned":{}}}`,
		`{"one_time_keys":{"signed_curve25519:1":{"key":"x","signatures":{}},"curve25519:2":"y"}}`,
		`{"master_key":{"user_id":"@alice:a.example","usage":["master"],"keys":{"ed25519:nqOvzeuGWT/sRx3h7+MHoInYj3Uk2LD/unI9kDYcHwk":"nqOvzeuGWT/sRx3h7+MHoInYj3Uk2LD/unI9kDYcHwk"}}}`,
		`{"rooms":{"!a:b":{"sessions":{"s":{"first_message_index":1,"forwarded_count":0,"is_verified":true,"session_data":{}}}}}}`,
		`{"device_keys":null,"one_time_keys":{"a:b":[]},"master_key":7}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var b struct {
			Device json.RawMessage            `json:"device_keys"`
			One    map[string]json.RawMessage `json:"one_time_keys"`
			crossBody
			backedRooms
		}
		if httpapi.Decode(raw, &b) != nil {
			return
		}
		if stored, err := parseDeviceKeys(b.Device, user, "D"); err == nil {
			if !json.Valid(stored) || gjson.GetBytes(stored, "unsigned").Exists() || gjson.GetBytes(stored, "user_id").Str != string(user) {
				t.Errorf("%s is stored as %s", b.Device, stored)
			}
			for by := range gjson.GetBytes(stored, "signatures").Map() {
				if by != string(user) {
					t.Errorf("a signature by %q is stored", by)
				}
			}
		}
		if keys, err := parseOneKeys(b.One); err == nil {
			for _, k := range keys {
				if k.algorithm == "" || k.id == "" || !json.Valid([]byte(k.key)) || strings.ContainsRune(k.id, 0) {
					t.Errorf("a key is stored as %+v", k)
				}
			}
		}
		if cross, err := b.crossBody.parse(user); err == nil {
			for usage, k := range cross {
				if k.user != user || k.usage != usage || publicKey([]byte(k.keys)) != k.public {
					t.Errorf("the %s key is stored as %+v", usage, k)
				}
			}
		}
		for _, r := range b.Rooms {
			if r == nil {
				continue
			}
			for _, k := range r.Sessions {
				if k != nil {
					_ = k.check()
				}
			}
		}
	})
}
