package e2ee

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// inboxState is kept for devices that have had messages: the position of the newest, and up to where the device has
// taken them. Both only grow, so a sync with nothing new makes no query.
type inboxState struct{ last, acked stream.Pos }

func (k *Keys) loadInbox(tx *sqldb.Tx) error {
	rows, err := tx.Query(qWaiting)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			d    device
			last stream.Pos
		)
		if err := rows.Scan(&d.user, &d.id, &last); err != nil {
			return err
		}
		k.inbox[d] = inboxState{last: last}
	}
	return rows.Err()
}

// ToDevice returns the messages for a device in (from, to], the oldest first and at most limit, and the position
// that they reach: the sync token for to-device messages must not go beyond it.
func (k *Keys) ToDevice(_ context.Context, tx *sqldb.Tx, user matrix.UserID, id matrix.DeviceID, from, to stream.Pos, limit int) (msgs []json.RawMessage, upTo stream.Pos, err error) {
	d := device{user, id}
	k.mu.RLock()
	state := k.inbox[d]
	k.mu.RUnlock()
	if state.last <= max(from, state.acked) {
		return nil, to, nil
	}
	rows, err := tx.Query(qMessages, string(user), string(id), int64(from), int64(to), limit+1)
	if err != nil {
		return nil, 0, fmt.Errorf("reading to-device messages: %w", err)
	}
	defer rows.Close()
	upTo = to
	var last stream.Pos
	for rows.Next() {
		var (
			pos stream.Pos
			msg string
		)
		if err := rows.Scan(&pos, &msg); err != nil {
			return nil, 0, fmt.Errorf("reading to-device messages: %w", err)
		}
		if len(msgs) == limit {
			upTo = last // there is more
			break
		}
		msgs, last = append(msgs, json.RawMessage(msg)), pos
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("reading to-device messages: %w", err)
	}
	return msgs, upTo, nil
}

// HasToDevice reports whether messages beyond from wait for a device, without a query.
func (k *Keys) HasToDevice(user matrix.UserID, id matrix.DeviceID, from stream.Pos) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	state := k.inbox[device{user, id}]
	return state.last > max(from, state.acked)
}

// AckToDevice deletes the messages up to a position, which the device has shown to have: it came back with the sync
// token that it got with them.
func (k *Keys) AckToDevice(ctx context.Context, user matrix.UserID, id matrix.DeviceID, upTo stream.Pos) error {
	d := device{user, id}
	k.mu.RLock()
	state, ok := k.inbox[d]
	k.mu.RUnlock()
	if !ok || state.last <= state.acked || upTo <= state.acked {
		return nil
	}
	err := k.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qAckMessages, string(user), string(id), int64(upTo))
		return err
	})
	if err != nil {
		return fmt.Errorf("deleting to-device messages: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	state = k.inbox[d]
	state.acked = max(state.acked, upTo)
	k.inbox[d] = state
	return nil
}

// toDeviceBody is the body of PUT /sendToDevice.
type toDeviceBody struct {
	Messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"messages"`
}

// sendToDevice is PUT /sendToDevice/{eventType}/{txnId}.
func (s *Service) sendToDevice(c *httpapi.Call) (any, error) {
	typ, txn := c.Var("eventType"), c.Var("txnId")
	if !storable(typ) || !storable(txn) || len(typ) > 255 || len(txn) > 255 {
		return nil, matrix.InvalidParam("the event type and the transaction ID must be text of at most 255 bytes")
	}
	var body toDeviceBody
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Messages == nil {
		return nil, matrix.MissingParam("messages is missing")
	}
	if err := checkUsers(body.Messages); err != nil {
		return nil, err
	}
	if err := checkMessages(body.Messages); err != nil {
		return nil, err
	}
	return nil, s.send(c.Ctx(), outgoing{sender: c.Caller.User, typ: typ, scope: c.Caller.Device, txn: txn}, body.Messages)
}

func checkMessages(messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage) error {
	for _, devices := range messages {
		for _, content := range devices {
			if len(content) == 0 || content[0] != '{' {
				return matrix.BadJSON("a message must be a JSON object")
			}
		}
	}
	return nil
}

// outgoing is what the messages of one request have in common. A request is known by sender, scope and txn.
type outgoing struct {
	sender matrix.UserID
	typ    string
	scope  matrix.DeviceID
	txn    string
}

// allDevices stands for every device of a user.
const allDevices = "*"

// local message, ready to be stored.
type delivery struct {
	device
	message string
}

// send puts messages into the inboxes of local devices and on their way to other servers, in one commit with the
// transaction ID: a request that is repeated does nothing.
func (s *Service) send(ctx context.Context, o outgoing, messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage) error {
	byServer := split(messages)
	deliveries, err := s.deliveries(ctx, o, byServer[s.server])
	if err != nil {
		return err
	}
	type parcel struct {
		server  matrix.ServerName
		user    matrix.UserID
		content string
	}
	var parcels []parcel
	for server, m := range byServer {
		if server == s.server || s.deps.Remote == nil {
			continue
		}
		content, err := json.Marshal(directToDevice{Sender: o.sender, Type: o.typ, ID: matrix.RandomString(24), Messages: m})
		if err != nil {
			return err
		}
		var first matrix.UserID
		for u := range m {
			first = u
			break
		}
		parcels = append(parcels, parcel{server, first, string(content)})
	}
	ts := s.now().UnixMilli()
	_, err = s.log.Append(ctx, max(len(deliveries)+len(parcels), 1), func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		n, err := tx.Exec(qPutTxn, string(o.sender), string(o.scope), o.txn, ts)
		if err != nil || n == 0 {
			return nil, err
		}
		changes := make([]stream.Change, 0, len(deliveries)+len(parcels))
		for i := range deliveries {
			d := &deliveries[i]
			if _, err := tx.Exec(qPutMessage, string(d.user), string(d.id), int64(pos), d.message); err != nil {
				return nil, err
			}
			s.expect(d.device, pos)
			changes = append(changes, stream.Change{Pos: pos, Kind: stream.KindToDevice, User: d.user, Payload: d.id})
			pos++
		}
		for _, p := range parcels {
			if _, err := tx.Exec(qPutRemote, int64(pos), string(p.server), p.content); err != nil {
				return nil, err
			}
			changes = append(changes, stream.Change{Pos: pos, Kind: stream.KindToDevice, User: p.user})
			pos++
		}
		return changes, nil
	})
	if err != nil {
		return fmt.Errorf("sending to devices: %w", err)
	}
	return nil
}

// expect notes that a message may wait at pos. It is called before the commit: should that fail, the next sync
// makes a query in vain.
func (k *Keys) expect(d device, pos stream.Pos) {
	k.mu.Lock()
	defer k.mu.Unlock()
	state := k.inbox[d]
	state.last = max(state.last, pos)
	k.inbox[d] = state
}

// deliveries finds the devices that the messages are for. Those to unknown devices are dropped.
func (s *Service) deliveries(ctx context.Context, o outgoing, messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage) ([]delivery, error) {
	if len(messages) == 0 {
		return nil, nil
	}
	known, err := s.deps.Devices.DisplayNames(ctx, slices.Collect(maps.Keys(messages)))
	if err != nil {
		return nil, fmt.Errorf("reading devices: %w", err)
	}
	var out []delivery
	for u, devices := range messages {
		for id := range known[u] {
			content, ok := devices[id]
			if !ok {
				if content, ok = devices[allDevices]; !ok {
					continue
				}
			}
			msg, err := json.Marshal(struct {
				Content json.RawMessage `json:"content"`
				Sender  matrix.UserID   `json:"sender"`
				Type    string          `json:"type"`
			}{content, o.sender, o.typ})
			if err != nil {
				return nil, err
			}
			out = append(out, delivery{device{u, id}, string(msg)})
		}
	}
	return out, nil
}

// directToDevice is the content of an m.direct_to_device EDU.
type directToDevice struct {
	Sender   matrix.UserID                                         `json:"sender"`
	Type     string                                                `json:"type"`
	ID       string                                                `json:"message_id"`
	Messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"messages"`
}

// DirectToDevice takes in an m.direct_to_device of another server.
//
// Spec: server-server-api#send-to-device-messaging
func (s *Service) DirectToDevice(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var m directToDevice
	if err := json.Unmarshal(content, &m); err != nil {
		return matrix.BadJSON("the to-device message is malformed")
	}
	if _, err := matrix.ParseUserID(string(m.Sender)); err != nil || m.Sender.Server() != origin || origin == s.server {
		return matrix.Forbidden("%s cannot send for %s", origin, clip(string(m.Sender)))
	}
	if m.Type == "" || m.ID == "" || len(m.ID) > 255 || len(m.Type) > 255 || !storable(m.Type+m.ID+string(m.Sender)) {
		return matrix.InvalidParam("type and message_id are needed")
	}
	if err := checkMessages(m.Messages); err != nil {
		return err
	}
	own := map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{}
	for u, devices := range m.Messages {
		if u.Server() == s.server && storable(string(u)) && !strings.ContainsAny(string(u), "\n") {
			own[u] = devices
		}
	}
	return s.send(ctx, outgoing{sender: m.Sender, typ: m.Type, txn: m.ID}, own)
}

// Parcel is an m.direct_to_device EDU for another server.
type Parcel struct {
	Pos     stream.Pos
	Server  matrix.ServerName
	Content json.RawMessage
}

// Outgoing returns the to-device EDUs of (from, to]. A KindToDevice change of a remote user announces one. Federation
// puts them into its own queue, and then calls DropOutgoing.
func (k *Keys) Outgoing(ctx context.Context, from, to stream.Pos) ([]Parcel, error) {
	var out []Parcel
	err := k.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		out, err = sqldb.Select(tx, func(r *sqldb.Rows) (p Parcel, err error) {
			var content string
			err = r.Scan(&p.Pos, &p.Server, &content)
			p.Content = json.RawMessage(content)
			return p, err
		}, qRemote, int64(from), int64(to))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading outgoing to-device messages: %w", err)
	}
	return out, nil
}

// DropOutgoing deletes the EDUs up to a position, which are safe in federation's queue.
func (k *Keys) DropOutgoing(tx *sqldb.Tx, upTo stream.Pos) error {
	_, err := tx.Exec(qDropRemote, int64(upTo))
	return err
}
