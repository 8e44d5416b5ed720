package e2ee

import (
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// KeyCounts is what /sync tells a device of its keys. It is immutable, and the payload of a KindKeyCounts change.
type KeyCounts struct {
	Device matrix.DeviceID
	Counts map[string]int // unclaimed one-time keys by algorithm
	Unused []string       // algorithms of fallback keys that nobody has been given yet
}

// curve is the algorithm that clients look for; a count of zero is told, as some clients upload keys only then.
const curve = "signed_curve25519"

// KeyCounts returns the number of unclaimed one-time keys by algorithm, and the algorithms whose fallback key is
// unused. It is read from memory; the caller must not change what it gets.
func (k *Keys) KeyCounts(user matrix.UserID, id matrix.DeviceID) (counts map[string]int, unusedFallback []string) {
	k.mu.RLock()
	c := k.counts[device{user, id}]
	k.mu.RUnlock()
	if c == nil {
		return map[string]int{curve: 0}, nil
	}
	return c.Counts, c.Unused
}

// setCounts must be called with the lock held.
func (k *Keys) setCounts(d device, c *KeyCounts) {
	if len(c.Unused) == 0 && (len(c.Counts) == 0 || len(c.Counts) == 1 && c.Counts[curve] == 0) {
		delete(k.counts, d)
		return
	}
	k.counts[d] = c
}

func (k *Keys) loadCounts(tx *sqldb.Tx) error {
	rows, err := tx.Query(qAllCounts)
	if err != nil {
		return err
	}
	defer rows.Close()
	of := func(d device) *KeyCounts {
		c := k.counts[d]
		if c == nil {
			c = &KeyCounts{Device: d.id, Counts: map[string]int{curve: 0}}
			k.counts[d] = c
		}
		return c
	}
	for rows.Next() {
		var (
			d         device
			algorithm string
			n         int
		)
		if err := rows.Scan(&d.user, &d.id, &algorithm, &n); err != nil {
			return err
		}
		of(d).Counts[algorithm] = n
	}
	if err := rows.Err(); err != nil {
		return err
	}
	unused, err := tx.Query(qAllUnused)
	if err != nil {
		return err
	}
	defer unused.Close()
	for unused.Next() {
		var (
			d         device
			algorithm string
		)
		if err := unused.Scan(&d.user, &d.id, &algorithm); err != nil {
			return err
		}
		c := of(d)
		c.Unused = append(c.Unused, algorithm)
	}
	return unused.Err()
}

// countTx counts a device's keys as they are in tx, and makes the change that tells of it.
func countTx(tx *sqldb.Tx, pos stream.Pos, user matrix.UserID, id matrix.DeviceID) (stream.Change, error) {
	c := &KeyCounts{Device: id, Counts: map[string]int{curve: 0}}
	rows, err := tx.Query(qCounts, string(user), string(id))
	if err != nil {
		return stream.Change{}, err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			algorithm string
			n         int
		)
		if err := rows.Scan(&algorithm, &n); err != nil {
			return stream.Change{}, err
		}
		c.Counts[algorithm] = n
	}
	if err := rows.Err(); err != nil {
		return stream.Change{}, err
	}
	c.Unused, err = sqldb.Select(tx, func(r *sqldb.Rows) (s string, err error) {
		err = r.Scan(&s)
		return s, err
	}, qUnused, string(user), string(id))
	return stream.Change{Pos: pos, Kind: stream.KindKeyCounts, User: user, Payload: c}, err
}
