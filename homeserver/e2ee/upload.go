package e2ee

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// oneKey is a one-time or fallback key of an upload.
type oneKey struct {
	algorithm, id string
	key           string
}

// upload is POST /keys/upload.
func (s *Service) upload(c *httpapi.Call) (any, error) {
	var body struct {
		DeviceKeys json.RawMessage            `json:"device_keys"`
		OneTime    map[string]json.RawMessage `json:"one_time_keys"`
		Fallback   map[string]json.RawMessage `json:"fallback_keys"`
		// compat: clients from before the fallback keys were specified.
		FallbackMSC map[string]json.RawMessage `json:"org.matrix.msc2732.fallback_keys"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Fallback == nil {
		body.Fallback = body.FallbackMSC
	}
	user, id := c.Caller.User, c.Caller.Device
	var identity []byte
	if len(body.DeviceKeys) > 0 && string(body.DeviceKeys) != "null" {
		var err error
		if identity, err = parseDeviceKeys(body.DeviceKeys, user, id); err != nil {
			return nil, err
		}
	}
	oneTime, err := parseOneKeys(body.OneTime)
	if err != nil {
		return nil, err
	}
	fallback, err := parseOneKeys(body.Fallback)
	if err != nil {
		return nil, err
	}
	for i := range fallback {
		if i > 0 && fallback[i].algorithm == fallback[i-1].algorithm {
			return nil, matrix.InvalidParam("there can be one fallback key for each algorithm")
		}
	}
	if identity != nil || len(oneTime)+len(fallback) > 0 {
		if id == "" {
			return nil, matrix.InvalidParam("keys belong to a device, and this access token has none")
		}
		if err := s.store(c.Ctx(), user, id, identity, oneTime, fallback); err != nil {
			return nil, err
		}
	}
	counts, _ := s.KeyCounts(user, id)
	return struct {
		Counts map[string]int `json:"one_time_key_counts"`
	}{counts}, nil
}

// parseDeviceKeys checks identity keys and returns them as they are stored: without unsigned, and with the
// signatures of their owner alone.
func parseDeviceKeys(b []byte, user matrix.UserID, id matrix.DeviceID) ([]byte, error) {
	var k struct {
		User       *string                       `json:"user_id"`
		Device     *string                       `json:"device_id"`
		Algorithms *[]string                     `json:"algorithms"`
		Keys       *map[string]string            `json:"keys"`
		Signatures *map[string]map[string]string `json:"signatures"`
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return nil, matrix.BadJSON("device_keys does not have the form of the specification")
	}
	if k.User == nil || k.Device == nil || k.Algorithms == nil || k.Keys == nil || k.Signatures == nil {
		return nil, matrix.BadJSON("device_keys needs user_id, device_id, algorithms, keys and signatures")
	}
	if *k.User != string(user) || *k.Device != string(id) {
		return nil, matrix.BadJSON("device_keys must be of the user and device of the access token")
	}
	return ownObject(b, user)
}

// ownObject keeps of a signed object what its owner says: unsigned goes, as do signatures of others.
func ownObject(b []byte, owner matrix.UserID) ([]byte, error) {
	o, err := parseObject(b)
	if err != nil {
		return nil, matrix.BadJSON("a key must be a JSON object")
	}
	delete(o, "unsigned")
	if own := o.signatures()[string(owner)]; own != nil {
		if o["signatures"], err = json.Marshal(map[matrix.UserID]map[string]string{owner: own}); err != nil {
			return nil, err
		}
	} else {
		delete(o, "signatures")
	}
	return json.Marshal(o)
}

// parseOneKeys reads keys by "algorithm:id", ordered by that name.
func parseOneKeys(m map[string]json.RawMessage) ([]oneKey, error) {
	keys := make([]oneKey, 0, len(m))
	for name, v := range m {
		algorithm, id, _ := strings.Cut(name, ":")
		if algorithm == "" || id == "" || len(name) > 255 || !storable(name) {
			return nil, matrix.InvalidParam("%q is not algorithm:key_id", clip(name))
		}
		if len(v) == 0 || v[0] != '{' && v[0] != '"' {
			return nil, matrix.BadJSON("the key %s must be an object or a string", clip(name))
		}
		if v[0] == '{' {
			var k struct {
				Key *string `json:"key"`
			}
			if json.Unmarshal(v, &k) != nil || k.Key == nil {
				return nil, matrix.BadJSON("the key %s has no \"key\"", clip(name))
			}
		}
		keys = append(keys, oneKey{algorithm, id, string(v)})
	}
	slices.SortFunc(keys, func(a, b oneKey) int {
		return strings.Compare(a.algorithm+":"+a.id, b.algorithm+":"+b.id)
	})
	return keys, nil
}

// store writes an upload in one commit and tells of what has changed.
func (k *Keys) store(ctx context.Context, user matrix.UserID, id matrix.DeviceID, identity []byte, oneTime, fallback []oneKey) error {
	_, err := k.log.Append(ctx, 2, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		return k.storeTx(tx, pos, user, id, identity, oneTime, fallback)
	})
	return err
}

// storeTx is store in the transaction of an append, with two positions from pos on.
func (k *Keys) storeTx(tx *sqldb.Tx, pos stream.Pos, user matrix.UserID, id matrix.DeviceID, identity []byte, oneTime, fallback []oneKey) ([]stream.Change, error) {
	var changes []stream.Change
	if identity != nil {
		changed, err := putDeviceKeys(tx, user, id, identity)
		if err != nil {
			return nil, err
		}
		if changed {
			c, err := k.ListChanged(tx, pos, user, id)
			if err != nil {
				return nil, err
			}
			changes = append(changes, c)
		}
	}
	for i := range oneTime {
		if err := putOneTime(tx, user, id, &oneTime[i]); err != nil {
			return nil, err
		}
	}
	for i := range fallback {
		if err := putFallback(tx, user, id, &fallback[i]); err != nil {
			return nil, err
		}
	}
	if len(oneTime)+len(fallback) > 0 {
		c, err := countTx(tx, pos+1, user, id)
		if err != nil {
			return nil, err
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// putDeviceKeys stores identity keys unless they are there already.
func putDeviceKeys(tx *sqldb.Tx, user matrix.UserID, id matrix.DeviceID, keys []byte) (changed bool, err error) {
	var old string
	err = tx.QueryRow(qDeviceKey, string(user), string(id)).Scan(&old)
	if err == nil && old == string(keys) {
		return false, nil
	}
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return false, err
	}
	_, err = tx.Exec(qPutDeviceKey, string(user), string(id), string(keys))
	return true, err
}

// putOneTime stores a one-time key. The same key may come again, as when an answer was lost.
func putOneTime(tx *sqldb.Tx, user matrix.UserID, id matrix.DeviceID, key *oneKey) error {
	n, err := tx.Exec(qPutOneTime, string(user), string(id), key.algorithm, key.id, key.key)
	if err != nil || n > 0 {
		return err
	}
	var old string
	if err := tx.QueryRow(qOneTime, string(user), string(id), key.algorithm, key.id).Scan(&old); err != nil {
		return err
	}
	if !sameJSON(old, key.key) {
		return matrix.InvalidParam("one-time key %s:%s exists already with another value", key.algorithm, key.id)
	}
	return nil
}

func putFallback(tx *sqldb.Tx, user matrix.UserID, id matrix.DeviceID, key *oneKey) error {
	var (
		oldID, old string
		used       bool
	)
	err := tx.QueryRow(qFallback, string(user), string(id), key.algorithm).Scan(&oldID, &old, &used)
	if err == nil && oldID == key.id && sameJSON(old, key.key) {
		return nil // it stays used, if it is
	}
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return err
	}
	_, err = tx.Exec(qPutFallback, string(user), string(id), key.algorithm, key.id, key.key)
	return err
}

// sameJSON compares two values whatever the order of their members.
func sameJSON(a, b string) bool {
	if a == b {
		return true
	}
	x, err := matrix.CanonicalJSON([]byte(a), true)
	if err != nil {
		return false
	}
	y, err := matrix.CanonicalJSON([]byte(b), true)
	return err == nil && string(x) == string(y)
}
