package e2ee

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// newSignature is a signature that has been checked.
type newSignature struct {
	target matrix.UserID
	key    string          // device ID or public key
	device matrix.DeviceID // the device that was signed, if it is one
	by     string          // ID of the signing key
	value  string
}

// uploadSignatures is POST /keys/signatures/upload. What is wrong in one object is told for that object alone.
func (s *Service) uploadSignatures(c *httpapi.Call) (any, error) {
	var body map[matrix.UserID]map[string]json.RawMessage
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if err := checkUsers(body); err != nil {
		return nil, err
	}
	user := c.Caller.User
	signer, err := s.signer(c.Ctx(), user, body)
	if err != nil {
		return nil, err
	}
	failures := map[matrix.UserID]map[string]*matrix.Error{}
	var good []newSignature
	for target, keys := range body {
		for id, raw := range keys {
			sigs, e := signer.check(target, id, raw)
			if e != nil {
				if failures[target] == nil {
					failures[target] = map[string]*matrix.Error{}
				}
				failures[target][id] = e
				continue
			}
			good = append(good, sigs...)
		}
	}
	if len(good) > 0 {
		if err := s.storeSignatures(c.Ctx(), user, good); err != nil {
			return nil, err
		}
	}
	return struct {
		Failures any `json:"failures"`
	}{failures}, nil
}

// signer holds what is needed to check the signatures that a user has made.
type signer struct {
	user    matrix.UserID
	cross   map[string]*crossKey
	devices map[matrix.DeviceID]object
	masters map[matrix.UserID]*crossKey // of the other users
}

// signer reads the keys that an upload speaks of.
func (k *Keys) signer(ctx context.Context, user matrix.UserID, body map[matrix.UserID]map[string]json.RawMessage) (*signer, error) {
	s := &signer{user: user, cross: map[string]*crossKey{}, devices: map[matrix.DeviceID]object{}, masters: map[matrix.UserID]*crossKey{}}
	err := k.db.Read(ctx, func(tx *sqldb.Tx) error {
		list := slices.Collect(maps.Keys(body))
		if !slices.Contains(list, user) {
			list = append(list, user)
		}
		cross, err := sqldb.Select(tx, scanCross, qCrossSigning, users(list))
		if err != nil {
			return err
		}
		for i := range cross {
			c := &cross[i]
			if c.obj, err = parseObject([]byte(c.keys)); err != nil {
				continue
			}
			switch {
			case c.user == user:
				s.cross[c.usage] = c
			case c.usage == usageMaster:
				s.masters[c.user] = c
			}
		}
		own := newAnswer()
		if err := readKeys(tx, own, Query{user: nil}, user); err != nil {
			return err
		}
		for id, keys := range own.DeviceKeys[user] {
			if o, err := parseObject(keys); err == nil {
				s.devices[id] = o
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading keys to sign: %w", err)
	}
	return s, nil
}

func invalidSignature(why string) *matrix.Error {
	return matrix.NewError(http.StatusBadRequest, "M_INVALID_SIGNATURE", "%s", why)
}

// check verifies the new signatures on one object.
//
// Spec: client-server-api#cross-signing
func (s *signer) check(target matrix.UserID, id string, raw json.RawMessage) ([]newSignature, *matrix.Error) {
	o, err := parseObject(raw)
	if err != nil {
		return nil, matrix.BadJSON("not a JSON object")
	}
	made := o.signatures()[string(s.user)]
	switch {
	case target != s.user:
		master := s.masters[target]
		if master == nil || master.public != id {
			return nil, matrix.NotFound("the user has no such master key")
		}
		return s.one(target, id, o, master.obj, made, s.cross[usageUser], usageUser)
	case s.cross[usageMaster] != nil && s.cross[usageMaster].public == id:
		return s.byDevices(id, o, s.cross[usageMaster].obj, made)
	case s.devices[matrix.DeviceID(id)] != nil:
		return s.one(target, id, o, s.devices[matrix.DeviceID(id)], made, s.cross[usageSelf], usageSelf)
	}
	return nil, matrix.NotFound("no such device or master key")
}

// one takes the signature that a cross-signing key has made.
func (s *signer) one(target matrix.UserID, id string, o, stored object, made map[string]string, by *crossKey, usage string) ([]newSignature, *matrix.Error) {
	if by == nil {
		return nil, matrix.NotFound("there is no %s key to check the signature with", usage)
	}
	if !same(o, stored) {
		return nil, matrix.InvalidParam("the signed key is not the one that is known here")
	}
	keyID := "ed25519:" + by.public
	sig, ok := made[keyID]
	if !ok {
		return nil, invalidSignature("there is no signature of the " + usage + " key")
	}
	if !verify(stored, by.public, sig) {
		return nil, invalidSignature("the signature is wrong")
	}
	out := newSignature{target: target, key: id, by: keyID, value: sig}
	if target == s.user {
		out.device = matrix.DeviceID(id)
	}
	return []newSignature{out}, nil
}

// byDevices takes the signatures that a user's own devices have made on the master key.
func (s *signer) byDevices(id string, o, stored object, made map[string]string) ([]newSignature, *matrix.Error) {
	if !same(o, stored) {
		return nil, matrix.InvalidParam("the signed key is not the one that is known here")
	}
	var out []newSignature
	for keyID, sig := range made {
		dev, ok := strings.CutPrefix(keyID, "ed25519:")
		keys := s.devices[matrix.DeviceID(dev)]
		if !ok || keys == nil {
			continue // such as the master key's signature of itself
		}
		if !verify(stored, keys.keyMap()[keyID], sig) {
			return nil, invalidSignature("the signature is wrong")
		}
		out = append(out, newSignature{target: s.user, key: id, by: keyID, value: sig})
	}
	if len(out) == 0 {
		return nil, invalidSignature("there is no signature of one of the user's devices")
	}
	return out, nil
}

// same compares two objects without their signatures.
func same(a, b object) bool {
	x, err := a.signable()
	if err != nil {
		return false
	}
	y, err := b.signable()
	return err == nil && string(x) == string(y)
}

// storeSignatures stores signatures and tells of them: everybody of those on the user's own keys, and the user
// alone of those on others' keys.
func (k *Keys) storeSignatures(ctx context.Context, user matrix.UserID, sigs []newSignature) error {
	type told struct {
		user matrix.UserID
		id   matrix.DeviceID
	}
	var tell []told
	for _, sig := range sigs {
		t := told{sig.target, sig.device}
		if !slices.Contains(tell, t) {
			tell = append(tell, t)
		}
	}
	_, err := k.log.Append(ctx, len(tell), func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		for i := range sigs {
			sig := &sigs[i]
			if _, err := tx.Exec(qPutSignature, string(sig.target), sig.key, string(user), sig.by, sig.value); err != nil {
				return nil, err
			}
		}
		changes := make([]stream.Change, 0, len(tell))
		for i, t := range tell {
			var (
				c   stream.Change
				err error
			)
			if t.user == user {
				c, err = k.ListChanged(tx, pos+stream.Pos(i), user, t.id)
			} else {
				c, err = k.seenBy(tx, pos+stream.Pos(i), t.user, user)
			}
			if err != nil {
				return nil, err
			}
			changes = append(changes, c)
		}
		return changes, nil
	})
	if err != nil {
		return fmt.Errorf("storing signatures: %w", err)
	}
	return nil
}
