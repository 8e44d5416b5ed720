package e2ee

import (
	"encoding/json"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// backedKey is a session key in a backup.
type backedKey struct {
	First     *int64          `json:"first_message_index"`
	Forwarded *int64          `json:"forwarded_count"`
	Verified  *bool           `json:"is_verified"`
	Data      json.RawMessage `json:"session_data"`
}

type backedRoom struct {
	Sessions map[string]*backedKey `json:"sessions"`
}

type backedRooms struct {
	Rooms map[string]*backedRoom `json:"rooms"`
}

// check refuses keys without the fields that decide which of two is better.
func (k *backedKey) check() error {
	switch {
	case k == nil || k.First == nil || k.Forwarded == nil || k.Verified == nil:
		return matrix.BadJSON("a key needs first_message_index, forwarded_count and is_verified")
	case len(k.Data) == 0 || k.Data[0] != '{':
		return matrix.BadJSON("session_data must be an object")
	case *k.First < 0 || *k.Forwarded < 0:
		return matrix.BadJSON("first_message_index and forwarded_count cannot be negative")
	}
	return nil
}

// scope is the room and the session of the path; both may be empty.
func scope(c *httpapi.Call) (room, session string, err error) {
	room, session = c.Var("roomId"), c.Var("sessionId")
	if room != "" {
		if _, err := matrix.ParseRoomID(room); err != nil {
			return "", "", err
		}
	}
	if !storable(room) || !storable(session) || len(session) > 255 {
		return "", "", matrix.InvalidParam("the session ID is malformed")
	}
	return room, session, nil
}

// readKeysBody reads the three forms of body: one session, the sessions of a room, or rooms.
func readKeysBody(c *httpapi.Call, room, session string) (*backedRooms, error) {
	var all backedRooms
	switch {
	case session != "":
		var k backedKey
		if err := c.Body(&k); err != nil {
			return nil, err
		}
		all.Rooms = map[string]*backedRoom{room: {Sessions: map[string]*backedKey{session: &k}}}
	case room != "":
		var r backedRoom
		if err := c.Body(&r); err != nil {
			return nil, err
		}
		if r.Sessions == nil {
			return nil, matrix.MissingParam("sessions is missing")
		}
		all.Rooms = map[string]*backedRoom{room: &r}
	default:
		if err := c.Body(&all); err != nil {
			return nil, err
		}
		if all.Rooms == nil {
			return nil, matrix.MissingParam("rooms is missing")
		}
	}
	for id, r := range all.Rooms {
		if _, err := matrix.ParseRoomID(id); err != nil {
			return nil, err
		}
		if r == nil || r.Sessions == nil {
			return nil, matrix.BadJSON("a room needs sessions")
		}
		for session, k := range r.Sessions {
			if session == "" || len(session) > 255 || !storable(session) {
				return nil, matrix.InvalidParam("a session ID is malformed")
			}
			if err := k.check(); err != nil {
				return nil, err
			}
		}
	}
	return &all, nil
}

// putBackupKeys is PUT /room_keys/keys and its two siblings.
func (s *Service) putBackupKeys(c *httpapi.Call) (any, error) {
	version, err := versionParam(c)
	if err != nil {
		return nil, err
	}
	room, session, err := scope(c)
	if err != nil {
		return nil, err
	}
	keys, err := readKeysBody(c, room, session)
	if err != nil {
		return nil, err
	}
	user := c.Caller.User
	var state backupState
	err = s.changeBackup(c.Ctx(), user, func(tx *sqldb.Tx) error {
		b, err := findBackup(tx, user, "")
		if err != nil {
			return err
		}
		named, err := findBackup(tx, user, version)
		if err != nil {
			return err
		}
		if named.version != b.version {
			return wrongVersion(b.version)
		}
		added, changed, err := putKeys(tx, user, b.version, keys)
		if err != nil {
			return err
		}
		state, err = b.grow(tx, user, added, changed)
		return err
	})
	if err != nil {
		return nil, err
	}
	return state, nil
}

// putKeys stores keys, each if there is none yet or if it is better than the one there.
func putKeys(tx *sqldb.Tx, user matrix.UserID, version int64, keys *backedRooms) (added int64, changed bool, err error) {
	for room, r := range keys.Rooms {
		for session, k := range r.Sessions {
			args := []any{string(user), version, room, session, *k.First, *k.Forwarded, *k.Verified, string(k.Data)}
			n, err := tx.Exec(qInsertBackupKey, args...)
			if err != nil {
				return 0, false, err
			}
			added += n
			if n == 0 {
				if n, err = tx.Exec(qBetterBackupKey, args...); err != nil {
					return 0, false, err
				}
			}
			changed = changed || n > 0
		}
	}
	return added, changed, nil
}

// scoped picks one of three statements with the arguments that it takes.
func scoped(all, ofRoom, one string, user matrix.UserID, version int64, room, session string) (string, []any) {
	args := []any{string(user), version}
	switch {
	case session != "":
		return one, append(args, room, session)
	case room != "":
		return ofRoom, append(args, room)
	}
	return all, args
}

// backupKeys is GET /room_keys/keys and its two siblings.
func (s *Service) backupKeys(c *httpapi.Call) (any, error) {
	version, err := versionParam(c)
	if err != nil {
		return nil, err
	}
	room, session, err := scope(c)
	if err != nil {
		return nil, err
	}
	found := backedRooms{}
	err = s.db.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		b, err := liveBackup(tx, c.Caller.User, version)
		if err != nil {
			return err
		}
		q, args := scoped(qBackupKeys, qBackupKeysRoom, qBackupKey, c.Caller.User, b.version, room, session)
		found, err = selectKeys(tx, q, args)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case session != "":
		if r := found.Rooms[room]; r != nil && r.Sessions[session] != nil {
			return r.Sessions[session], nil
		}
		return nil, matrix.NotFound("no such key in the backup")
	case room != "":
		if r := found.Rooms[room]; r != nil {
			return r, nil
		}
		return backedRoom{Sessions: map[string]*backedKey{}}, nil
	}
	return found, nil
}

func selectKeys(tx *sqldb.Tx, q string, args []any) (backedRooms, error) {
	found := backedRooms{Rooms: map[string]*backedRoom{}}
	rows, err := tx.Query(q, args...)
	if err != nil {
		return found, err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			room, session, data string
			k                   = &backedKey{First: new(int64), Forwarded: new(int64), Verified: new(bool)}
		)
		if err := rows.Scan(&room, &session, k.First, k.Forwarded, k.Verified, &data); err != nil {
			return found, err
		}
		k.Data = json.RawMessage(data)
		r := found.Rooms[room]
		if r == nil {
			r = &backedRoom{Sessions: map[string]*backedKey{}}
			found.Rooms[room] = r
		}
		r.Sessions[session] = k
	}
	return found, rows.Err()
}

// deleteBackupKeys is DELETE /room_keys/keys and its two siblings.
func (s *Service) deleteBackupKeys(c *httpapi.Call) (any, error) {
	version, err := versionParam(c)
	if err != nil {
		return nil, err
	}
	room, session, err := scope(c)
	if err != nil {
		return nil, err
	}
	user := c.Caller.User
	var state backupState
	err = s.changeBackup(c.Ctx(), user, func(tx *sqldb.Tx) error {
		b, err := liveBackup(tx, user, version)
		if err != nil {
			return err
		}
		q, args := scoped(qDelBackupKeys, qDelBackupKeysRoom, qDelBackupKey, user, b.version, room, session)
		n, err := tx.Exec(q, args...)
		if err != nil {
			return fmt.Errorf("deleting: %w", err)
		}
		state, err = b.grow(tx, user, -n, n > 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return state, nil
}
