// Package devices keeps the devices of local users: their names, when they were last seen, and their end.
//
// Tables: devices.
//
// Spec: client-server-api#device-management, client-server-api#get_matrixclientv3adminwhoisuserid
//
// Invariants: a device ends together with its tokens and keys, in one commit, and whoever shares a room with its
// user hears of it by the log. When a device was last seen is noted in memory and written some time later, so the
// newest half minute may be lost in a crash and nothing else.
package devices

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

// Keys are the encryption keys that hang on devices.
type Keys interface {
	// DeleteDevice drops the keys of a device in the deleting transaction.
	DeleteDevice(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID) error
	// ListChanged records that a user's device changed and makes the change for the log.
	ListChanged(tx *sqldb.Tx, pos stream.Pos, user matrix.UserID, device matrix.DeviceID) (stream.Change, error)
}

// Device is a device as its user sees it.
type Device struct {
	ID          matrix.DeviceID `json:"device_id"`
	DisplayName string          `json:"display_name,omitempty"`
	SeenIP      string          `json:"last_seen_ip,omitempty"`
	SeenAt      int64           `json:"last_seen_ts,omitempty"`
	SeenAgent   string          `json:"-"`
}

const (
	qEnsure = `INSERT INTO devices (user_id, device_id, display_name, created_at, seen_at, seen_ip) VALUES ($1, $2, $3, $4, $4, $5)
 ON CONFLICT (user_id, device_id) DO UPDATE SET seen_at = excluded.seen_at, seen_ip = excluded.seen_ip`
	qHas    = `SELECT 1 FROM devices WHERE user_id = $1 AND device_id = $2`
	qList   = `SELECT device_id, display_name, seen_ip, seen_at, seen_agent FROM devices WHERE user_id = $1 ORDER BY created_at, device_id`
	qNames  = `SELECT user_id, device_id, display_name FROM devices WHERE user_id = ANY($1)`
	qRename = `UPDATE devices SET display_name = $3 WHERE user_id = $1 AND device_id = $2`
	qDelete = `DELETE FROM devices WHERE user_id = $1 AND device_id = ANY($2)`
	qSeen   = `UPDATE devices SET seen_at = $3, seen_ip = $4, seen_agent = $5 WHERE user_id = $1 AND device_id = $2 AND seen_at < $3`
)

// Devices is the package's door. Its methods are safe for concurrent use.
type Devices struct {
	db    *sqldb.DB
	log   *stream.Log
	keys  Keys
	hooks []accounts.DeviceHook

	mu      sync.Mutex
	pending map[key]seen     // last uses not yet written
	known   map[key]struct{} // devices that exist, for Has; kept true by Delete
	gen     uint64           // counts deletions, so that Has keeps nothing that was deleted meanwhile
}

type key struct {
	user   matrix.UserID
	device matrix.DeviceID
}

type seen struct {
	at        int64
	ip, agent string
}

var _ accounts.Devices = (*Devices)(nil)

// New prepares the table. keys may be nil where there are none.
func New(ctx context.Context, db *sqldb.DB, log *stream.Log, keys Keys) (*Devices, error) {
	if err := db.Migrate(ctx, "devices", schema); err != nil {
		return nil, err
	}
	return &Devices{db: db, log: log, keys: keys, pending: make(map[key]seen), known: make(map[key]struct{})}, nil
}

// OnDelete adds what has to happen with the deletion of devices. Call it before serving.
func (d *Devices) OnDelete(hook accounts.DeviceHook) { d.hooks = append(d.hooks, hook) }

// Ensure makes the device inside a transaction if the user has none of this ID; the name of a known one stays.
func (d *Devices) Ensure(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID, displayName, ip string, now time.Time) error {
	_, err := tx.Exec(qEnsure, string(user), string(device), displayName, matrix.Millis(now), ip)
	return err
}

// Create makes a device without a session, as application services may.
func (d *Devices) Create(ctx context.Context, user matrix.UserID, device matrix.DeviceID, displayName, ip string, now time.Time) error {
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error { return d.Ensure(tx, user, device, displayName, ip, now) })
	if err != nil {
		return fmt.Errorf("creating device: %w", err)
	}
	return nil
}

// maxKnown bounds the memory of Has; when full it starts anew.
const maxKnown = 50_000

// Has says whether the user has the device; a device asked for again needs no query.
func (d *Devices) Has(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (bool, error) {
	k := key{user, device}
	d.mu.Lock()
	_, ok := d.known[k]
	gen := d.gen
	d.mu.Unlock()
	if ok {
		return true, nil
	}
	var one int
	err := d.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qHas, string(user), string(device)).Scan(&one) })
	if errors.Is(err, sqldb.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading device: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gen == gen {
		if len(d.known) >= maxKnown {
			clear(d.known)
		}
		d.known[k] = struct{}{}
	}
	return true, nil
}

// List is the user's devices, the oldest first.
func (d *Devices) List(ctx context.Context, user matrix.UserID) ([]Device, error) {
	var list []Device
	err := d.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, func(r *sqldb.Rows) (v Device, err error) {
			err = r.Scan(&v.ID, &v.DisplayName, &v.SeenIP, &v.SeenAt, &v.SeenAgent)
			return v, err
		}, qList, string(user))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading devices: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range list {
		if s, ok := d.pending[key{user, list[i].ID}]; ok && s.at > list[i].SeenAt {
			list[i].SeenAt, list[i].SeenIP, list[i].SeenAgent = s.at, s.ip, s.agent
		}
	}
	return list, nil
}

// DisplayNames returns all devices of the users with their display names.
func (d *Devices) DisplayNames(ctx context.Context, users []matrix.UserID) (map[matrix.UserID]map[matrix.DeviceID]string, error) {
	ids := make([]string, len(users))
	for i, u := range users {
		ids[i] = string(u)
	}
	var names map[matrix.UserID]map[matrix.DeviceID]string
	err := d.db.Read(ctx, func(tx *sqldb.Tx) error {
		names = make(map[matrix.UserID]map[matrix.DeviceID]string, len(users))
		rows, err := tx.Query(qNames, ids)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var (
				user   matrix.UserID
				device matrix.DeviceID
				name   string
			)
			if err := rows.Scan(&user, &device, &name); err != nil {
				return err
			}
			if names[user] == nil {
				names[user] = make(map[matrix.DeviceID]string)
			}
			names[user][device] = name
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading device names: %w", err)
	}
	return names, nil
}

// Rename gives a device another display name; M_NOT_FOUND when the user has no such device.
func (d *Devices) Rename(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string) error {
	_, err := d.log.Append(ctx, 1, func(tx *sqldb.Tx, first stream.Pos) ([]stream.Change, error) {
		n, err := tx.Exec(qRename, string(user), string(device), name)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, matrix.NotFound("no device %q", device)
		}
		return d.changes(tx, first, user, []matrix.DeviceID{device})
	})
	if err != nil {
		return fmt.Errorf("renaming device: %w", err)
	}
	return nil
}

func (d *Devices) changes(tx *sqldb.Tx, first stream.Pos, user matrix.UserID, devices []matrix.DeviceID) ([]stream.Change, error) {
	list := make([]stream.Change, len(devices))
	for i, id := range devices {
		pos := first + stream.Pos(i)
		if d.keys == nil {
			list[i] = stream.Change{Pos: pos, Kind: stream.KindDeviceList, User: user}
			continue
		}
		var err error
		if list[i], err = d.keys.ListChanged(tx, pos, user, id); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Delete removes devices with their tokens and keys, and tells those who have to know. Devices the user does not
// have are no error.
func (d *Devices) Delete(ctx context.Context, user matrix.UserID, devices []matrix.DeviceID) error {
	if len(devices) == 0 {
		return nil
	}
	_, err := d.log.Append(ctx, len(devices), func(tx *sqldb.Tx, first stream.Pos) ([]stream.Change, error) {
		return d.DeleteTx(tx, first, user, devices)
	})
	if err != nil {
		return fmt.Errorf("deleting devices: %w", err)
	}
	d.Deleted(user, devices)
	return nil
}

// DeleteTx is Delete in the transaction of an append, which gives it as many positions as there are devices. Deleted
// must follow when that is committed.
func (d *Devices) DeleteTx(tx *sqldb.Tx, first stream.Pos, user matrix.UserID, devices []matrix.DeviceID) ([]stream.Change, error) {
	ids := make([]string, len(devices))
	for i, id := range devices {
		ids[i] = string(id)
	}
	n, err := tx.Exec(qDelete, string(user), ids)
	if err != nil {
		return nil, err
	}
	for _, h := range d.hooks {
		if h.InTx == nil {
			continue
		}
		if err := h.InTx(tx, user, devices); err != nil {
			return nil, err
		}
	}
	if n == 0 {
		return nil, nil
	}
	if d.keys != nil {
		for _, id := range devices {
			if err := d.keys.DeleteDevice(tx, user, id); err != nil {
				return nil, err
			}
		}
	}
	return d.changes(tx, first, user, devices)
}

// Deleted tells those who have to know of devices that DeleteTx has removed.
func (d *Devices) Deleted(user matrix.UserID, devices []matrix.DeviceID) {
	d.mu.Lock()
	d.gen++
	for _, id := range devices {
		delete(d.known, key{user, id})
		delete(d.pending, key{user, id})
	}
	d.mu.Unlock()
	for _, h := range d.hooks {
		if h.After != nil {
			h.After(user, devices)
		}
	}
}

// DeleteOthers removes all devices of the user but keep.
func (d *Devices) DeleteOthers(ctx context.Context, user matrix.UserID, keep matrix.DeviceID) error {
	list, err := d.List(ctx, user)
	if err != nil {
		return err
	}
	var ids []matrix.DeviceID
	for _, v := range list {
		if v.ID != keep {
			ids = append(ids, v.ID)
		}
	}
	return d.Delete(ctx, user, ids)
}

// Seen notes in memory that a device made a request.
func (d *Devices) Seen(user matrix.UserID, device matrix.DeviceID, ip, agent string, now time.Time) {
	if len(agent) > 256 {
		agent = agent[:256]
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending[key{user, device}] = seen{matrix.Millis(now), ip, clean(agent)}
}

// clean keeps what every database can hold as text.
func clean(s string) string {
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] >= 0x20 && s[i] < 0x7f {
			b = append(b, s[i])
		}
	}
	return string(b)
}

const (
	flushEvery = 30 * time.Second
	flushBatch = 500
)

// Run writes when devices were last seen until ctx ends, and once more then.
func (d *Devices) Run(ctx context.Context) error {
	for gate.Sleep(ctx, flushEvery) == nil {
		if err := d.Flush(ctx); err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("noting when devices were last seen failed")
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := d.Flush(last); err != nil {
		log.WithError(err).Warn("noting when devices were last seen failed")
	}
	return nil
}

// Flush writes what Seen has noted, some hundred rows at a time.
func (d *Devices) Flush(ctx context.Context) error {
	for {
		d.mu.Lock()
		batch := make(map[key]seen)
		for k, v := range d.pending {
			if len(batch) == flushBatch {
				break
			}
			batch[k] = v
			delete(d.pending, k)
		}
		d.mu.Unlock()
		if len(batch) == 0 {
			return nil
		}
		err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
			for k, v := range batch {
				if _, err := tx.Exec(qSeen, string(k.user), string(k.device), v.at, v.ip, v.agent); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			d.mu.Lock()
			for k, v := range batch {
				if _, newer := d.pending[k]; !newer {
					d.pending[k] = v
				}
			}
			d.mu.Unlock()
			return fmt.Errorf("storing last uses: %w", err)
		}
	}
}
