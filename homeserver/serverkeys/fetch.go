package serverkeys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	log "github.com/sirupsen/logrus"
)

var errResting = errors.New("asked too recently")

// fetchKeys asks every server named in reqs once, several at a time.
func (r *Ring) fetchKeys(ctx context.Context, reqs map[gomatrixserverlib.PublicKeyLookupRequest]spec.Timestamp) (map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult, error) {
	byServer := map[matrix.ServerName][]gomatrixserverlib.PublicKeyLookupRequest{}
	for req := range reqs {
		if s := matrix.ServerName(req.ServerName); s != r.own.server {
			byServer[s] = append(byServer[s], req)
		}
	}
	out := map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult{}
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
	return out, nil
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
	raw, err := r.fetch.ServerKeys(ctx, server)
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
			if gomatrixserverlib.VerifyJSON(string(n.Server), id, pub, raw) == nil {
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
	if checks, _ := gomatrixserverlib.CheckKeys(spec.ServerName(server), time.Unix(0, 0), keys); !checks.AllChecksOK {
		return keys, errors.New("the answer is not a signed key list of this server")
	}
	return keys, nil
}

// store writes an answer with its keys and remembers them.
func (r *Ring) store(ctx context.Context, keys gomatrixserverlib.ServerKeys) error {
	rows := map[gomatrixserverlib.KeyID]gomatrixserverlib.PublicKeyLookupResult{}
	for id, k := range keys.OldVerifyKeys {
		if len(k.Key) == 32 && k.ExpiredTS != 0 {
			rows[id] = gomatrixserverlib.PublicKeyLookupResult{VerifyKey: k.VerifyKey, ExpiredTS: k.ExpiredTS}
		}
	}
	for id, k := range keys.VerifyKeys {
		if len(k.Key) == 32 {
			rows[id] = gomatrixserverlib.PublicKeyLookupResult{VerifyKey: k, ValidUntilTS: keys.ValidUntilTS}
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
		r.remember(gomatrixserverlib.PublicKeyLookupRequest{ServerName: keys.ServerName, KeyID: id}, k)
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
