package e2ee

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Query names users and their devices; an empty list asks for all devices.
type Query map[matrix.UserID][]matrix.DeviceID

// Answer is what is known of the keys of some users, in the form of the specification.
type Answer struct {
	DeviceKeys  map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"device_keys"`
	Master      map[matrix.UserID]json.RawMessage                     `json:"master_keys,omitempty"`
	SelfSigning map[matrix.UserID]json.RawMessage                     `json:"self_signing_keys,omitempty"`
	UserSigning map[matrix.UserID]json.RawMessage                     `json:"user_signing_keys,omitempty"`
	Failures    map[matrix.ServerName]json.RawMessage                 `json:"failures,omitempty"`
}

func newAnswer() *Answer {
	return &Answer{
		DeviceKeys: map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{},
		Master:     map[matrix.UserID]json.RawMessage{}, SelfSigning: map[matrix.UserID]json.RawMessage{},
		UserSigning: map[matrix.UserID]json.RawMessage{}, Failures: map[matrix.ServerName]json.RawMessage{},
	}
}

// clientAnswer always has its failures, as clients expect.
type clientAnswer struct {
	*Answer
	Failures map[matrix.ServerName]json.RawMessage `json:"failures"`
}

// query is POST /keys/query.
func (s *Service) query(c *httpapi.Call) (any, error) {
	var body struct {
		Timeout *int64 `json:"timeout"`
		Keys    *Query `json:"device_keys"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Keys == nil {
		return nil, matrix.MissingParam("device_keys is missing")
	}
	if err := checkUsers(*body.Keys); err != nil {
		return nil, err
	}
	byServer := split(*body.Keys)
	answer, _, err := s.local(c.Ctx(), c.Caller.User, byServer[s.server], true)
	if err != nil {
		return nil, err
	}
	delete(byServer, s.server)
	if len(byServer) > 0 {
		if err := s.askRemote(c.Ctx(), answer, byServer, timeout(body.Timeout)); err != nil {
			return nil, err
		}
		if err := s.addSignatures(c.Ctx(), answer, c.Caller.User, byServer); err != nil {
			return nil, err
		}
	}
	return clientAnswer{answer, answer.Failures}, nil
}

// split groups a request by server.
func split[T any](m map[matrix.UserID]T) map[matrix.ServerName]map[matrix.UserID]T {
	out := map[matrix.ServerName]map[matrix.UserID]T{}
	for u, v := range m {
		server := u.Server()
		if out[server] == nil {
			out[server] = map[matrix.UserID]T{}
		}
		out[server][u] = v
	}
	return out
}

// QueryLocal answers another server's question for the keys of local users.
func (s *Service) QueryLocal(ctx context.Context, query Query) (*Answer, error) {
	own := Query{}
	for u, devices := range query {
		if u.Server() == s.server && storable(string(u)) {
			own[u] = devices
		}
	}
	answer, _, err := s.local(ctx, "", own, s.deps.ShareNames)
	return answer, err
}

// UserDevices is the body of GET /user/devices/{userId} between servers.
func (s *Service) UserDevices(ctx context.Context, user matrix.UserID) (any, error) {
	if user.Server() != s.server || !storable(string(user)) {
		return nil, matrix.InvalidParam("%q is not a user of this server", clip(string(user)))
	}
	type one struct {
		Device matrix.DeviceID `json:"device_id"`
		Keys   json.RawMessage `json:"keys"`
		Name   string          `json:"device_display_name,omitempty"`
	}
	out := struct {
		User        matrix.UserID   `json:"user_id"`
		Stream      int64           `json:"stream_id"`
		Devices     []one           `json:"devices"`
		Master      json.RawMessage `json:"master_key,omitempty"`
		SelfSigning json.RawMessage `json:"self_signing_key,omitempty"`
	}{User: user, Devices: []one{}}
	// The number is read first: a change in between then comes once more, and is not lost.
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qListStream, string(user)).Scan(&out.Stream) })
	if err != nil {
		return nil, fmt.Errorf("reading device list: %w", err)
	}
	answer, names, err := s.local(ctx, "", Query{user: nil}, s.deps.ShareNames)
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(answer.DeviceKeys[user])) {
		d := one{Device: id, Keys: answer.DeviceKeys[user][id]}
		if s.deps.ShareNames {
			d.Name = names[user][id]
		}
		out.Devices = append(out.Devices, d)
	}
	out.Master, out.SelfSigning = answer.Master[user], answer.SelfSigning[user]
	return out, nil
}

// local answers for local users as far as viewer may see; an empty viewer is another server.
func (s *Service) local(ctx context.Context, viewer matrix.UserID, query Query, withNames bool) (*Answer, map[matrix.UserID]map[matrix.DeviceID]string, error) {
	answer := newAnswer()
	if len(query) == 0 {
		return answer, nil, nil
	}
	list := slices.Collect(maps.Keys(query))
	names, err := s.deps.Devices.DisplayNames(ctx, list)
	if err != nil {
		return nil, nil, fmt.Errorf("reading devices: %w", err)
	}
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		if err := readKeys(tx, answer, query, viewer); err != nil {
			return err
		}
		return mergeSignatures(tx, answer, viewer, list)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading keys: %w", err)
	}
	if withNames {
		for u, devices := range answer.DeviceKeys {
			for id, keys := range devices {
				if name := names[u][id]; name != "" {
					devices[id] = withName(keys, name)
				}
			}
		}
	}
	return answer, names, nil
}

// withName adds the display name to keys, which have no "unsigned" of their own.
func withName(keys json.RawMessage, name string) json.RawMessage {
	quoted, err := json.Marshal(name)
	if err != nil || len(keys) < 2 {
		return keys
	}
	out := make([]byte, 0, len(keys)+len(quoted)+48)
	out = append(out, keys[:len(keys)-1]...)
	if len(keys) > 2 {
		out = append(out, ',')
	}
	out = append(out, `"unsigned":{"device_display_name":`...)
	out = append(out, quoted...)
	return append(out, "}}"...)
}

// readKeys fills in what the tables hold of the users of a query.
func readKeys(tx *sqldb.Tx, answer *Answer, query Query, viewer matrix.UserID) error {
	list := users(slices.Collect(maps.Keys(query)))
	rows, err := tx.Query(qDeviceKeys, list)
	if err != nil {
		return err
	}
	defer rows.Close()
	for u := range query {
		answer.DeviceKeys[u] = map[matrix.DeviceID]json.RawMessage{}
	}
	for rows.Next() {
		var (
			u    matrix.UserID
			id   matrix.DeviceID
			keys string
		)
		if err := rows.Scan(&u, &id, &keys); err != nil {
			return err
		}
		if wanted := query[u]; len(wanted) == 0 || slices.Contains(wanted, id) {
			answer.DeviceKeys[u][id] = json.RawMessage(keys)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	cross, err := sqldb.Select(tx, scanCross, qCrossSigning, list)
	if err != nil {
		return err
	}
	for _, c := range cross {
		switch {
		case c.usage == usageMaster:
			answer.Master[c.user] = json.RawMessage(c.keys)
		case c.usage == usageSelf:
			answer.SelfSigning[c.user] = json.RawMessage(c.keys)
		case c.usage == usageUser && c.user == viewer:
			answer.UserSigning[c.user] = json.RawMessage(c.keys)
		}
	}
	return nil
}

// mergeSignatures adds the signatures that were uploaded apart: those of the owner, and those of the viewer.
//
// Spec: client-server-api#key-and-signature-security
func mergeSignatures(tx *sqldb.Tx, answer *Answer, viewer matrix.UserID, list []matrix.UserID) error {
	rows, err := tx.Query(qSignatures, users(list), string(viewer))
	if err != nil {
		return err
	}
	defer rows.Close()
	type target struct {
		user matrix.UserID
		key  string
	}
	found := map[target][]signature{}
	for rows.Next() {
		var (
			t   target
			sig signature
		)
		if err := rows.Scan(&t.user, &t.key, &sig.user, &sig.key, &sig.value); err != nil {
			return err
		}
		found[t] = append(found[t], sig)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for t, sigs := range found {
		if keys, ok := answer.DeviceKeys[t.user][matrix.DeviceID(t.key)]; ok {
			answer.DeviceKeys[t.user][matrix.DeviceID(t.key)] = withSignatures(keys, sigs)
		}
		if master, ok := answer.Master[t.user]; ok && publicKey(master) == t.key {
			answer.Master[t.user] = withSignatures(master, sigs)
		}
	}
	return nil
}

type signature struct {
	user       matrix.UserID
	key, value string
}

// withSignatures adds signatures to an object.
func withSignatures(b json.RawMessage, sigs []signature) json.RawMessage {
	o, err := parseObject(b)
	if err != nil {
		return b
	}
	all := o.signatures()
	if all == nil {
		all = map[string]map[string]string{}
	}
	for _, sig := range sigs {
		if all[string(sig.user)] == nil {
			all[string(sig.user)] = map[string]string{}
		}
		all[string(sig.user)][sig.key] = sig.value
	}
	if o["signatures"], err = json.Marshal(all); err != nil {
		return b
	}
	out, err := json.Marshal(o)
	if err != nil {
		return b
	}
	return out
}

// addSignatures merges local signatures into the keys of remote users.
func (s *Service) addSignatures(ctx context.Context, answer *Answer, viewer matrix.UserID, byServer map[matrix.ServerName]map[matrix.UserID][]matrix.DeviceID) error {
	var list []matrix.UserID
	for _, query := range byServer {
		list = append(list, slices.Collect(maps.Keys(query))...)
	}
	return s.db.Read(ctx, func(tx *sqldb.Tx) error { return mergeSignatures(tx, answer, viewer, list) })
}

// maxServers is how many servers one request asks at a time.
const maxServers = 16

// eachServer runs fn for every server, a few at a time.
func eachServer[T any](byServer map[matrix.ServerName]T, fn func(server matrix.ServerName, v T)) {
	var wg sync.WaitGroup
	room := make(chan struct{}, maxServers) // full: the next server waits for one to answer
	for server, v := range byServer {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			fn(server, v)
		})
	}
	wg.Wait()
}

// askRemote asks other servers at the same time. What one of them does not answer is taken from the copies kept
// here, and the failure is told.
func (s *Service) askRemote(ctx context.Context, answer *Answer, byServer map[matrix.ServerName]map[matrix.UserID][]matrix.DeviceID, wait time.Duration) error {
	var (
		mu     sync.Mutex
		failed error
	)
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	eachServer(byServer, func(server matrix.ServerName, query map[matrix.UserID][]matrix.DeviceID) {
		got, err := s.askOne(waiting, server, query)
		var kept *Answer
		if err != nil {
			kept = newAnswer()
			// The client's own context: the copies are at hand even when the other server took all the time.
			if err := s.db.Read(ctx, func(tx *sqldb.Tx) error { return readKeys(tx, kept, query, "") }); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
				return
			}
			got = kept
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			answer.Failures[server] = failure(err)
			for u, devices := range got.DeviceKeys {
				if len(devices) == 0 {
					delete(got.DeviceKeys, u) // not known is not the same as none
				}
			}
		}
		maps.Copy(answer.DeviceKeys, got.DeviceKeys)
		maps.Copy(answer.Master, got.Master)
		maps.Copy(answer.SelfSigning, got.SelfSigning)
	})
	return failed
}
