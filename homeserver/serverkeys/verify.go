package serverkeys

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"
)

type (
	keyRef  = gomatrixserverlib.PublicKeyLookupRequest
	keyInfo = gomatrixserverlib.PublicKeyLookupResult
)

// signature is one signature of a server on a message.
type signature struct {
	key keyRef
	sig []byte
}

// message is JSON taken apart: what is signed, and the signatures of one server.
type message struct {
	body []byte
	sigs []signature
}

var (
	_ gomatrixserverlib.JSONVerifier = (*Ring)(nil)

	errNotSigned = errors.New("no signature with a supported algorithm")
)

// signedPart is what signatures of a JSON object are made over.
//
// Spec: appendices#signing-json
func signedPart(object []byte) ([]byte, error) {
	return matrix.CanonicalObject(object, false, "signatures", "unsigned")
}

// signatures lists those of a server that can be checked. Of keys that occur
// twice the last one counts, as in the canonical form.
//
// Spec: appendices#checking-for-a-signature
func signatures(object []byte, server spec.ServerName) []signature {
	last := func(v gjson.Result, key string) (found gjson.Result) {
		if v.IsObject() {
			v.ForEach(func(k, e gjson.Result) bool {
				if k.Str == key {
					found = e
				}
				return true
			})
		}
		return found
	}
	byKey := map[gomatrixserverlib.KeyID]string{}
	if of := last(last(gjson.ParseBytes(object), "signatures"), string(server)); of.IsObject() {
		of.ForEach(func(k, v gjson.Result) bool {
			if strings.HasPrefix(k.Str, "ed25519:") && v.Type == gjson.String {
				byKey[gomatrixserverlib.KeyID(k.Str)] = v.Str
			}
			return true
		})
	}
	var out []signature
	for id, s := range byKey {
		if sig, ok := decode(s); ok && len(sig) == ed25519.SignatureSize {
			out = append(out, signature{keyRef{ServerName: server, KeyID: id}, sig})
		}
	}
	return out
}

// decode reads Base64 of either alphabet; padding is forgiven.
func decode(s string) ([]byte, bool) {
	s = strings.TrimRight(s, "=")
	enc := base64.RawStdEncoding
	if strings.ContainsAny(s, "-_") {
		enc = base64.RawURLEncoding
	}
	b, err := enc.DecodeString(s)
	return b, err == nil
}

// VerifyWith checks that a server signed a JSON object with the key given.
func VerifyWith(server matrix.ServerName, id gomatrixserverlib.KeyID, public ed25519.PublicKey, object []byte) error {
	body, err := signedPart(object)
	if err != nil {
		return fmt.Errorf("reading a signed object: %w", err)
	}
	for _, s := range signatures(object, spec.ServerName(server)) {
		if s.key.KeyID == id && len(public) == ed25519.PublicKeySize && ed25519.Verify(public, body, s.sig) {
			return nil
		}
	}
	return fmt.Errorf("no good signature of %s with %s", server, id)
}

// VerifyJSONs checks that each message has a signature of its server with a key
// that was valid at its time, by the rule of its room version. Keys that are not
// known, or have run out, are fetched, once for all messages; where that fails the
// error is a *matrix.KeyError.
//
// Spec: server-server-api#retrieving-server-keys
func (r *Ring) VerifyJSONs(ctx context.Context, reqs []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	results := make([]gomatrixserverlib.VerifyJSONResult, len(reqs))
	messages := make([]message, len(reqs))
	wanted := map[keyRef]struct{}{}
	for i, q := range reqs {
		if messages[i], results[i].Error = takeApart(q, i, reqs, messages); results[i].Error == nil {
			results[i].Error = fmt.Errorf("no key of %s is known", q.ServerName) // until one is
		}
		for _, s := range messages[i].sigs {
			wanted[s.key] = struct{}{}
		}
	}
	if len(wanted) == 0 {
		return results, nil
	}
	keys, err := r.known(ctx, wanted)
	if err != nil {
		return nil, err
	}
	if missing := r.check(reqs, messages, keys, results); len(missing) > 0 {
		for ref, key := range r.fetchKeys(ctx, missing) {
			keys[ref] = key
		}
		r.unanswered(reqs, messages, r.check(reqs, messages, keys, results), results)
	}
	return results, nil
}

// unanswered marks the messages that a key could have proved for which its server was
// asked in vain.
func (r *Ring) unanswered(reqs []gomatrixserverlib.VerifyJSONRequest, messages []message, missing map[keyRef]struct{}, results []gomatrixserverlib.VerifyJSONResult) {
	for i, m := range messages {
		if results[i].Error == nil {
			continue
		}
		for _, s := range m.sigs {
			if _, ok := missing[s.key]; ok && !r.answers(matrix.ServerName(reqs[i].ServerName)) {
				results[i].Error = &matrix.KeyError{Server: matrix.ServerName(reqs[i].ServerName), Why: results[i].Error}
				break
			}
		}
	}
}

// takeApart reads one message; several servers' signatures on the same message
// share its signed part.
func takeApart(q gomatrixserverlib.VerifyJSONRequest, i int, reqs []gomatrixserverlib.VerifyJSONRequest, done []message) (message, error) {
	m := message{sigs: signatures(q.Message, q.ServerName)}
	if len(m.sigs) == 0 {
		return message{}, fmt.Errorf("%s: %w", q.ServerName, errNotSigned)
	}
	if i > 0 && done[i-1].body != nil && bytes.Equal(reqs[i-1].Message, q.Message) {
		m.body = done[i-1].body
		return m, nil
	}
	var err error
	if m.body, err = signedPart(q.Message); err != nil {
		return message{}, fmt.Errorf("reading a signed object: %w", err)
	}
	return m, nil
}

// check verifies the messages that are not verified yet, with the keys at hand,
// and returns the keys that could still help: unknown ones, and such as have run
// out without being replaced.
func (r *Ring) check(reqs []gomatrixserverlib.VerifyJSONRequest, messages []message, keys map[keyRef]keyInfo, results []gomatrixserverlib.VerifyJSONResult) map[keyRef]struct{} {
	missing := map[keyRef]struct{}{}
	now := spec.AsTimestamp(r.opts.Now())
	for i, m := range messages {
		if m.body == nil || results[i].Error == nil {
			continue
		}
		var lacks []keyRef
		for _, s := range m.sigs {
			key, ok := keys[s.key]
			if ok {
				if results[i].Error = s.verify(key, m.body, reqs[i]); results[i].Error == nil {
					lacks = nil
					break
				}
			}
			if !ok || key.ExpiredTS == gomatrixserverlib.PublicKeyNotExpired && key.ValidUntilTS <= now {
				lacks = append(lacks, s.key)
			}
		}
		for _, ref := range lacks {
			missing[ref] = struct{}{}
		}
	}
	return missing
}

func (s signature) verify(key keyInfo, body []byte, q gomatrixserverlib.VerifyJSONRequest) error {
	if !key.WasValidAt(q.AtTS, q.ValidityCheckingFunc) {
		return fmt.Errorf("the key %s of %s was not valid at %d", s.key.KeyID, s.key.ServerName, q.AtTS)
	}
	if len(key.Key) != ed25519.PublicKeySize || !ed25519.Verify(ed25519.PublicKey(key.Key), body, s.sig) {
		return fmt.Errorf("bad signature of %s with %s", s.key.ServerName, s.key.KeyID)
	}
	return nil
}

// VerifyJSON checks that server signed the message with a key valid now.
func (r *Ring) VerifyJSON(ctx context.Context, server matrix.ServerName, message []byte) error {
	res, err := r.VerifyJSONs(ctx, []gomatrixserverlib.VerifyJSONRequest{{
		ServerName:           spec.ServerName(server),
		AtTS:                 spec.AsTimestamp(r.opts.Now()),
		Message:              message,
		ValidityCheckingFunc: gomatrixserverlib.StrictValiditySignatureCheck,
	}})
	if err != nil {
		return fmt.Errorf("verifying a signature of %s: %w", server, err)
	}
	return res[0].Error
}
