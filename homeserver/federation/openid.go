package federation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const openIDLifetime = time.Hour

const (
	qPutOpenID     = `INSERT INTO openid_tokens (token_hash, user_id, expires_at) VALUES ($1, $2, $3)`
	qExpiredOpenID = `DELETE FROM openid_tokens WHERE expires_at <= $1`
	qOpenID        = `SELECT user_id FROM openid_tokens WHERE token_hash = $1 AND expires_at > $2`
)

// OpenIDRoutes are the two ends of OpenID: a user asks for a token, and whoever was given it asks whose it is. They
// are of use without other servers, too.
//
// Spec: client-server-api#openid, server-server-api#openid
func (f *Federation) OpenIDRoutes() []httpapi.Route {
	return []httpapi.Route{
		{
			Method: http.MethodPost, Path: "/_matrix/client/v3/user/{userId}/openid/request_token", Auth: httpapi.AuthUser,
			RateLimit: true, Handler: f.serveRequestToken,
		},
		{Method: http.MethodGet, Path: "/_matrix/federation/v1/openid/userinfo", Handler: f.serveUserInfo},
	}
}

// tokenHash is how a token is stored.
func tokenHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

func (f *Federation) serveRequestToken(c *httpapi.Call) (any, error) {
	if c.Var("userId") != string(c.Caller.User) {
		return nil, matrix.Forbidden("a token is given for oneself only")
	}
	token, now := matrix.RandomString(40), f.parts.Now()
	err := f.db.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qExpiredOpenID, matrix.Millis(now)); err != nil {
			return err
		}
		_, err := tx.Exec(qPutOpenID, tokenHash(token), string(c.Caller.User), matrix.Millis(now.Add(openIDLifetime)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing an OpenID token: %w", err)
	}
	return map[string]any{
		"access_token": token, "token_type": "Bearer", "matrix_server_name": f.own, "expires_in": int(openIDLifetime.Seconds()),
	}, nil
}

// serveUserInfo tells whose OpenID token it is. Spec: get_matrixfederationv1openiduserinfo
func (f *Federation) serveUserInfo(c *httpapi.Call) (any, error) {
	token := c.Query("access_token")
	if token == "" {
		return nil, matrix.MissingToken()
	}
	user, err := f.OpenIDUser(c.Ctx(), f.own, token)
	if err != nil {
		return nil, err
	}
	return map[string]any{"sub": user}, nil
}

// OpenIDUser finds whose token it is that a server has given, this one or another:
// M_UNKNOWN_TOKEN, or what the other server says, where it is nobody's.
func (f *Federation) OpenIDUser(ctx context.Context, server matrix.ServerName, token string) (user matrix.UserID, err error) {
	if server != f.own {
		var out struct {
			User matrix.UserID `json:"sub"`
		}
		err := f.parts.Client.JSON(ctx, fedclient.Request{
			Method: http.MethodGet, Server: server, Path: path("v1", "openid", "userinfo"), Query: url.Values{"access_token": {token}}, MaxBody: 64 << 10,
		}, &out)
		if err != nil {
			return "", err
		}
		if _, err := matrix.ParseUserID(string(out.User)); err != nil {
			return "", matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "%s returned no user ID", server)
		}
		return out.User, nil
	}
	err = f.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qOpenID, tokenHash(token), matrix.Millis(f.parts.Now())).Scan(&user)
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return "", matrix.UnknownToken(false)
	}
	if err != nil {
		return "", fmt.Errorf("reading an OpenID token: %w", err)
	}
	return user, nil
}
