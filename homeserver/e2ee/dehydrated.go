package e2ee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Dehydration makes and removes devices inside an append.
type Dehydration interface {
	Ensure(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID, displayName, ip string, now time.Time) error
	// DeleteTx removes devices, whose changes take as many positions; Deleted has to
	// follow.
	DeleteTx(tx *sqldb.Tx, first stream.Pos, user matrix.UserID, devices []matrix.DeviceID) ([]stream.Change, error)
	Deleted(user matrix.UserID, devices []matrix.DeviceID)
}

const (
	maxDehydrated     = 1 << 20 // bytes of device_data
	maxDehydratedName = 1024    // bytes
	eventsAtOnce      = 100
)

// dehydratedRoutes are the endpoints of the device that waits for the next log-in: others encrypt to it, and the
// new device reads what they wrote.
//
// Spec: MSC3814
func (s *Service) dehydratedRoutes() []httpapi.Route {
	if s.deps.Dehydration == nil {
		return nil
	}
	const base = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
	route := func(method, path string, limit bool, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthUser, MaxBody: maxUpload, RateLimit: limit, AllowSuspended: true, Handler: h}
	}
	return []httpapi.Route{
		route(http.MethodPut, base, true, s.putDehydrated),
		route(http.MethodGet, base, false, s.getDehydrated),
		route(http.MethodDelete, base, true, s.deleteDehydrated),
		route(http.MethodGet, base+"/{deviceId}/events", false, s.getDehydratedEvents),
		route(http.MethodPost, base+"/{deviceId}/events", false, s.postDehydratedEvents), // compat: clients of the proposal's earlier text
	}
}

// dehydrated is a user's dehydrated device; M_NOT_FOUND if there is none.
func (k *Keys) dehydrated(ctx context.Context, user matrix.UserID) (id matrix.DeviceID, data json.RawMessage, err error) {
	err = k.db.Read(ctx, func(tx *sqldb.Tx) error {
		id, data, err = dehydratedTx(tx, user)
		return err
	})
	if err != nil {
		return "", nil, fmt.Errorf("reading dehydrated device: %w", err)
	}
	if id == "" {
		return "", nil, matrix.NotFound("there is no dehydrated device")
	}
	return id, data, nil
}

func dehydratedTx(tx *sqldb.Tx, user matrix.UserID) (id matrix.DeviceID, data json.RawMessage, err error) {
	var text string
	err = tx.QueryRow(qDehydrated, string(user)).Scan(&id, &text)
	if errors.Is(err, sqldb.ErrNoRows) {
		return "", nil, nil
	}
	return id, json.RawMessage(text), err
}

// dehydration is the body of PUT /dehydrated_device.
type dehydration struct {
	Device   matrix.DeviceID            `json:"device_id"`
	Data     json.RawMessage            `json:"device_data"`
	Name     string                     `json:"initial_device_display_name"`
	Keys     json.RawMessage            `json:"device_keys"`
	OneTime  map[string]json.RawMessage `json:"one_time_keys"`
	Fallback map[string]json.RawMessage `json:"fallback_keys"`
}

func (b *dehydration) check() error {
	switch {
	case b.Device == "":
		return matrix.MissingParam("device_id is missing")
	case len(b.Device) > 255 || !storable(string(b.Device)) || !storable(b.Name):
		return matrix.InvalidParam("a device ID may have 255 bytes and no NUL, as may a name")
	case len(b.Name) > maxDehydratedName:
		return matrix.InvalidParam("a display name may have %d bytes", maxDehydratedName)
	case len(b.Data) == 0:
		return matrix.MissingParam("device_data is missing")
	case len(b.Data) > maxDehydrated:
		return matrix.TooLarge("device_data may have %d bytes", maxDehydrated)
	case len(b.Keys) == 0:
		return matrix.MissingParam("device_keys is missing")
	}
	var d struct {
		Algorithm string `json:"algorithm"`
	}
	if err := json.Unmarshal(b.Data, &d); err != nil || d.Algorithm == "" {
		return matrix.BadJSON("device_data must be an object with an algorithm")
	}
	return nil
}

// putDehydrated replaces the user's dehydrated device, with its keys and all that was sent to the old one, in one
// commit.
func (s *Service) putDehydrated(c *httpapi.Call) (any, error) {
	var b dehydration
	if err := c.Body(&b); err != nil {
		return nil, err
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	user := c.Caller.User
	identity, err := parseDeviceKeys(b.Keys, user, b.Device)
	if err != nil {
		return nil, err
	}
	oneTime, err := parseOneKeys(b.OneTime)
	if err != nil {
		return nil, err
	}
	fallback, err := parseOneKeys(b.Fallback)
	if err != nil {
		return nil, err
	}
	names, err := s.deps.Devices.DisplayNames(c.Ctx(), []matrix.UserID{user})
	if err != nil {
		return nil, fmt.Errorf("reading devices: %w", err)
	}
	var gone []matrix.DeviceID
	_, err = s.log.Append(c.Ctx(), 3, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		gone = nil
		old, _, err := dehydratedTx(tx, user)
		if err != nil {
			return nil, err
		}
		if _, taken := names[user][b.Device]; taken && old != b.Device {
			return nil, matrix.InvalidParam("a device that is in use has this ID")
		}
		var changes []stream.Change
		if old != "" {
			gone = []matrix.DeviceID{old}
			if changes, err = s.deps.Dehydration.DeleteTx(tx, pos, user, gone); err != nil {
				return nil, err
			}
		}
		if err := s.deps.Dehydration.Ensure(tx, user, b.Device, b.Name, "", s.now()); err != nil {
			return nil, err
		}
		if _, err := tx.Exec(qPutDehydrated, string(user), string(b.Device), string(b.Data)); err != nil {
			return nil, err
		}
		more, err := s.storeTx(tx, pos+1, user, b.Device, identity, oneTime, fallback)
		return append(changes, more...), err
	})
	if err != nil {
		return nil, fmt.Errorf("storing dehydrated device: %w", err)
	}
	if len(gone) > 0 {
		s.deps.Dehydration.Deleted(user, gone)
	}
	return map[string]any{"device_id": b.Device}, nil
}

func (s *Service) getDehydrated(c *httpapi.Call) (any, error) {
	id, data, err := s.dehydrated(c.Ctx(), c.Caller.User)
	if err != nil {
		return nil, err
	}
	return map[string]any{"device_id": id, "device_data": data}, nil
}

func (s *Service) deleteDehydrated(c *httpapi.Call) (any, error) {
	user := c.Caller.User
	var id matrix.DeviceID
	_, err := s.log.Append(c.Ctx(), 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		var err error
		if id, _, err = dehydratedTx(tx, user); err != nil || id == "" {
			return nil, err
		}
		return s.deps.Dehydration.DeleteTx(tx, pos, user, []matrix.DeviceID{id})
	})
	if err != nil {
		return nil, fmt.Errorf("deleting dehydrated device: %w", err)
	}
	if id == "" {
		return nil, matrix.NotFound("there is no dehydrated device")
	}
	s.deps.Dehydration.Deleted(user, []matrix.DeviceID{id})
	return map[string]any{"device_id": id}, nil
}

// getDehydratedEvents gives no token with the last page, by which clients know it.
func (s *Service) getDehydratedEvents(c *httpapi.Call) (any, error) {
	msgs, next, more, err := s.dehydratedEvents(c, c.Query("from"))
	if err != nil {
		return nil, err
	}
	body := map[string]any{"events": msgs}
	if more {
		body["next_batch"] = next
	}
	return body, nil
}

// postDehydratedEvents always gives a token: its clients ask on until a page is empty.
func (s *Service) postDehydratedEvents(c *httpapi.Call) (any, error) {
	var q struct {
		Next string `json:"next_batch"`
	}
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	msgs, next, _, err := s.dehydratedEvents(c, q.Next)
	if err != nil {
		return nil, err
	}
	return map[string]any{"events": msgs, "next_batch": next}, nil
}

// dehydratedEvents reads the messages for the dehydrated device after a token. They stay: should the new device be
// lost, another can begin anew.
func (s *Service) dehydratedEvents(c *httpapi.Call, token string) (msgs []json.RawMessage, next string, more bool, err error) {
	from := int64(0)
	if token != "" {
		n, ok := strings.CutPrefix(token, "d")
		if from, err = strconv.ParseInt(n, 10, 64); !ok || err != nil || from < 0 {
			return nil, "", false, matrix.InvalidParam("%q is not a token of this endpoint", clip(token))
		}
	}
	user, asked := c.Caller.User, matrix.DeviceID(c.Var("deviceId"))
	head := s.log.Head()
	upTo := head
	err = s.db.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		id, _, err := dehydratedTx(tx, user)
		if err != nil {
			return err
		}
		if id == "" || id != asked {
			return matrix.Forbidden("%s is not the dehydrated device", clip(string(asked)))
		}
		msgs, upTo, err = s.ToDevice(c.Ctx(), tx, user, id, stream.Pos(from), head, eventsAtOnce)
		return err
	})
	if err != nil {
		return nil, "", false, err
	}
	if msgs == nil {
		msgs = []json.RawMessage{}
	}
	return msgs, "d" + strconv.FormatInt(int64(max(upTo, stream.Pos(from))), 10), upTo < head, nil
}
