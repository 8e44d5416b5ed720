package e2ee

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// ListChange is the payload of a KindDeviceList change: whose list it is, the device (empty when cross-signing keys
// changed), and the only user who may know, if not everybody who shares a room.
type ListChange struct {
	User   matrix.UserID
	Device matrix.DeviceID
	Viewer matrix.UserID
}

// ListChanged records in tx that a user's device has come, gone or changed (an empty device: the cross-signing
// keys), and makes the change to return from the append.
func (k *Keys) ListChanged(tx *sqldb.Tx, pos stream.Pos, user matrix.UserID, id matrix.DeviceID) (stream.Change, error) {
	if _, err := tx.Exec(qListChanged, int64(pos), string(user), string(id), ""); err != nil {
		return stream.Change{}, err
	}
	return stream.Change{Pos: pos, Kind: stream.KindDeviceList, User: user, Payload: &ListChange{User: user, Device: id}}, nil
}

// seenBy records that viewer, and nobody else, is to read the keys of user again.
func (k *Keys) seenBy(tx *sqldb.Tx, pos stream.Pos, user, viewer matrix.UserID) (stream.Change, error) {
	if _, err := tx.Exec(qListChanged, int64(pos), string(user), "", string(viewer)); err != nil {
		return stream.Change{}, err
	}
	return stream.Change{Pos: pos, Kind: stream.KindDeviceList, User: viewer, Payload: &ListChange{User: user, Viewer: viewer}}, nil
}

// DeviceListChanges returns the users whose devices or cross-signing keys changed in (from, to], as far as viewer
// may know of it; whether viewer shares a room with them is for the caller to check. Superseded changes are
// forgotten in time, so to should be the head.
func (k *Keys) DeviceListChanges(_ context.Context, tx *sqldb.Tx, viewer matrix.UserID, from, to stream.Pos) ([]matrix.UserID, error) {
	list, err := sqldb.Select(tx, func(r *sqldb.Rows) (u matrix.UserID, err error) {
		err = r.Scan(&u)
		return u, err
	}, qListChanges, int64(from), int64(to), string(viewer))
	if err != nil {
		return nil, fmt.Errorf("reading device list changes: %w", err)
	}
	return list, nil
}

// ListUpdate is an EDU that tells other servers, who share a room with User, of a change.
type ListUpdate struct {
	Pos     stream.Pos
	User    matrix.UserID
	Type    string // m.device_list_update or m.signing_key_update
	Content json.RawMessage
}

// ListUpdates makes the EDUs for the changes of local users in (from, to].
//
// Spec: server-server-api#device-management
func (s *Service) ListUpdates(ctx context.Context, from, to stream.Pos) ([]ListUpdate, error) {
	type row struct {
		pos  stream.Pos
		prev stream.Pos
		user matrix.UserID
		id   matrix.DeviceID
	}
	var rows []row
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		all, err := sqldb.Select(tx, func(r *sqldb.Rows) (v row, err error) {
			err = r.Scan(&v.pos, &v.user, &v.id)
			return v, err
		}, qListUpdates, int64(from), int64(to))
		if err != nil {
			return err
		}
		rows = rows[:0]
		for _, v := range all {
			if v.user.Server() != s.server {
				continue
			}
			if v.id != "" {
				if err := tx.QueryRow(qListPrev, string(v.user), int64(v.pos)).Scan(&v.prev); err != nil {
					return err
				}
			}
			rows = append(rows, v)
		}
		return nil
	})
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	query := Query{}
	for _, v := range rows {
		query[v.user] = nil
	}
	answer, names, err := s.local(ctx, "", query, true)
	if err != nil {
		return nil, err
	}
	updates := make([]ListUpdate, 0, len(rows))
	for _, v := range rows {
		u := ListUpdate{Pos: v.pos, User: v.user, Type: "m.device_list_update"}
		var content any
		if v.id == "" {
			u.Type = "m.signing_key_update"
			content = signingKeyUpdate{User: v.user, Master: answer.Master[v.user], SelfSigning: answer.SelfSigning[v.user]}
		} else {
			name, exists := names[v.user][v.id]
			d := deviceListUpdate{User: v.user, Device: v.id, Stream: int64(v.pos), Deleted: !exists, Keys: answer.DeviceKeys[v.user][v.id]}
			if v.prev > 0 {
				d.Prev = []int64{int64(v.prev)}
			}
			if s.deps.ShareNames {
				d.Name = name
			}
			content = d
		}
		if u.Content, err = json.Marshal(content); err != nil {
			return nil, err
		}
		updates = append(updates, u)
	}
	return updates, nil
}

// Introduction is the content of an m.device_list_update that tells servers of a local user's devices for the first
// time; nil if there are none. One does for all devices: it names a predecessor that those servers cannot have, so that
// they ask for the whole list. It tells of a device with keys, if there is one.
//
// Spec: server-server-api#device-management
func (s *Service) Introduction(ctx context.Context, user matrix.UserID) (json.RawMessage, error) {
	u := deviceListUpdate{User: user}
	// The number is read first: a change in between then comes once more, and is not lost.
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qListStream, string(user)).Scan(&u.Stream) })
	if err != nil {
		return nil, fmt.Errorf("reading device list: %w", err)
	}
	answer, names, err := s.local(ctx, "", Query{user: nil}, s.deps.ShareNames)
	if err != nil || len(names[user]) == 0 {
		return nil, err
	}
	for id := range names[user] {
		keys := answer.DeviceKeys[user][id]
		if u.Device == "" || keys != nil && u.Keys == nil || (keys != nil) == (u.Keys != nil) && id > u.Device {
			u.Device, u.Keys = id, keys
		}
	}
	if s.deps.ShareNames {
		u.Name = names[user][u.Device]
	}
	if u.Stream > 0 { // else nothing has been told of before
		u.Prev = []int64{u.Stream - 1}
	}
	return json.Marshal(u)
}

type deviceListUpdate struct {
	User    matrix.UserID   `json:"user_id"`
	Device  matrix.DeviceID `json:"device_id"`
	Name    string          `json:"device_display_name,omitempty"`
	Stream  int64           `json:"stream_id"`
	Prev    []int64         `json:"prev_id,omitempty"`
	Deleted bool            `json:"deleted,omitempty"`
	Keys    json.RawMessage `json:"keys,omitempty"`
}

type signingKeyUpdate struct {
	User        matrix.UserID   `json:"user_id"`
	Master      json.RawMessage `json:"master_key,omitempty"`
	SelfSigning json.RawMessage `json:"self_signing_key,omitempty"`
}
