package threepids

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const identityV2 = "/_matrix/identity/v2"

// unbindTime bounds how long a deactivation waits for identity servers.
const unbindTime = 20 * time.Second

// trusted checks the name of an identity server.
func (t *Threepids) trusted(name string) (matrix.ServerName, error) {
	server := matrix.ServerName(name)
	if !matrix.ValidServerName(name) {
		return "", matrix.InvalidParam("id_server must be the name of a server, with a port if need be")
	}
	if t.opts.Identity == nil || t.opts.Trusted != nil && !t.opts.Trusted(server) {
		return "", matrix.NewError(http.StatusBadRequest, "M_SERVER_NOT_TRUSTED", "this server does not use the identity server %s", server)
	}
	return server, nil
}

// identity makes a request to an identity server. Its errors are those of the server, to be passed on, or say that it
// could not be reached.
func (t *Threepids) identity(ctx context.Context, r fedclient.PlaceRequest, out any) error {
	status, body, err := t.opts.Identity.Place(ctx, r)
	if err != nil {
		log.WithError(err).WithField("id_server", r.Host).Info("an identity server could not be used")
		return matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the identity server %s could not be reached", r.Host)
	}
	if status/100 != 2 {
		var fields map[string]any
		e := matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the identity server %s answered %d", r.Host, status)
		if json.Unmarshal(body, &fields) == nil {
			if code, _ := fields["errcode"].(string); code != "" {
				e.Status, e.Code = status, code
				e.Msg, _ = fields["error"].(string)
			}
		}
		if e.Status == http.StatusUnauthorized {
			// The client's own token is good: it must not think that it has to log in again.
			e.Status = http.StatusForbidden
		}
		if e.Status < 400 || e.Status > 599 {
			e.Status = http.StatusBadGateway
		}
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the identity server %s answered nonsense", r.Host)
	}
	return nil
}

// lookup asks an identity server whose an address is; "" if it does not know.
//
// Spec: identity-service-api#association-lookup
func (t *Threepids) lookup(ctx context.Context, server matrix.ServerName, token, medium, address string) (matrix.UserID, error) {
	var details struct {
		Pepper     string   `json:"lookup_pepper"`
		Algorithms []string `json:"algorithms"`
	}
	err := t.identity(ctx, fedclient.PlaceRequest{Method: http.MethodGet, Host: server, Path: identityV2 + "/hash_details", Token: token}, &details)
	if err != nil {
		return "", err
	}
	algorithm, hashed := "sha256", ""
	switch {
	case slices.Contains(details.Algorithms, "sha256"):
		sum := sha256.Sum256([]byte(address + " " + medium + " " + details.Pepper))
		hashed = base64.RawURLEncoding.EncodeToString(sum[:])
	case slices.Contains(details.Algorithms, "none"):
		algorithm, hashed = "none", address+" "+medium
	default:
		return "", matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the identity server %s knows no way to look up that this server knows", server)
	}
	var found struct {
		Mappings map[string]string `json:"mappings"`
	}
	err = t.identity(ctx, fedclient.PlaceRequest{
		Method: http.MethodPost, Host: server, Path: identityV2 + "/lookup", Token: token,
		Body: map[string]any{"algorithm": algorithm, "pepper": details.Pepper, "addresses": []string{hashed}},
	}, &found)
	if err != nil || found.Mappings[hashed] == "" {
		return "", err
	}
	user, err := matrix.ParseUserID(found.Mappings[hashed])
	if err != nil {
		return "", matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the identity server %s answered nonsense", server)
	}
	return user, nil
}

func (t *Threepids) postBind(c *httpapi.Call) (any, error) {
	var q creds
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	return nil, t.bind(c.Ctx(), c.Caller.User, q)
}

// postOld is the deprecated form of postBind.
func (t *Threepids) postOld(c *httpapi.Call) (any, error) {
	var q struct {
		Creds *creds `json:"three_pid_creds"`
		Old   *creds `json:"threePidCreds"` // what clients of older versions send
	}
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	if q.Creds == nil {
		q.Creds = q.Old
	}
	if q.Creds == nil {
		return nil, matrix.MissingParam("three_pid_creds is needed")
	}
	if t.opts.Fixed {
		return nil, fixed()
	}
	err := t.bind(c.Ctx(), c.Caller.User, *q.Creds)
	switch {
	case matrix.IsCode(err, "M_NO_VALID_SESSION"), matrix.IsCode(err, "M_SESSION_NOT_VALIDATED"), matrix.IsCode(err, "M_SESSION_EXPIRED"):
		return nil, matrix.NewError(http.StatusForbidden, "M_THREEPID_AUTH_FAILED", "the identity server could not verify the credentials")
	}
	return nil, err
}

// bind publishes an address on the identity server that has proven it, and remembers where.
//
// Spec: client-server-api#post_matrixclientv3account3pidbind
func (t *Threepids) bind(ctx context.Context, user matrix.UserID, q creds) error {
	if q.Server == "" || q.IDToken == "" || q.SID == "" || q.Secret == "" {
		return matrix.MissingParam("id_server, id_access_token, sid and client_secret are needed")
	}
	server, err := t.trusted(q.Server)
	if err != nil {
		return err
	}
	var bound struct {
		Medium  string `json:"medium"`
		Address string `json:"address"`
	}
	err = t.identity(ctx, fedclient.PlaceRequest{
		Method: http.MethodPost, Host: server, Path: identityV2 + "/3pid/bind", Token: q.IDToken,
		Body: map[string]string{"sid": q.SID, "client_secret": q.Secret, "mxid": string(user)},
	}, &bound)
	if err != nil {
		return err
	}
	if address, err := Canonical(bound.Medium, bound.Address); err == nil {
		bound.Address = address
	}
	if bound.Medium == "" || len(bound.Address) > 512 {
		return matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the identity server %s does not say what it has published", server)
	}
	err = t.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qBind, string(user), bound.Medium, bound.Address, string(server), matrix.Millis(t.opts.Now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("storing where an address is published: %w", err)
	}
	return nil
}

func (t *Threepids) postUnbind(c *httpapi.Call) (any, error) {
	medium, address, server, err := t.readAddress(c)
	if err != nil {
		return nil, err
	}
	ok, err := t.unbind(c.Ctx(), c.Caller.User, medium, address, server)
	if err != nil {
		return nil, err
	}
	if !ok {
		return map[string]string{"id_server_unbind_result": "no-support"}, nil
	}
	return map[string]string{"id_server_unbind_result": "success"}, nil
}

// published is where an address of a user is known.
type published struct {
	medium, address string
	server          matrix.ServerName
}

func (t *Threepids) binds(ctx context.Context, user matrix.UserID) ([]published, error) {
	var list []published
	err := t.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, func(r *sqldb.Rows) (p published, err error) {
			err = r.Scan(&p.medium, &p.address, &p.server)
			return p, err
		}, qBinds, string(user))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading where addresses are published: %w", err)
	}
	return list, nil
}

// unbind takes an address from an identity server, or, without one, from all where it was published through here. ok
// says that it is published nowhere now; the error is what an identity server has to say.
func (t *Threepids) unbind(ctx context.Context, user matrix.UserID, medium, address string, server matrix.ServerName) (ok bool, err error) {
	servers := []matrix.ServerName{server}
	if server == "" {
		list, err := t.binds(ctx, user)
		if err != nil {
			return false, err
		}
		servers = nil
		for _, p := range list {
			if p.medium == medium && p.address == address {
				servers = append(servers, p.server)
			}
		}
	}
	ok = len(servers) > 0
	for _, s := range servers {
		done, e := t.unbindFrom(ctx, user, published{medium, address, s})
		ok = ok && done
		if e != nil {
			err = e
		}
	}
	return ok, err
}

// unbindFrom asks one identity server, which believes this server's signature.
//
// Spec: identity-service-api#post_matrixidentityv23pidunbind
func (t *Threepids) unbindFrom(ctx context.Context, user matrix.UserID, p published) (ok bool, err error) {
	if t.opts.Identity == nil {
		return false, nil
	}
	status, body, err := t.opts.Identity.Place(ctx, fedclient.PlaceRequest{
		Method: http.MethodPost, Host: p.server, Path: identityV2 + "/3pid/unbind", Signed: true,
		Body: map[string]any{"mxid": user, "threepid": map[string]string{"medium": p.medium, "address": p.address}},
	})
	if err != nil {
		log.WithError(err).WithField("id_server", p.server).Info("an identity server could not be used")
		return false, nil
	}
	if status/100 != 2 {
		var e struct {
			Code  string `json:"errcode"`
			Error string `json:"error"`
		}
		if json.Unmarshal(body, &e) != nil || e.Code == "" || e.Code == "M_UNRECOGNIZED" || status < 400 {
			return false, nil // it does not support this
		}
		if status == http.StatusUnauthorized || status > 599 {
			status = http.StatusForbidden
		}
		return false, matrix.NewError(status, e.Code, "%s", e.Error)
	}
	err = t.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qUnbind, string(user), p.medium, p.address, string(p.server))
		return err
	})
	if err != nil {
		return false, fmt.Errorf("storing where an address is published: %w", err)
	}
	return true, nil
}

// unbindAll takes all addresses of a user from the identity servers; it says whether that succeeded.
func (t *Threepids) unbindAll(ctx context.Context, user matrix.UserID, idServer string) bool {
	ctx, cancel := context.WithTimeout(ctx, unbindTime)
	defer cancel()
	list, err := t.binds(ctx, user)
	if err != nil {
		log.WithError(err).WithField("user_id", user).Warn("addresses of a closed account stay published")
		return false
	}
	if idServer != "" {
		server, err := t.trusted(idServer)
		if err != nil {
			return false
		}
		own, err := t.Of(ctx, user)
		if err != nil {
			return false
		}
		for i := range list {
			list[i].server = server
		}
		for _, c := range own {
			list = append(list, published{c.Medium, c.Address, server})
		}
		slices.SortFunc(list, func(a, b published) int {
			return slices.Compare([]string{a.medium, a.address}, []string{b.medium, b.address})
		})
		list = slices.Compact(list)
	}
	all := true
	for _, p := range list {
		if ok, err := t.unbindFrom(ctx, user, p); err != nil || !ok {
			all = false
		}
	}
	return all
}

// stillValid asks whether a key of an identity server is in force, at the address that came with the invitation.
//
// Spec: client-server-api#third-party-invites, identity-service-api#get_matrixidentityv2pubkeyisvalid
func (t *Threepids) stillValid(ctx context.Context, address, key string) (bool, error) {
	if address == "" {
		return true, nil // in force for ever
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Host == "" || !matrix.ValidServerName(u.Host) || t.opts.Identity == nil {
		return false, nil
	}
	query := u.Query()
	query.Set("public_key", key)
	var answer struct {
		Valid bool `json:"valid"`
	}
	err = t.identity(ctx, fedclient.PlaceRequest{Method: http.MethodGet, Host: matrix.ServerName(u.Host), Path: u.EscapedPath(), Query: query}, &answer)
	return answer.Valid, err
}
