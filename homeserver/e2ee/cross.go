package e2ee

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Usages of cross-signing keys.
const (
	usageMaster = "master"
	usageSelf   = "self_signing"
	usageUser   = "user_signing"
)

// crossKey is a cross-signing key.
type crossKey struct {
	user   matrix.UserID
	usage  string
	public string
	keys   string // the object as it is stored
	obj    object // parsed, in uploads
}

func scanCross(r *sqldb.Rows) (c crossKey, err error) {
	err = r.Scan(&c.user, &c.usage, &c.public, &c.keys)
	return c, err
}

// parseCross checks the form of a cross-signing key.
func parseCross(b []byte, user matrix.UserID, usage string) (*crossKey, error) {
	var k struct {
		User  matrix.UserID     `json:"user_id"`
		Usage []string          `json:"usage"`
		Keys  map[string]string `json:"keys"`
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return nil, matrix.BadJSON("the %s key does not have the form of the specification", usage)
	}
	if k.User != user {
		return nil, matrix.InvalidParam("the %s key must have the user_id %s", usage, user)
	}
	if !slices.Contains(k.Usage, usage) {
		return nil, matrix.InvalidParam("the %s key must have that usage", usage)
	}
	if len(k.Keys) != 1 {
		return nil, matrix.InvalidParam("the %s key must have exactly one public key", usage)
	}
	obj, err := parseObject(b)
	if err != nil {
		return nil, matrix.BadJSON("the %s key must be a JSON object", usage)
	}
	for name, public := range k.Keys {
		raw, err := decodeBase64(public)
		if name != "ed25519:"+public || err != nil || len(raw) != ed25519.PublicKeySize {
			return nil, matrix.InvalidParam("the %s key must be named ed25519: and its public key in Base64", usage)
		}
		return &crossKey{user: user, usage: usage, public: public, obj: obj}, nil
	}
	return nil, matrix.InvalidParam("the %s key has no public key", usage)
}

// publicKey is the one public key of a cross-signing key, or "".
func publicKey(b []byte) string {
	var k struct {
		Keys map[string]string `json:"keys"`
	}
	if json.Unmarshal(b, &k) != nil {
		return ""
	}
	for _, public := range k.Keys {
		return public
	}
	return ""
}

// crossBody is the body of POST /keys/device_signing/upload.
type crossBody struct {
	Master json.RawMessage `json:"master_key"`
	Self   json.RawMessage `json:"self_signing_key"`
	User   json.RawMessage `json:"user_signing_key"`
}

func (b *crossBody) parse(user matrix.UserID) (map[string]*crossKey, error) {
	out := map[string]*crossKey{}
	for usage, raw := range map[string]json.RawMessage{usageMaster: b.Master, usageSelf: b.Self, usageUser: b.User} {
		if len(raw) == 0 || string(raw) == "null" {
			continue
		}
		k, err := parseCross(raw, user, usage)
		if err != nil {
			return nil, err
		}
		stored, err := ownObject(raw, user)
		if err != nil {
			return nil, err
		}
		k.keys = string(stored)
		out[usage] = k
	}
	return out, nil
}

// uploadCrossSigning is POST /keys/device_signing/upload.
func (s *Service) uploadCrossSigning(c *httpapi.Call) (any, error) {
	var body crossBody
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	user := c.Caller.User
	keys, err := body.parse(user)
	if err != nil {
		return nil, err
	}
	old, err := s.crossKeys(c.Ctx(), user)
	if err != nil {
		return nil, err
	}
	if len(keys) > 0 && !anyNew(keys, old) {
		return nil, nil // the same keys again: the answer was lost, perhaps
	}
	if err := s.checkCross(c.Ctx(), user, keys, old); err != nil {
		return nil, err
	}
	if old[usageMaster] != nil && c.Caller.AppService == "" && s.deps.Authorise != nil {
		if err := s.deps.Authorise(c); err != nil {
			return nil, err
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	return nil, s.storeCross(c.Ctx(), user, keys)
}

func (k *Keys) crossKeys(ctx context.Context, user matrix.UserID) (map[string]*crossKey, error) {
	out := map[string]*crossKey{}
	err := k.db.Read(ctx, func(tx *sqldb.Tx) error {
		list, err := sqldb.Select(tx, scanCross, qCrossSigningOf, string(user))
		for i := range list {
			out[list[i].usage] = &list[i]
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading cross-signing keys: %w", err)
	}
	return out, nil
}

// anyNew reports whether an upload holds a key that is not there yet.
func anyNew(keys, old map[string]*crossKey) bool {
	for usage, k := range keys {
		if o := old[usage]; o == nil || o.public != k.public {
			return true
		}
	}
	return false
}

// checkCross checks that the keys are signed by the master key and do not bear a device's name.
func (s *Service) checkCross(ctx context.Context, user matrix.UserID, keys, old map[string]*crossKey) error {
	master := keys[usageMaster]
	if master == nil {
		master = old[usageMaster]
	}
	if master == nil {
		return matrix.MissingParam("there is no master key")
	}
	for _, usage := range []string{usageSelf, usageUser} {
		k := keys[usage]
		if k == nil {
			continue
		}
		if !verify(k.obj, master.public, k.obj.signatures()[string(user)]["ed25519:"+master.public]) {
			return matrix.NewError(http.StatusBadRequest, "M_INVALID_SIGNATURE", "the %s key is not signed by the master key", usage)
		}
	}
	names, err := s.deps.Devices.DisplayNames(ctx, []matrix.UserID{user})
	if err != nil {
		return fmt.Errorf("reading devices: %w", err)
	}
	for _, k := range keys {
		if _, ok := names[user][matrix.DeviceID(k.public)]; ok {
			return matrix.Forbidden("a device has the ID of this key")
		}
	}
	return nil
}

// storeCross replaces cross-signing keys. A new master key makes the keys that only the old one has signed worthless.
func (k *Keys) storeCross(ctx context.Context, user matrix.UserID, keys map[string]*crossKey) error {
	_, err := k.log.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		old, err := sqldb.Select(tx, scanCross, qCrossSigningOf, string(user))
		if err != nil {
			return nil, err
		}
		for _, o := range old {
			if master := keys[usageMaster]; o.usage != usageMaster || master == nil || o.public == master.public {
				continue
			}
			if _, err := tx.Exec(qDropCrossSigning, string(user)); err != nil {
				return nil, err
			}
			if _, err := tx.Exec(qDropSignatures, string(user), o.public); err != nil {
				return nil, err
			}
		}
		for _, c := range keys {
			if _, err := tx.Exec(qPutCrossSigning, string(user), c.usage, c.public, c.keys); err != nil {
				return nil, err
			}
		}
		change, err := k.ListChanged(tx, pos, user, "")
		return []stream.Change{change}, err
	})
	if err != nil {
		return fmt.Errorf("storing cross-signing keys: %w", err)
	}
	return nil
}
