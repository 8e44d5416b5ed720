package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

const (
	stateTimeout = 5 * time.Minute
	stateMax     = 512 << 20 // bytes of an answer with the state of a room
	stateIDsMax  = 32 << 20  // bytes
	// A policy server holds up whoever sends: it has to answer soon, and briefly.
	policyTimeout = 10 * time.Second
	policyMax     = 64 << 10 // bytes
	verifiers     = 32       // signatures checked at a time; some wait for keys of servers that are away
)

// Remote asks other servers on behalf of rooms, keys, profiles and the directory.
type Remote struct {
	client *fedclient.Client
	ring   *serverkeys.Ring
}

// NewRemote makes a Remote.
func NewRemote(client *fedclient.Client, ring *serverkeys.Ring) *Remote { return &Remote{client, ring} }

var (
	_ rooms.Remote     = (*Remote)(nil)
	_ e2ee.Remote      = (*Remote)(nil)
	_ profiles.Remote  = (*Remote)(nil)
	_ directory.Remote = (*Remote)(nil)
)

// path is a path of the federation API.
func path(version string, segments ...string) string {
	return fedclient.Path(append([]string{"_matrix", "federation", version}, segments...)...)
}

// Verify checks the signatures of PDUs; one error for each, nil if good.
//
// Spec: server-server-api#validating-hashes-and-signatures-on-received-events
func (r *Remote) Verify(ctx context.Context, version string, pdus []json.RawMessage) []error {
	errs := make([]error, len(pdus))
	v, err := events.RoomVersion(gomatrixserverlib.RoomVersion(version))
	if err != nil {
		for i := range errs {
			errs[i] = matrix.UnsupportedRoomVersion(version)
		}
		return errs
	}
	var wg sync.WaitGroup
	next := make(chan int, len(pdus))
	for i := range pdus {
		next <- i
	}
	close(next)
	for range min(verifiers, len(pdus)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range next {
				errs[i] = r.verifyOne(ctx, v, pdus[i])
			}
		}()
	}
	wg.Wait()
	return errs
}

// HasKeys is serverkeys.Ring.Has.
func (r *Remote) HasKeys(ctx context.Context, server matrix.ServerName, ask bool) (bool, error) {
	return r.ring.Has(ctx, server, ask)
}

func (r *Remote) verifyOne(ctx context.Context, version gomatrixserverlib.IRoomVersion, raw json.RawMessage) error {
	pdu, err := matrix.CanonicalJSON(raw, false)
	if err != nil {
		return matrix.NotJSON("malformed event: %s", err)
	}
	servers, at, err := events.Signers(pdu, version.Version())
	if err != nil {
		return err
	}
	redacted, err := events.RedactPDU(pdu, version.Version())
	if err != nil {
		return matrix.BadJSON("malformed event: %s", err)
	}
	reqs := make([]gomatrixserverlib.VerifyJSONRequest, len(servers))
	for i, s := range servers {
		reqs[i] = gomatrixserverlib.VerifyJSONRequest{
			ServerName: spec.ServerName(s), AtTS: at, Message: redacted, ValidityCheckingFunc: version.SignatureValidityCheck,
		}
	}
	results, err := r.ring.VerifyJSONs(ctx, reqs)
	if err != nil {
		return fmt.Errorf("verifying an event: %w", err)
	}
	for _, res := range results {
		if res.Error != nil {
			return res.Error
		}
	}
	return nil
}

func (r *Remote) template(ctx context.Context, server matrix.ServerName, kind string, room matrix.RoomID, user matrix.UserID, versions []string) (rooms.RemoteTemplate, error) {
	var q url.Values
	if versions != nil {
		q = url.Values{"ver": versions}
	}
	var out struct {
		Version string          `json:"room_version"`
		Event   json.RawMessage `json:"event"`
	}
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodGet, Server: server, Path: path("v1", kind, string(room), string(user)), Query: q,
	}, &out)
	if out.Version == "" {
		out.Version = "1" // Spec: get_matrixfederationv1make_joinroomiduserid
	}
	return rooms.RemoteTemplate{Version: out.Version, Event: out.Event}, err
}

// MakeJoin asks for the template of a join.
func (r *Remote) MakeJoin(ctx context.Context, server matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (rooms.RemoteTemplate, error) {
	return r.template(ctx, server, "make_join", room, user, versions)
}

// MakeLeave asks for the template of a leave.
func (r *Remote) MakeLeave(ctx context.Context, server matrix.ServerName, room matrix.RoomID, user matrix.UserID) (rooms.RemoteTemplate, error) {
	return r.template(ctx, server, "make_leave", room, user, nil)
}

// MakeKnock asks for the template of a knock.
func (r *Remote) MakeKnock(ctx context.Context, server matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (rooms.RemoteTemplate, error) {
	return r.template(ctx, server, "make_knock", room, user, versions)
}

// ExchangeThirdParty asks for an invitation in place of one that was kept for an address.
func (r *Remote) ExchangeThirdParty(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event json.RawMessage) error {
	return r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPut, Server: server, Path: path("v1", "exchange_third_party_invite", string(room)), Body: event,
	}, nil)
}

// SendJoin hands a join over and gets the state of the room.
func (r *Remote) SendJoin(ctx context.Context, server matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu json.RawMessage) (rooms.RemoteJoin, error) {
	var out struct {
		State     []json.RawMessage `json:"state"`
		AuthChain []json.RawMessage `json:"auth_chain"`
		Event     json.RawMessage   `json:"event"`
	}
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPut, Server: server, Path: path("v2", "send_join", string(room), string(id)), Body: pdu,
		Timeout: stateTimeout, MaxBody: stateMax,
	}, &out)
	return rooms.RemoteJoin{RemoteState: rooms.RemoteState{State: out.State, AuthChain: out.AuthChain}, Event: out.Event}, err
}

// SendLeave hands a leave over.
func (r *Remote) SendLeave(ctx context.Context, server matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu json.RawMessage) error {
	return r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPut, Server: server, Path: path("v2", "send_leave", string(room), string(id)), Body: pdu,
	}, nil)
}

// SendKnock hands a knock over and gets what may be known of the room.
func (r *Remote) SendKnock(ctx context.Context, server matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu json.RawMessage) ([]json.RawMessage, error) {
	var out struct {
		State []json.RawMessage `json:"knock_room_state"`
	}
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPut, Server: server, Path: path("v1", "send_knock", string(room), string(id)), Body: pdu,
	}, &out)
	return out.State, err
}

// Invite hands an invitation to the server of the invited.
func (r *Remote) Invite(ctx context.Context, server matrix.ServerName, version string, room matrix.RoomID, id matrix.EventID, pdu json.RawMessage, stripped []json.RawMessage) (json.RawMessage, error) {
	if stripped == nil {
		stripped = []json.RawMessage{}
	}
	var out struct {
		Event json.RawMessage `json:"event"`
	}
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPut, Server: server, Path: path("v2", "invite", string(room), string(id)),
		Body: map[string]any{"room_version": version, "event": pdu, "invite_room_state": stripped},
	}, &out)
	var fe *fedclient.Error
	if errors.As(err, &fe) && fe.Code == "M_UNRECOGNIZED" && (version == "1" || version == "2") {
		return r.inviteV1(ctx, server, room, id, pdu)
	}
	if err == nil && len(out.Event) == 0 {
		return nil, matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "%s returned no event for an invitation", server)
	}
	return out.Event, err
}

// inviteV1 is the older form, whose answer is a pair. compat: servers from before v2.
func (r *Remote) inviteV1(ctx context.Context, server matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu json.RawMessage) (json.RawMessage, error) {
	var out []json.RawMessage
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPut, Server: server, Path: path("v1", "invite", string(room), string(id)), Body: pdu,
	}, &out)
	if err != nil {
		return nil, err
	}
	var body struct {
		Event json.RawMessage `json:"event"`
	}
	if len(out) != 2 || json.Unmarshal(out[1], &body) != nil || len(body.Event) == 0 {
		return nil, matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "%s returned no event for an invitation", server)
	}
	return body.Event, nil
}

// pduAnswer is the shape of the answers that are lists of events.
type pduAnswer struct {
	PDUs      []json.RawMessage `json:"pdus"`
	Events    []json.RawMessage `json:"events"`
	AuthChain []json.RawMessage `json:"auth_chain"`
}

// MissingEvents asks for the events between two edges of the graph.
func (r *Remote) MissingEvents(ctx context.Context, server matrix.ServerName, room matrix.RoomID, earliest, latest []matrix.EventID, limit int) ([]json.RawMessage, error) {
	var out pduAnswer
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPost, Server: server, Path: path("v1", "get_missing_events", string(room)),
		Body: map[string]any{"earliest_events": earliest, "latest_events": latest, "limit": limit, "min_depth": 0},
	}, &out)
	return out.Events, err
}

// Event asks for one event.
func (r *Remote) Event(ctx context.Context, server matrix.ServerName, id matrix.EventID) (json.RawMessage, error) {
	var out pduAnswer
	err := r.client.JSON(ctx, fedclient.Request{Method: http.MethodGet, Server: server, Path: path("v1", "event", string(id))}, &out)
	if err != nil {
		return nil, err
	}
	if len(out.PDUs) != 1 {
		return nil, matrix.NotFound("%s returned no event %s", server, id)
	}
	return out.PDUs[0], nil
}

// State asks for the state before an event.
func (r *Remote) State(ctx context.Context, server matrix.ServerName, room matrix.RoomID, at matrix.EventID) (rooms.RemoteState, error) {
	var out pduAnswer
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodGet, Server: server, Path: path("v1", "state", string(room)), Query: url.Values{"event_id": {string(at)}},
		Timeout: stateTimeout, MaxBody: stateMax,
	}, &out)
	return rooms.RemoteState{State: out.PDUs, AuthChain: out.AuthChain}, err
}

// StateIDs asks for the names of the events that State would return.
func (r *Remote) StateIDs(ctx context.Context, server matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, chain []matrix.EventID, err error) {
	var out struct {
		State []matrix.EventID `json:"pdu_ids"`
		Chain []matrix.EventID `json:"auth_chain_ids"`
	}
	err = r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodGet, Server: server, Path: path("v1", "state_ids", string(room)), Query: url.Values{"event_id": {string(at)}},
		Timeout: stateTimeout, MaxBody: stateIDsMax,
	}, &out)
	return out.State, out.Chain, err
}

// EventAuth asks for the events that authorise one.
func (r *Remote) EventAuth(ctx context.Context, server matrix.ServerName, room matrix.RoomID, id matrix.EventID) ([]json.RawMessage, error) {
	var out pduAnswer
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodGet, Server: server, Path: path("v1", "event_auth", string(room), string(id)), Timeout: stateTimeout, MaxBody: stateMax,
	}, &out)
	return out.AuthChain, err
}

// Backfill asks for the events before some.
func (r *Remote) Backfill(ctx context.Context, server matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([]json.RawMessage, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	for _, id := range from {
		q.Add("v", string(id))
	}
	var out pduAnswer
	err := r.client.JSON(ctx, fedclient.Request{Method: http.MethodGet, Server: server, Path: path("v1", "backfill", string(room)), Query: q}, &out)
	return out.PDUs, err
}

// Nearest asks for the event next to a time.
func (r *Remote) Nearest(ctx context.Context, server matrix.ServerName, room matrix.RoomID, ts int64, forward bool) (id matrix.EventID, at int64, err error) {
	q := url.Values{"ts": {strconv.FormatInt(ts, 10)}, "dir": {"b"}}
	if forward {
		q.Set("dir", "f")
	}
	var out struct {
		ID matrix.EventID `json:"event_id"`
		TS int64          `json:"origin_server_ts"`
	}
	err = r.client.JSON(ctx, fedclient.Request{Method: http.MethodGet, Server: server, Path: path("v1", "timestamp_to_event", string(room)), Query: q}, &out)
	if err == nil && out.ID == "" {
		err = matrix.NotFound("%s returned no event", server)
	}
	return out.ID, out.TS, err
}

// AskPolicy shows an event to a policy server and returns its signatures. Its own
// words of refusal are for the client, but for those that would speak of the
// client's account.
// Spec: post_matrixpolicyv1sign
func (r *Remote) AskPolicy(ctx context.Context, server matrix.ServerName, pdu json.RawMessage) (json.RawMessage, error) {
	raw, err := r.client.Do(ctx, fedclient.Request{
		Method: http.MethodPost, Server: server, Path: fedclient.Path("_matrix", "policy", "v1", "sign"), Body: pdu,
		Patient: true, Timeout: policyTimeout, MaxBody: policyMax,
	})
	var said *fedclient.Error
	if errors.As(err, &said) && said.Code != "" {
		switch said.Status {
		case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusTooManyRequests:
			e := matrix.NewError(said.Status, said.Code, "%s", said.Msg)
			e.Extra = said.Extra
			return nil, e
		}
	}
	return raw, err
}

// QueryKeys asks a server for the keys of its users.
func (r *Remote) QueryKeys(ctx context.Context, server matrix.ServerName, query e2ee.Query) (*e2ee.Answer, error) {
	for u, devices := range query {
		if devices == nil {
			query[u] = []matrix.DeviceID{}
		}
	}
	out := &e2ee.Answer{}
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPost, Server: server, Path: path("v1", "user", "keys", "query"), Body: map[string]any{"device_keys": query},
	}, out)
	return out, err
}

// ClaimKeys claims one-time keys of a server's users.
func (r *Remote) ClaimKeys(ctx context.Context, server matrix.ServerName, claim e2ee.Claim) (e2ee.Claimed, error) {
	var out struct {
		Keys e2ee.Claimed `json:"one_time_keys"`
	}
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPost, Server: server, Path: path("v1", "user", "keys", "claim"), Body: map[string]any{"one_time_keys": claim},
	}, &out)
	return out.Keys, err
}

// Profile asks a server for the profile of its user, or for one field of it.
func (r *Remote) Profile(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error) {
	q := url.Values{"user_id": {string(user)}}
	if field != "" {
		q.Set("field", field)
	}
	var out map[string]json.RawMessage
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodGet, Server: user.Server(), Path: path("v1", "query", "profile"), Query: q, MaxBody: 1 << 20,
	}, &out)
	return out, err
}

// Alias asks the server of an alias for its room.
func (r *Remote) Alias(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
	var out struct {
		Room    matrix.RoomID       `json:"room_id"`
		Servers []matrix.ServerName `json:"servers"`
	}
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodGet, Server: alias.Server(), Path: path("v1", "query", "directory"),
		Query: url.Values{"room_alias": {string(alias)}}, MaxBody: 4 << 20,
	}, &out)
	if err != nil {
		return "", nil, err
	}
	if _, err := matrix.ParseRoomID(string(out.Room)); err != nil {
		return "", nil, matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "%s returned a malformed room ID", alias.Server())
	}
	return out.Room, out.Servers, nil
}

// PublicRooms asks a server for its published rooms; body is that of the client's request.
func (r *Remote) PublicRooms(ctx context.Context, server matrix.ServerName, body json.RawMessage) (json.RawMessage, error) {
	return r.client.Do(ctx, fedclient.Request{Method: http.MethodPost, Server: server, Path: path("v1", "publicRooms"), Body: body})
}
