// Package e2ee keeps what end-to-end encryption needs of a server: identity keys
// of devices, one-time and fallback keys, cross-signing keys and signatures, the
// inbox of to-device messages, and key backups. It never sees a secret.
//
// Tables: device_keys, cross_signing_keys, key_signatures, one_time_keys,
// fallback_keys, device_list_changes, remote_device_lists, to_device,
// to_device_remote, to_device_txns, backups, backup_keys, dehydrated_devices.
//
// Spec: client-server-api#end-to-end-encryption,
// client-server-api#send-to-device-messaging, server-server-api#end-to-end-encryption,
// server-server-api#device-management.
//
// Invariants: a one-time key is handed out once, the oldest first: claims go
// through the log, whose appends run one after another. The counts of keys are in
// memory, replaced by what each commit says. A to-device message stays until the
// device has shown, by its sync token, that it has it. Signatures of other
// people's user-signing keys are shown to nobody but their makers.
package e2ee

import (
	"context"
	"embed"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

// Keys is the storage with its read models: what /sync and other packages ask.
// Service has the endpoints.
type Keys struct {
	db     *sqldb.DB
	log    *stream.Log
	server matrix.ServerName
	now    matrix.Now

	mu     sync.RWMutex
	counts map[device]*KeyCounts
	inbox  map[device]inboxState

	backing gate.Keyed[matrix.UserID] // changes of a user's backups, one at a time
}

// device names a device; device IDs are unique for each user only.
type device struct {
	user matrix.UserID
	id   matrix.DeviceID
}

// New prepares the tables, reads the counts and follows the log. Call it before
// the hub is built, so that the counts are new when the hub wakes a sync. now may
// be nil.
func New(ctx context.Context, db *sqldb.DB, log *stream.Log, server matrix.ServerName, now matrix.Now) (*Keys, error) {
	if err := db.Migrate(ctx, "e2ee", schema); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	k := &Keys{
		db: db, log: log, server: server, now: now,
		counts: map[device]*KeyCounts{}, inbox: map[device]inboxState{},
	}
	err := db.Read(ctx, func(tx *sqldb.Tx) error {
		if err := k.loadCounts(tx); err != nil {
			return err
		}
		return k.loadInbox(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	log.Subscribe(k.hear)
	return k, nil
}

// hear keeps the counts true: it sees the changes of each commit in order.
func (k *Keys) hear(changes []stream.Change) {
	for i := range changes {
		if changes[i].Kind != stream.KindKeyCounts {
			continue
		}
		if c, ok := changes[i].Payload.(*KeyCounts); ok {
			k.mu.Lock()
			k.setCounts(device{changes[i].User, c.Device}, c)
			k.mu.Unlock()
		}
	}
}

const (
	pruneEvery = time.Hour
	// keepTxns is how long a transaction ID is remembered.
	keepTxns = 48 * time.Hour
	// keepPositions is how far back superseded device-list changes are kept.
	keepPositions = 200_000
)

// Run removes what nobody needs any more, until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		if err := k.Prune(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("pruning keys: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Prune removes old transaction IDs and superseded device-list changes.
func (k *Keys) Prune(ctx context.Context) error {
	old := k.now().Add(-keepTxns).UnixMilli()
	before := int64(k.log.Head()) - keepPositions
	return k.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qPruneTxns, old); err != nil {
			return err
		}
		if before <= 0 {
			return nil
		}
		_, err := tx.Exec(qPruneLists, before)
		return err
	})
}

// DeleteDevice drops everything of a device that is being deleted. The caller
// appends the change of the device list, see ListChanged.
func (k *Keys) DeleteDevice(tx *sqldb.Tx, user matrix.UserID, id matrix.DeviceID) error {
	for _, q := range [...]string{qDropDeviceKeys, qDropOneTime, qDropFallback, qDropInbox, qDropSignatures, qDropDehydrated} {
		if _, err := tx.Exec(q, string(user), string(id)); err != nil {
			return err
		}
	}
	// Should the transaction fail, the counts read as zero and the client uploads keys: no harm.
	k.mu.Lock()
	delete(k.counts, device{user, id})
	k.mu.Unlock()
	return nil
}

// DeleteUser drops keys and backups of a user whose account is closed; the devices go by DeleteDevice.
func (k *Keys) DeleteUser(tx *sqldb.Tx, user matrix.UserID) error {
	for _, q := range [...]string{qDropCrossSigning, qDropBackups, qDropBackupKeys} {
		if _, err := tx.Exec(q, string(user)); err != nil {
			return err
		}
	}
	return nil
}

// storable reports whether every database can hold s as text.
func storable(s string) bool { return strings.IndexByte(s, 0) < 0 && utf8.ValidString(s) }

// users turns a list into what a query takes.
func users(list []matrix.UserID) []string {
	out := make([]string, len(list))
	for i, u := range list {
		out[i] = string(u)
	}
	return out
}
