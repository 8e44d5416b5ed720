package config

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
)

// Notary is a homeserver whose word on the keys of others is taken.
type Notary struct {
	ServerName string   `yaml:"server_name" required:"true" example:"hq.example.org" doc:"Its name."`
	Keys       []string `yaml:"keys" required:"true" example:"[ed25519:a_Xy Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw]" doc:"Its keys, one of which must have signed what it says: name and public key in Base64, as its /_matrix/key/v2/server has them below verify_keys."`
}

// PublicKeys are the keys by their names.
func (n Notary) PublicKeys() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, k := range n.Keys {
		name, text, _ := strings.Cut(strings.TrimSpace(k), " ")
		key, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(text), "="))
		if id := strings.TrimPrefix(name, "ed25519:"); id == name || id == "" || err != nil || len(key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("%q is not a key", k)
		}
		out[name] = key
	}
	return out, nil
}

func (f *Federation) checkNotaries(bad report) {
	for i, n := range f.Notaries {
		at := fmt.Sprintf("homeserver.federation.notaries[%d].", i)
		if !serverName.MatchString(n.ServerName) {
			bad(at+"server_name", fmt.Sprintf("%q is not a server name", n.ServerName), "write it as it stands in IDs behind the colon, such as hq.example.org")
		}
		if keys, err := n.PublicKeys(); err != nil {
			bad(at+"keys", err.Error(), "write name and key as the notary's /_matrix/key/v2/server has them, such as \"ed25519:a_Xy Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw\"")
		} else if len(keys) == 0 {
			bad(at+"keys", "there is none", "write at least one of the keys in the notary's /_matrix/key/v2/server")
		}
	}
}
