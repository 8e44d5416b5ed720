// Package serverkeys holds this server's signing key and the keys of other servers.
//
// It owns the file signing.key in the data folder and the tables server_keys and server_key_answers, and answers
// /_matrix/key/v2 (Spec: server-server-api#retrieving-server-keys). Ring verifies signatures of other servers.
//
// Invariants: an own private key never leaves the file and the memory; a stored key was signed by the server that it
// belongs to; a key once verified is checked again without any query; a server that does not answer is asked at a
// falling rate however many messages name it.
package serverkeys

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"golang.org/x/sync/singleflight"
)

//go:embed schema/*.sql
var schemaFS embed.FS

const (
	cachedKeys    = 20_000           // keys kept in memory; beyond it, some are forgotten and read again
	failFirst     = 2 * time.Second  // wait after a first failed fetch
	failMax       = 10 * time.Minute // and the longest wait
	unknownKey    = 30 * time.Second // a server that answered without the wanted key is not asked again within this
	fetchTimeout  = 15 * time.Second
	fetchParallel = 16
)

// Fetcher asks other servers for keys; fedclient.Client is one.
type Fetcher interface {
	// ServerKeys is the body of the server's own /_matrix/key/v2/server.
	ServerKeys(ctx context.Context, server matrix.ServerName) ([]byte, error)
	// QueryKeys asks a notary for the keys of a server and returns the entries of its server_keys.
	QueryKeys(ctx context.Context, notary, server matrix.ServerName, minValid int64) ([]json.RawMessage, error)
}

// Options of a Ring.
type Options struct {
	// Notaries are asked, in order, when a server does not answer itself.
	Notaries []Notary
	// Now is the clock; time.Now when nil.
	Now matrix.Now
}

// Notary is a server trusted to tell the keys of others.
type Notary struct {
	Server matrix.ServerName
	// Keys are the public keys that must have signed its answers.
	Keys map[gomatrixserverlib.KeyID][]byte
}

// NewNotary makes a Notary of its keys' names and the keys.
func NewNotary(server matrix.ServerName, keys map[string][]byte) Notary {
	n := Notary{Server: server, Keys: map[gomatrixserverlib.KeyID][]byte{}}
	for id, key := range keys {
		n.Keys[gomatrixserverlib.KeyID(id)] = key
	}
	return n
}

// Ring finds and keeps the keys of other servers. It is a gomatrixserverlib.JSONVerifier.
type Ring struct {
	db    *sqldb.DB
	own   *Own
	fetch Fetcher
	opts  Options

	mu      sync.RWMutex
	cache   map[keyRef]keyInfo
	tries   map[matrix.ServerName]attempt
	flight  singleflight.Group
	pubMu   sync.Mutex
	pub     []byte
	pubTime time.Time
}

// attempt remembers the last fetch from a server.
type attempt struct {
	until time.Time
	wait  time.Duration
}

// NewRing makes a ring over the store and the client.
func NewRing(ctx context.Context, db *sqldb.DB, own *Own, fetch Fetcher, opts Options) (*Ring, error) {
	if err := db.Migrate(ctx, "serverkeys", schemaFS); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Ring{
		db: db, own: own, fetch: fetch, opts: opts,
		cache: map[keyRef]keyInfo{},
		tries: map[matrix.ServerName]attempt{},
	}, nil
}

// Own is this server's key.
func (r *Ring) Own() *Own { return r.own }

// known gives the keys that are at hand, from memory where possible.
func (r *Ring) known(ctx context.Context, refs map[keyRef]struct{}) (map[keyRef]keyInfo, error) {
	out := make(map[keyRef]keyInfo, len(refs))
	var missing []keyRef
	now := r.opts.Now()
	r.mu.RLock()
	for req := range refs {
		if matrix.ServerName(req.ServerName) == r.own.server {
			if res, ok := r.own.lookup(req.KeyID, now); ok {
				out[req] = res
			}
		} else if res, ok := r.cache[req]; ok {
			out[req] = res
		} else {
			missing = append(missing, req)
		}
	}
	r.mu.RUnlock()
	if len(missing) == 0 {
		return out, nil
	}
	err := r.db.Read(ctx, func(tx *sqldb.Tx) error {
		for _, req := range missing {
			var pub []byte
			var validUntil, expired int64
			err := tx.QueryRow(qKey, string(req.ServerName), string(req.KeyID)).Scan(&pub, &validUntil, &expired)
			if errors.Is(err, sqldb.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			out[req] = keyInfo{
				VerifyKey:    gomatrixserverlib.VerifyKey{Key: pub},
				ValidUntilTS: spec.Timestamp(validUntil), ExpiredTS: spec.Timestamp(expired),
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading server keys: %w", err)
	}
	for _, req := range missing {
		if res, ok := out[req]; ok {
			r.remember(req, res)
		}
	}
	return out, nil
}

func (r *Ring) remember(req keyRef, res keyInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.cache[req]; !ok && len(r.cache) >= cachedKeys {
		for k := range r.cache { // any entry: it can be read again
			delete(r.cache, k)
			break
		}
	}
	r.cache[req] = res
}

const (
	qKey = `SELECT public_key, valid_until_ts, expired_ts FROM server_keys WHERE server_name = $1 AND key_id = $2`

	qStoreKey = `INSERT INTO server_keys (server_name, key_id, public_key, valid_until_ts, expired_ts) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (server_name, key_id) DO UPDATE SET public_key = excluded.public_key,
			valid_until_ts = excluded.valid_until_ts, expired_ts = excluded.expired_ts`

	qStoreAnswer = `INSERT INTO server_key_answers (server_name, valid_until_ts, fetched_ts, answer) VALUES ($1, $2, $3, $4)
		ON CONFLICT (server_name) DO UPDATE SET valid_until_ts = excluded.valid_until_ts,
			fetched_ts = excluded.fetched_ts, answer = excluded.answer`

	qAnswer = `SELECT valid_until_ts, answer FROM server_key_answers WHERE server_name = $1`
)
