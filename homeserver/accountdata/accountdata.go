// Package accountdata keeps what a user stores for their own clients: account
// data of the whole account and of single rooms, room tags, the list of ignored
// users, whether they take invitations, and filters.
//
// Tables: account_data, filters. Spec: client-server-api#client-config,
// client-server-api#room-tagging, client-server-api#ignoring-users,
// client-server-api#invite-permission, client-server-api#filtering.
//
// Invariants: a value is stored once, with the position of its last change, so
// that a reader of (from, to] sees each changed value once. The lists of ignored
// users, and who blocks invitations, are held in memory, kept true by the log. A filter never changes once it
// has an ID. m.fully_read and m.push_rules belong to other packages, which write
// them here with Put or PutTx; clients only read them.
package accountdata

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

// Types of account data that the server gives a meaning.
const (
	TypeTag       = "m.tag"
	TypeIgnored   = "m.ignored_user_list"
	TypeFullyRead = "m.fully_read"
	TypePushRules = "m.push_rules"
	TypeDirect    = "m.direct"
	TypeInvites   = "m.invite_permission_config"
	// TypeInviteLists is the proposal's name for the same with lists of users and servers.
	TypeInviteLists = "org.matrix.msc4155.invite_permission_config"
)

// Entry is one value. Content is a JSON object and must not be changed.
type Entry struct {
	Room    matrix.RoomID // empty for data of the whole account
	Type    string
	Content json.RawMessage
	Pos     stream.Pos
}

// Data is the account data of all local users.
type Data struct {
	db  *sqldb.DB
	log *stream.Log

	mu      sync.RWMutex
	ignored map[matrix.UserID]Ignored
	invites map[matrix.UserID]map[string]*inviteRules // by the type of account data that holds them

	defining gate.Keyed[matrix.UserID]
	filters  filterCache
}

// New prepares the tables, reads the ignored users and follows the log.
// Call it before the log runs its first append.
func New(ctx context.Context, db *sqldb.DB, log *stream.Log) (*Data, error) {
	if err := db.Migrate(ctx, "accountdata", schema); err != nil {
		return nil, err
	}
	d := &Data{db: db, log: log, ignored: map[matrix.UserID]Ignored{}, invites: map[matrix.UserID]map[string]*inviteRules{}}
	d.filters.init()
	if err := d.loadKept(ctx); err != nil {
		return nil, fmt.Errorf("reading ignored users and blocked invitations: %w", err)
	}
	log.Subscribe(d.hear)
	return d, nil
}

// Put stores a value for a user; room is empty for data of the whole account.
// content must be a JSON object. It does not guard the types that belong to the
// server: those who own them write through it.
func (d *Data) Put(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, content json.RawMessage) error {
	_, err := d.log.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		c, err := d.PutTx(tx, pos, user, room, typ, content)
		return []stream.Change{c}, err
	})
	if err != nil {
		return fmt.Errorf("storing account data: %w", err)
	}
	return nil
}

// PutTx is Put for those who append more in the same commit: it stores the value
// at pos and returns the change that the caller has to return from its append.
func (d *Data) PutTx(tx *sqldb.Tx, pos stream.Pos, user matrix.UserID, room matrix.RoomID, typ string, content json.RawMessage) (stream.Change, error) {
	if _, err := tx.Exec(qPut, string(user), string(room), typ, string(content), int64(pos)); err != nil {
		return stream.Change{}, err
	}
	return stream.Change{
		Pos: pos, Kind: stream.KindAccountData, Room: room, User: user,
		Payload: &Entry{Room: room, Type: typ, Content: content, Pos: pos},
	}, nil
}

// Update reads, changes and writes a value in one commit, so that changes at the
// same time add up. change gets nil where there is no value, may run twice, and
// returns nil to leave things as they are.
func (d *Data) Update(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, change func(old json.RawMessage) (json.RawMessage, error)) error {
	_, err := d.log.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		var old json.RawMessage
		var content string
		err := tx.QueryRow(qGet, string(user), string(room), typ).Scan(&content)
		if err == nil {
			old = json.RawMessage(content)
		} else if !errors.Is(err, sqldb.ErrNoRows) {
			return nil, err
		}
		b, err := change(old)
		if b == nil || err != nil {
			return nil, err
		}
		c, err := d.PutTx(tx, pos, user, room, typ, b)
		return []stream.Change{c}, err
	})
	if err != nil {
		return fmt.Errorf("changing account data: %w", err)
	}
	return nil
}

// Get returns a value, or M_NOT_FOUND.
func (d *Data) Get(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string) (json.RawMessage, error) {
	var content string
	err := d.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qGet, string(user), string(room), typ).Scan(&content)
	})
	switch {
	case errors.Is(err, sqldb.ErrNoRows), err == nil && deleted([]byte(content)):
		return nil, matrix.NotFound("account data not found")
	case err != nil:
		return nil, fmt.Errorf("reading account data: %w", err)
	}
	return json.RawMessage(content), nil
}

// Since returns the values of a user that changed in (from, to]: those of the
// whole account, and those of each room. The newest value alone is kept, so one
// that has changed again after to is delivered by the next range.
func (d *Data) Since(_ context.Context, tx *sqldb.Tx, user matrix.UserID, from, to stream.Pos) (global []Entry, rooms map[matrix.RoomID][]Entry, err error) {
	entries, err := sqldb.Select(tx, scanEntry, qSince, string(user), int64(from), int64(to))
	if err != nil {
		return nil, nil, fmt.Errorf("reading account data: %w", err)
	}
	global, rooms = split(entries)
	return global, rooms, nil
}

// All returns every value of a user but those that were deleted.
func (d *Data) All(_ context.Context, tx *sqldb.Tx, user matrix.UserID) (global []Entry, rooms map[matrix.RoomID][]Entry, err error) {
	entries, err := sqldb.Select(tx, scanEntry, qAll, string(user))
	if err != nil {
		return nil, nil, fmt.Errorf("reading account data: %w", err)
	}
	global, rooms = split(living(entries))
	return global, rooms, nil
}

// In returns a user's values of one room.
func (d *Data) In(tx *sqldb.Tx, user matrix.UserID, room matrix.RoomID) ([]Entry, error) {
	entries, err := sqldb.Select(tx, scanEntry, qIn, string(user), string(room))
	return living(entries), err
}

// deletion is the content of a value that was deleted. It stays, for clients that
// have yet to hear of that; who writes it himself deletes, too.
// Spec: MSC3391
const deletion = "{}"

func deleted(content []byte) bool {
	return len(content) < 16 && strings.Join(strings.Fields(string(content)), "") == deletion
}

func living(entries []Entry) []Entry {
	return slices.DeleteFunc(entries, func(e Entry) bool { return deleted(e.Content) })
}

// Delete drops a value, if there is one; clients hear of it as an empty object.
func (d *Data) Delete(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string) error {
	return d.Update(ctx, user, room, typ, func(old json.RawMessage) (json.RawMessage, error) {
		if old == nil || deleted(old) {
			return nil, nil
		}
		return json.RawMessage(deletion), nil
	})
}

// DeleteDevice drops what is kept for a device that is gone: whether it makes
// notifications of its own.
// Spec: MSC3890
func (d *Data) DeleteDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID) error {
	for _, prefix := range []string{"m.local_notification_settings.", "org.matrix.msc3890.local_notification_settings."} {
		if err := d.Delete(ctx, user, "", prefix+string(device)); err != nil {
			return err
		}
	}
	return nil
}

// DeleteUser drops everything of a user whose account is closed.
func (d *Data) DeleteUser(tx *sqldb.Tx, user matrix.UserID) error {
	if _, err := tx.Exec(qDelete, string(user)); err != nil {
		return err
	}
	if _, err := tx.Exec(qUndefine, string(user)); err != nil {
		return err
	}
	d.mu.Lock() // should the transaction fail, a closed account ignores nobody: no harm
	delete(d.ignored, user)
	delete(d.invites, user)
	d.mu.Unlock()
	return nil
}

// ForgetRoom drops what a user has stored for a room they forget.
func (d *Data) ForgetRoom(tx *sqldb.Tx, user matrix.UserID, room matrix.RoomID) error {
	_, err := tx.Exec(qForget, string(user), string(room))
	return err
}

func scanEntry(r *sqldb.Rows) (e Entry, err error) {
	var content string
	err = r.Scan(&e.Room, &e.Type, &content, &e.Pos)
	e.Content = json.RawMessage(content)
	return e, err
}

func split(entries []Entry) (global []Entry, rooms map[matrix.RoomID][]Entry) {
	for _, e := range entries {
		if e.Room == "" {
			global = append(global, e)
			continue
		}
		if rooms == nil {
			rooms = map[matrix.RoomID][]Entry{}
		}
		rooms[e.Room] = append(rooms[e.Room], e)
	}
	return global, rooms
}

// hear keeps true what is held in memory: it sees the changes of each commit in order.
func (d *Data) hear(changes []stream.Change) {
	for i := range changes {
		if changes[i].Kind != stream.KindAccountData || changes[i].Room != "" {
			continue
		}
		if e, ok := changes[i].Payload.(*Entry); ok {
			d.keep(changes[i].User, e.Type, e.Content)
		}
	}
}
