package e2ee

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// object is a JSON object whose values are kept as they came.
type object map[string]json.RawMessage

func parseObject(b []byte) (object, error) {
	var o object
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, err
	}
	if o == nil {
		return nil, errors.New("not a JSON object")
	}
	return o, nil
}

// signable is the object in the form that signatures are made over: canonical, without signatures and unsigned.
//
// Spec: appendices#signing-json
func (o object) signable() ([]byte, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	return matrix.CanonicalObject(b, true, "signatures", "unsigned")
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
