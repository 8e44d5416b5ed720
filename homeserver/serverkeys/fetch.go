package serverkeys

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	log "github.com/sirupsen/logrus"
)

var errResting = errors.New("asked too recently")

// fetchKeys asks every server named in refs once, several at a time, and returns
// the keys that could be had.
func (r *Ring) fetchKeys(ctx context.Context, refs map[keyRef]struct{}) map[keyRef]keyInfo {
	byServer := map[matrix.ServerName][]keyRef{}
	for req := range refs {
		if s := matrix.ServerName(req.ServerName); s != r.own.server {
			byServer[s] = append(byServer[s], req)
		}
	}
	out := map[keyRef]keyInfo{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, fetchParallel) // full: the next server waits for its turn
	for server, wanted := range byServer {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			if _, err := r.refresh(ctx, server); err != nil && !errors.Is(err, errResting) {
				log.WithError(err).WithField("server", server).Debug("cannot fetch server keys")
			}
			mu.Lock()
			defer mu.Unlock()
			r.mu.RLock()
			defer r.mu.RUnlock()
			for _, req := range wanted {
				if res, ok := r.cache[req]; ok {
					out[req] = res
				}
			}
		}()
	}
	wg.Wait()
	return out
}

// refresh fetches, checks, stores and returns the answer of a server; concurrent callers share one fetch.
func (r *Ring) refresh(ctx context.Context, server matrix.ServerName) ([]byte, error) {
	if !r.mayAsk(server) {
		return nil, errResting
	}
	// The fetch is shared, so it must not end with the first caller's request.
	ch := r.flight.DoChan(string(server), func() (any, error) {
		if !r.mayAsk(server) { // another flight has landed meanwhile
			return []byte(nil), errResting
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		raw, err := r.ask(ctx, server)
		r.tried(server, err == nil)
		return raw, err
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case res := <-ch:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.([]byte), nil
	}
}

func (r *Ring) mayAsk(server matrix.ServerName) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return !r.opts.Now().Before(r.tries[server].until)
}

// answers reports whether the newest attempt to have a server's keys went well.
func (r *Ring) answers(server matrix.ServerName) bool {
	if server == r.own.server {
		return true
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	last, ok := r.tries[server]
	return ok && last.wait == 0
}

// Has reports whether the keys that a server uses now are at hand, or can be had, if
// ask says to try.
func (r *Ring) Has(ctx context.Context, server matrix.ServerName, ask bool) (bool, error) {
	var until int64
	var answer string
	err := r.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qAnswer, string(server)).Scan(&until, &answer) })
	switch {
	case err != nil && !errors.Is(err, sqldb.ErrNoRows):
		return false, fmt.Errorf("reading server keys: %w", err)
	case err == nil && until > matrix.Millis(r.opts.Now()):
		return true, nil
	case !ask:
		return false, nil
	}
	_, err = r.refresh(ctx, server)
	return err == nil, ctx.Err()
}

// tried notes the outcome of a fetch and when the next one may be.
func (r *Ring) tried(server matrix.ServerName, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.opts.Now()
	if len(r.tries) > cachedKeys {
		for s, a := range r.tries {
			if now.After(a.until) {
				delete(r.tries, s)
			}
		}
	}
	if ok {
		r.tries[server] = attempt{until: now.Add(unknownKey)}
		return
	}
	wait := min(max(2*r.tries[server].wait, failFirst), failMax)
	r.tries[server] = attempt{until: now.Add(wait), wait: wait}
}

// ask gets a server's keys from itself, else from a notary.
func (r *Ring) ask(ctx context.Context, server matrix.ServerName) ([]byte, error) {
	own := ctx
	if len(r.opts.Notaries) > 0 { // time is left for them where the server says nothing at all
		var cancel context.CancelFunc
		own, cancel = context.WithTimeout(ctx, fetchTimeout/3)
		defer cancel()
	}
	raw, err := r.fetch.ServerKeys(own, server)
	if err == nil {
		var keys gomatrixserverlib.ServerKeys
		if keys, err = checked(server, raw); err == nil {
			return raw, r.store(ctx, keys)
		}
	}
	for _, n := range r.opts.Notaries {
		keys, nerr := r.askNotary(ctx, n, server)
		if nerr == nil {
			return keys.Raw, r.store(ctx, keys)
		}
		err = errors.Join(err, nerr)
	}
	return nil, fmt.Errorf("fetching the keys of %s: %w", server, err)
}

func (r *Ring) askNotary(ctx context.Context, n Notary, server matrix.ServerName) (gomatrixserverlib.ServerKeys, error) {
	entries, err := r.fetch.QueryKeys(ctx, n.Server, server, matrix.Millis(r.opts.Now()))
	if err != nil {
		return gomatrixserverlib.ServerKeys{}, err
	}
	for _, raw := range entries {
		keys, err := checked(server, raw)
		if err != nil {
			continue
		}
		for id, pub := range n.Keys {
			if VerifyWith(n.Server, id, pub, raw) == nil {
				return keys, nil
			}
		}
	}
	return gomatrixserverlib.ServerKeys{}, fmt.Errorf("notary %s has no trusted answer for %s", n.Server, server)
}

// checked parses an answer and checks that it is of this server and signed with every key that it lists.
func checked(server matrix.ServerName, raw []byte) (gomatrixserverlib.ServerKeys, error) {
	var keys gomatrixserverlib.ServerKeys
	if err := json.Unmarshal(raw, &keys); err != nil {
		return keys, fmt.Errorf("decoding server keys: %w", err)
	}
	keys.Raw = raw
	if keys.ServerName != spec.ServerName(server) || keys.ValidUntilTS == 0 {
		return keys, errors.New("the answer is not a key list of this server")
	}
	signed := false
	for id, key := range keys.VerifyKeys {
		if !strings.HasPrefix(string(id), "ed25519:") {
			continue
		}
		if err := VerifyWith(server, id, ed25519.PublicKey(key.Key), raw); err != nil {
			return keys, fmt.Errorf("checking a key list: %w", err)
		}
		signed = true
	}
	if !signed {
		return keys, errors.New("the answer lists no key in use")
	}
	return keys, nil
}

// store writes an answer with its keys and remembers them.
func (r *Ring) store(ctx context.Context, keys gomatrixserverlib.ServerKeys) error {
	rows := map[gomatrixserverlib.KeyID]keyInfo{}
	for id, k := range keys.OldVerifyKeys {
		if len(k.Key) == 32 && k.ExpiredTS != 0 {
			rows[id] = keyInfo{VerifyKey: k.VerifyKey, ExpiredTS: k.ExpiredTS}
		}
	}
	for id, k := range keys.VerifyKeys {
		if len(k.Key) == 32 {
			rows[id] = keyInfo{VerifyKey: k, ValidUntilTS: keys.ValidUntilTS}
		}
	}
	now := matrix.Millis(r.opts.Now())
	err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
		for id, k := range rows {
			if _, err := tx.Exec(qStoreKey, string(keys.ServerName), string(id), []byte(k.Key),
				clampMillis(k.ValidUntilTS), clampMillis(k.ExpiredTS)); err != nil {
				return err
			}
		}
		_, err := tx.Exec(qStoreAnswer, string(keys.ServerName), clampMillis(keys.ValidUntilTS), now, string(keys.Raw))
		return err
	})
	if err != nil {
		return fmt.Errorf("storing the keys of %s: %w", keys.ServerName, err)
	}
	for id, k := range rows {
		r.remember(keyRef{ServerName: keys.ServerName, KeyID: id}, k)
	}
	return nil
}

// clampMillis keeps a foreign time inside what the column holds.
func clampMillis(ts spec.Timestamp) int64 {
	const latest = 1 << 53
	if ts > latest {
		return latest
	}
	return int64(ts)
}
