package e2ee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Claim asks for one key of an algorithm for each device.
type Claim map[matrix.UserID]map[matrix.DeviceID]string

// Claimed holds, for each device, a key by "algorithm:id".
type Claimed map[matrix.UserID]map[matrix.DeviceID]map[string]json.RawMessage

// claim is POST /keys/claim.
func (s *Service) claim(c *httpapi.Call) (any, error) {
	var body struct {
		Timeout *int64 `json:"timeout"`
		Keys    *Claim `json:"one_time_keys"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Keys == nil {
		return nil, matrix.MissingParam("one_time_keys is missing")
	}
	if err := checkUsers(*body.Keys); err != nil {
		return nil, err
	}
	byServer := split(*body.Keys)
	claimed, err := s.ClaimLocal(c.Ctx(), byServer[s.server])
	if err != nil {
		return nil, err
	}
	delete(byServer, s.server)
	var (
		mu       sync.Mutex
		failures = map[matrix.ServerName]json.RawMessage{}
	)
	ctx, cancel := context.WithTimeout(c.Ctx(), timeout(body.Timeout))
	defer cancel()
	eachServer(byServer, func(server matrix.ServerName, claim map[matrix.UserID]map[matrix.DeviceID]string) {
		got, err := s.claimOne(ctx, server, claim)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failures[server] = failure(err)
			return
		}
		maps.Copy(claimed, got)
	})
	return struct {
		Keys     Claimed `json:"one_time_keys"`
		Failures any     `json:"failures"`
	}{claimed, failures}, nil
}

// claimOne claims from another server, and takes what was asked for.
func (s *Service) claimOne(ctx context.Context, server matrix.ServerName, claim Claim) (Claimed, error) {
	if s.deps.Remote == nil {
		return nil, errNoFederation
	}
	got, err := s.deps.Remote.ClaimKeys(ctx, server, claim)
	if err != nil {
		log.WithError(err).WithField("server", server).Debug("claiming keys failed")
		return nil, err
	}
	for u, devices := range got {
		for id := range devices {
			if _, ok := claim[u][id]; !ok {
				delete(devices, id)
			}
		}
		if len(devices) == 0 {
			delete(got, u)
		}
	}
	return got, nil
}

// ClaimLocal hands out one-time keys of local users, and fallback keys where there is none left. Each one-time key
// is handed out once: it is deleted by the commit that gives it away, and claims commit one after another.
func (k *Keys) ClaimLocal(ctx context.Context, claim Claim) (Claimed, error) {
	type wanted struct {
		device
		algorithm string
	}
	var list []wanted
	for u, devices := range claim {
		if u.Server() != k.server || !storable(string(u)) {
			continue
		}
		for id, algorithm := range devices {
			if storable(string(id)) && storable(algorithm) {
				list = append(list, wanted{device{u, id}, algorithm})
			}
		}
	}
	claimed := Claimed{}
	if len(list) == 0 {
		return claimed, nil
	}
	_, err := k.log.Append(ctx, len(list), func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		clear(claimed)
		var changes []stream.Change
		for i, w := range list {
			id, key, changed, err := take(tx, w.device, w.algorithm)
			if err != nil {
				return nil, err
			}
			if key == "" {
				continue
			}
			if claimed[w.user] == nil {
				claimed[w.user] = map[matrix.DeviceID]map[string]json.RawMessage{}
			}
			claimed[w.user][w.id] = map[string]json.RawMessage{w.algorithm + ":" + id: json.RawMessage(key)}
			if !changed {
				continue
			}
			c, err := countTx(tx, pos+stream.Pos(i), w.user, w.id)
			if err != nil {
				return nil, err
			}
			changes = append(changes, c)
		}
		return changes, nil
	})
	if err != nil {
		return nil, fmt.Errorf("claiming keys: %w", err)
	}
	return claimed, nil
}

// take takes the oldest one-time key of a device, or else its fallback key, which stays but is used from then on.
func take(tx *sqldb.Tx, d device, algorithm string) (id, key string, changed bool, err error) {
	err = tx.QueryRow(qTakeOneTime, string(d.user), string(d.id), algorithm).Scan(&id, &key)
	if err == nil {
		return id, key, true, nil
	}
	if !errors.Is(err, sqldb.ErrNoRows) {
		return "", "", false, err
	}
	var used bool
	err = tx.QueryRow(qFallback, string(d.user), string(d.id), algorithm).Scan(&id, &key, &used)
	if errors.Is(err, sqldb.ErrNoRows) {
		return "", "", false, nil
	}
	if err != nil || used {
		return id, key, false, err
	}
	_, err = tx.Exec(qUseFallback, string(d.user), string(d.id), algorithm)
	return id, key, true, err
}
