package events

import (
	"fmt"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// SignedForm is what signatures of the event are made over, with the signatures
// that it has: the event as redaction leaves it.
// Spec: server-server-api#signing-events
func (e *Event) SignedForm() ([]byte, error) {
	pdu, err := matrix.CanonicalJSON(e.JSON, false)
	if err != nil {
		return nil, fmt.Errorf("signed form of %s: %w", e.ID, err)
	}
	return RedactPDU(pdu, e.Version)
}

// Signature is a server's signature with one of its keys, "" if there is none.
func (e *Event) Signature(server matrix.ServerName, keyID string) string {
	sig := gjson.GetBytes(e.JSON, "signatures."+gjson.Escape(string(server))+"."+gjson.Escape(keyID))
	if sig.Type != gjson.String {
		return ""
	}
	return sig.Str
}

// WithSignature returns a copy with one more signature, which it does not check.
// Those that it has stay, also of the same server.
func (e *Event) WithSignature(server matrix.ServerName, keyID, signature string) (*Event, error) {
	pdu, err := matrix.AddSignature(e.JSON, server, keyID, signature)
	if err != nil {
		return nil, fmt.Errorf("adding a signature to %s: %w", e.ID, err)
	}
	p := e.Placed(e.NID, e.Pos, e.Replaces)
	p.JSON = pdu
	return p, nil
}
