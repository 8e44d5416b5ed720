package oauth_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/oauth"
)

// crossKeys is an upload of cross-signing keys made from a seed.
func crossKeys(user string, seed byte) map[string]any {
	key := func(n byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed*3 + n}, 32)) }
	master := key(0)
	id := func(k ed25519.PrivateKey) string {
		return base64.RawStdEncoding.EncodeToString(k.Public().(ed25519.PublicKey))
	}
	part := func(usage string, k ed25519.PrivateKey) map[string]any {
		m := map[string]any{"user_id": user, "usage": []string{usage}, "keys": map[string]string{"ed25519:" + id(k): id(k)}}
		if usage != "master" {
			b, _ := json.Marshal(m) // sorted keys: canonical for these values
			m["signatures"] = map[string]any{user: map[string]string{
				"ed25519:" + id(master): base64.RawStdEncoding.EncodeToString(ed25519.Sign(master, b)),
			}}
		}
		return m
	}
	return map[string]any{
		"master_key": part("master", master), "self_signing_key": part("self_signing", key(1)), "user_signing_key": part("user_signing", key(2)),
	}
}

func FuzzClientMetadata(f *testing.F) {
	f.Add([]byte(`{"client_uri":"https://c.example","redirect_uris":["https://c.example/x"],"client_name#zh":"x"}`))
	f.Add([]byte(`{"client_uri":"https://c.example","application_type":"native","redirect_uris":["example.c:/x","http://[::1]/"]}`))
	f.Fuzz(func(t *testing.T, b []byte) { oauth.TryClient(t, b) })
}

func FuzzRedirect(f *testing.F) {
	f.Add("https://c.example/cb?x=y", "https://c.example/cb?x=y", true)
	f.Add("http://127.0.0.1/cb", "http://127.0.0.1:99/cb", false)
	f.Add("example.c:/cb", "example.c:/cb", true)
	f.Fuzz(func(t *testing.T, registered, given string, fragment bool) {
		oauth.TryRedirect(t, registered, given, fragment)
	})
}

func FuzzScope(f *testing.F) {
	f.Add("openid urn:matrix:client:api:* urn:matrix:client:device:X")
	f.Fuzz(func(t *testing.T, s string) { oauth.TryScope(t, s) })
}

func FuzzUserCode(f *testing.F) {
	f.Add("bcdf-ghjk")
	f.Fuzz(func(t *testing.T, s string) { oauth.TryUserCode(t, s) })
}
