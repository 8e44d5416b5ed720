package e2ee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// errNoFederation is why a remote user's keys cannot be had on a server that does not federate.
var errNoFederation = matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "this server does not federate")

// failure is what a client is told of a server that did not answer. No details: they are for the log.
func failure(err error) json.RawMessage {
	var e *matrix.Error
	if errors.As(err, &e) && errors.Is(e, errNoFederation) {
		return errorBody(e)
	}
	return errorBody(matrix.NewError(http.StatusBadGateway, "M_UNAVAILABLE", "the server could not be reached"))
}

// askOne asks one server, takes what it may speak of, and keeps a copy.
func (s *Service) askOne(ctx context.Context, server matrix.ServerName, query Query) (*Answer, error) {
	if s.deps.Remote == nil {
		return nil, errNoFederation
	}
	got, err := s.deps.Remote.QueryKeys(ctx, server, query)
	if err != nil {
		log.WithError(err).WithField("server", server).Debug("asking for keys failed")
		return nil, err
	}
	clean := newAnswer()
	for u, wanted := range query {
		devices := map[matrix.DeviceID]json.RawMessage{}
		for id, keys := range got.DeviceKeys[u] {
			if (len(wanted) == 0 || slices.Contains(wanted, id)) && storable(string(id)) && remoteDevice(keys, u, id) {
				devices[id] = keys
			}
		}
		clean.DeviceKeys[u] = devices
		if k := got.Master[u]; remoteCross(k, u, usageMaster) {
			clean.Master[u] = k
		}
		if k := got.SelfSigning[u]; remoteCross(k, u, usageSelf) {
			clean.SelfSigning[u] = k
		}
	}
	if err := s.keepCopies(ctx, query, clean); err != nil {
		log.WithError(err).WithField("server", server).Warn("keeping a copy of remote keys failed")
	}
	return clean, nil
}

// remoteDevice checks that keys speak of the device they stand for.
func remoteDevice(keys json.RawMessage, user matrix.UserID, id matrix.DeviceID) bool {
	var k struct {
		User   matrix.UserID     `json:"user_id"`
		Device matrix.DeviceID   `json:"device_id"`
		Keys   map[string]string `json:"keys"`
	}
	return json.Unmarshal(keys, &k) == nil && k.User == user && k.Device == id
}

func remoteCross(keys json.RawMessage, user matrix.UserID, usage string) bool {
	if len(keys) == 0 {
		return false
	}
	_, err := parseCross(keys, user, usage)
	return err == nil
}

// keepCopies stores what a server answered, if it differs from what is there.
func (s *Service) keepCopies(ctx context.Context, query Query, got *Answer) error {
	old := newAnswer()
	if err := s.db.Read(ctx, func(tx *sqldb.Tx) error { return readKeys(tx, old, query, "") }); err != nil {
		return err
	}
	var differ []matrix.UserID
	for u := range query {
		same := len(old.DeviceKeys[u]) == len(got.DeviceKeys[u]) && string(old.Master[u]) == string(got.Master[u]) && string(old.SelfSigning[u]) == string(got.SelfSigning[u])
		for id, keys := range got.DeviceKeys[u] {
			same = same && string(old.DeviceKeys[u][id]) == string(keys)
		}
		if !same {
			differ = append(differ, u)
		}
	}
	if len(differ) == 0 {
		return nil
	}
	return s.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, u := range differ {
			for id, keys := range got.DeviceKeys[u] {
				if _, err := tx.Exec(qPutDeviceKey, string(u), string(id), string(keys)); err != nil {
					return err
				}
			}
			for id := range old.DeviceKeys[u] {
				if _, ok := got.DeviceKeys[u][id]; !ok {
					if _, err := tx.Exec(qDropDeviceKeys, string(u), string(id)); err != nil {
						return err
					}
				}
			}
			if err := putCross(tx, u, usageMaster, got.Master[u]); err != nil {
				return err
			}
			if err := putCross(tx, u, usageSelf, got.SelfSigning[u]); err != nil {
				return err
			}
		}
		return nil
	})
}

// putCross stores a remote user's cross-signing key; none at all removes it.
func putCross(tx *sqldb.Tx, user matrix.UserID, usage string, keys json.RawMessage) error {
	if len(keys) == 0 {
		_, err := tx.Exec(qDropCrossSigning1, string(user), usage)
		return err
	}
	_, err := tx.Exec(qPutCrossSigning, string(user), usage, publicKey(keys), string(keys))
	return err
}

// known checks that an EDU of origin speaks of a user of its own, and says whether anybody here cares.
func (s *Service) known(origin matrix.ServerName, user matrix.UserID) (bool, error) {
	if _, err := matrix.ParseUserID(string(user)); err != nil || !storable(string(user)) {
		return false, matrix.InvalidParam("%q is not a user ID", clip(string(user)))
	}
	if user.Server() != origin || origin == s.server {
		return false, matrix.Forbidden("%s cannot speak for %s", origin, user)
	}
	return s.deps.Rooms == nil || len(s.deps.Rooms.RoomsOf(user)) > 0, nil
}

// DeviceListUpdate takes in an m.device_list_update. The copy kept here is brought up to date, and local users who
// share a room are told to ask again; they are answered by the user's own server, so gaps need no care.
func (s *Service) DeviceListUpdate(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var u deviceListUpdate
	if err := json.Unmarshal(content, &u); err != nil {
		return matrix.BadJSON("the device list update is malformed")
	}
	care, err := s.known(origin, u.User)
	if err != nil || !care {
		return err
	}
	if u.Device == "" || len(u.Device) > 512 || !storable(string(u.Device)) {
		return matrix.InvalidParam("the device ID is malformed")
	}
	_, err = s.log.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		var last int64
		err := tx.QueryRow(qRemoteStream, string(u.User)).Scan(&last)
		if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
			return nil, err
		}
		if err == nil && u.Stream == last {
			return nil, nil // seen already
		}
		nothing, err := keyless(tx, u, last)
		if err != nil {
			return nil, err
		}
		if u.Stream > last {
			if _, err := tx.Exec(qPutRemoteStream, string(u.User), u.Stream); err != nil {
				return nil, err
			}
		}
		switch {
		case nothing:
			return nil, nil
		case u.Deleted:
			if _, err := tx.Exec(qDropDeviceKeys, string(u.User), string(u.Device)); err != nil {
				return nil, err
			}
		case len(u.Keys) > 0 && u.Stream > last && remoteDevice(u.Keys, u.User, u.Device):
			if _, err := tx.Exec(qPutDeviceKey, string(u.User), string(u.Device), string(u.Keys)); err != nil {
				return nil, err
			}
		}
		c, err := s.ListChanged(tx, pos, u.User, u.Device)
		return []stream.Change{c}, err
	})
	if err != nil {
		return fmt.Errorf("storing device list update: %w", err)
	}
	return nil
}

// keyless reports whether an update follows the last one known and tells of a device that has no keys and had none:
// nobody's view of keys changes by that.
func keyless(tx *sqldb.Tx, u deviceListUpdate, last int64) (bool, error) {
	if u.Deleted || len(u.Keys) > 0 || len(u.Prev) > 0 && !slices.Contains(u.Prev, last) {
		return false, nil
	}
	var old string
	err := tx.QueryRow(qDeviceKey, string(u.User), string(u.Device)).Scan(&old)
	if errors.Is(err, sqldb.ErrNoRows) {
		return true, nil
	}
	return false, err
}

// SigningKeyUpdate takes in an m.signing_key_update.
func (s *Service) SigningKeyUpdate(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var u signingKeyUpdate
	if err := json.Unmarshal(content, &u); err != nil {
		return matrix.BadJSON("the signing key update is malformed")
	}
	care, err := s.known(origin, u.User)
	if err != nil || !care {
		return err
	}
	_, err = s.log.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		if remoteCross(u.Master, u.User, usageMaster) {
			if err := putCross(tx, u.User, usageMaster, u.Master); err != nil {
				return nil, err
			}
		}
		if remoteCross(u.SelfSigning, u.User, usageSelf) {
			if err := putCross(tx, u.User, usageSelf, u.SelfSigning); err != nil {
				return nil, err
			}
		}
		c, err := s.ListChanged(tx, pos, u.User, "")
		return []stream.Change{c}, err
	})
	if err != nil {
		return fmt.Errorf("storing signing key update: %w", err)
	}
	return nil
}
