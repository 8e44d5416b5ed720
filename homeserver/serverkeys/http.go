package serverkeys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	log "github.com/sirupsen/logrus"
)

// maxQueried bounds the servers of one notary request.
const maxQueried = 100

// Routes are the endpoints under /_matrix/key/v2.
func (r *Ring) Routes() []httpapi.Route {
	return []httpapi.Route{
		{Method: http.MethodGet, Path: "/_matrix/key/v2/server", Handler: r.serveOwn},
		{Method: http.MethodGet, Path: "/_matrix/key/v2/server/{keyId}", Handler: r.serveOwn}, // compat: the key ID is ignored
		{Method: http.MethodGet, Path: "/_matrix/key/v2/query/{serverName}", Handler: r.serveQuery},
		{Method: http.MethodPost, Path: "/_matrix/key/v2/query", Handler: r.serveBulkQuery},
	}
}

func (r *Ring) serveOwn(*httpapi.Call) (any, error) {
	raw, err := r.published()
	if err != nil {
		return nil, err
	}
	return httpapi.Raw(raw), nil
}

// published gives the own signed keys, signed anew every hour.
func (r *Ring) published() ([]byte, error) {
	r.pubMu.Lock()
	defer r.pubMu.Unlock()
	now := r.opts.Now()
	if r.pub != nil && now.Sub(r.pubTime) < time.Hour && !now.Before(r.pubTime) {
		return r.pub, nil
	}
	raw, err := r.own.published(now)
	if err != nil {
		return nil, err
	}
	r.pub, r.pubTime = raw, now
	return raw, nil
}

type keysAnswer struct {
	ServerKeys []json.RawMessage `json:"server_keys"`
}

func (r *Ring) serveQuery(c *httpapi.Call) (any, error) {
	server := matrix.ServerName(c.Var("serverName"))
	if !matrix.ValidServerName(string(server)) {
		return nil, matrix.InvalidParam("%q is not a server name", string(server))
	}
	minValid := matrix.Millis(r.opts.Now())
	if v := c.Query("minimum_valid_until_ts"); v != "" {
		if _, err := fmt.Sscan(v, &minValid); err != nil {
			return nil, matrix.InvalidParam("minimum_valid_until_ts is not a number")
		}
	}
	return r.answer(c.Ctx(), map[matrix.ServerName]int64{server: minValid})
}

func (r *Ring) serveBulkQuery(c *httpapi.Call) (any, error) {
	var body struct {
		ServerKeys map[matrix.ServerName]map[string]struct {
			MinimumValidUntilTS int64 `json:"minimum_valid_until_ts"`
		} `json:"server_keys"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.ServerKeys == nil {
		return nil, matrix.MissingParam("server_keys is missing")
	}
	if len(body.ServerKeys) > maxQueried {
		return nil, matrix.InvalidParam("more than %d servers", maxQueried)
	}
	now := matrix.Millis(r.opts.Now())
	wanted := make(map[matrix.ServerName]int64, len(body.ServerKeys))
	for server, keys := range body.ServerKeys {
		if !matrix.ValidServerName(string(server)) {
			continue // offline for ever
		}
		wanted[server] = now
		for _, k := range keys {
			if k.MinimumValidUntilTS > 0 {
				wanted[server] = max(wanted[server], k.MinimumValidUntilTS)
			}
		}
	}
	return r.answer(c.Ctx(), wanted)
}

// answer gathers the signed keys of the servers, each valid until at least the time given if it can be had.
func (r *Ring) answer(ctx context.Context, wanted map[matrix.ServerName]int64) (any, error) {
	out := keysAnswer{ServerKeys: []json.RawMessage{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, fetchParallel) // full: the next server waits for its turn
	for server, minValid := range wanted {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			raw, err := r.notarised(ctx, server, minValid)
			if err != nil {
				log.WithError(err).WithField("server", server).Debug("no keys to answer a query with")
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out.ServerKeys = append(out.ServerKeys, raw)
		}()
	}
	wg.Wait()
	return out, nil
}

// notarised is a server's answer with this server's signature added.
func (r *Ring) notarised(ctx context.Context, server matrix.ServerName, minValid int64) ([]byte, error) {
	if server == r.own.server {
		return r.published()
	}
	validUntil, raw, err := r.storedAnswer(ctx, server)
	if err != nil {
		return nil, err
	}
	if raw == nil || validUntil < minValid {
		fresh, ferr := r.refresh(ctx, server)
		if ferr == nil {
			raw = fresh
		} else if raw == nil {
			return nil, ferr
		}
	}
	return r.own.SignJSON(raw)
}

func (r *Ring) storedAnswer(ctx context.Context, server matrix.ServerName) (validUntil int64, raw []byte, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		var s string
		err := tx.QueryRow(qAnswer, string(server)).Scan(&validUntil, &s)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		raw = []byte(s)
		return err
	})
	if err != nil {
		return 0, nil, fmt.Errorf("reading stored keys: %w", err)
	}
	return validUntil, raw, nil
}
