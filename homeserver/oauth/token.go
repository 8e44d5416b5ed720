package oauth

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/url"
	"slices"
	"strings"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// formOf reads the parameters that a client sends.
func formOf(c *httpapi.Call) (map[string]string, error) {
	if t, _, err := mime.ParseMediaType(c.R.Header.Get("Content-Type")); err != nil || t != "application/x-www-form-urlencoded" {
		return nil, bad("invalid_request", "the body must be application/x-www-form-urlencoded")
	}
	b, err := io.ReadAll(c.BodyReader())
	if err != nil {
		return nil, bad("invalid_request", "the body is too large or was cut off")
	}
	q, err := url.ParseQuery(string(b))
	if err != nil {
		return nil, bad("invalid_request", "the body cannot be read")
	}
	return params(q)
}

// tokens is the answer of the token endpoint.
type tokens struct {
	Access  string `json:"access_token"`
	Type    string `json:"token_type"`
	Expires int64  `json:"expires_in"`
	Refresh string `json:"refresh_token"`
	Scope   string `json:"scope"`
	ID      string `json:"id_token,omitempty"`
}

func told(s *accounts.Session, scope string) *tokens {
	return &tokens{Access: s.AccessToken, Type: "Bearer", Expires: s.ExpiresInMS / 1000, Refresh: s.RefreshToken, Scope: scope}
}

// token is the token endpoint.
// Spec: client-server-api#grant-types, RFC 6749
func (o *Server) token(c *httpapi.Call) (any, error) {
	q, err := formOf(c)
	if err != nil {
		return answer(nil, err)
	}
	if !slices.Contains(grantTypes, q["grant_type"]) {
		return answer(nil, bad("unsupported_grant_type", "grant_type is not one that this server has"))
	}
	if q["client_id"] == "" {
		return answer(nil, bad("invalid_request", "client_id is needed"))
	}
	cl, err := o.client(c.Ctx(), q["client_id"])
	switch {
	case err != nil:
		return nil, err
	case cl == nil:
		return answer(nil, errNoClient)
	case !slices.Contains(cl.Grants, q["grant_type"]):
		return answer(nil, bad("unauthorized_client", "the client has not registered for this grant_type"))
	}
	switch q["grant_type"] {
	case grantCode:
		return answer(o.exchange(c, cl, q))
	case grantDevice:
		return answer(o.poll(c, cl, q))
	}
	return answer(o.refresh(c, cl, q))
}

// codeRow is a stored code.
type codeRow struct {
	client, redirect, scope, challenge, nonce string
	user                                      matrix.UserID
	device                                    matrix.DeviceID
	authAt, expires                           int64
	used                                      bool
}

// exchange makes a session of a code.
func (o *Server) exchange(c *httpapi.Call, cl *client, q map[string]string) (any, error) {
	if q["code"] == "" || q["code_verifier"] == "" || q["redirect_uri"] == "" {
		return nil, bad("invalid_request", "code, code_verifier and redirect_uri are needed")
	}
	key := hash(q["code"])
	var r codeRow
	err := o.DB.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		return tx.QueryRow(qCode, key).Scan(&r.client, &r.redirect, &r.user, &r.device, &r.scope, &r.challenge, &r.nonce, &r.authAt, &r.expires, &r.used)
	})
	wrong := bad("invalid_grant", "the code is not valid")
	switch {
	case errors.Is(err, sqldb.ErrNoRows):
		return nil, wrong
	case err != nil:
		return nil, fmt.Errorf("reading code: %w", err)
	case r.used:
		return nil, o.replayed(c, r)
	}
	if r.client != cl.ID || r.redirect != q["redirect_uri"] || r.expires <= matrix.Millis(o.Now()) || !verifies(q["code_verifier"], r.challenge) {
		// Whoever has it is not the one it was made for: it is good for nobody now.
		err := o.DB.Write(c.Ctx(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qTakeCode, key)
			return err
		})
		return nil, errors.Join(err, wrong)
	}
	ses, err := o.grant(c, cl, r.user, r.device, r.scope, func(tx *sqldb.Tx) (int64, error) { return tx.Exec(qTakeCode, key) })
	if errors.Is(err, errTaken) {
		return nil, o.replayed(c, r)
	}
	if err != nil {
		return nil, err
	}
	return o.withID(c, told(ses, r.scope), r.user, cl.ID, r.nonce, r.authAt)
}

// withID adds an ID token for clients that ask for one.
func (o *Server) withID(c *httpapi.Call, t *tokens, user matrix.UserID, client, nonce string, authAt int64) (_ any, err error) {
	if slices.Contains(strings.Fields(t.Scope), scopeOpenID) {
		t.ID, err = o.idToken(c.Ctx(), user, client, nonce, authAt)
	}
	return t, err
}

var errTaken = errors.New("it has been used meanwhile")

// grant makes a session in the commit in which take ends what it was promised by; take gives how many it ended.
func (o *Server) grant(c *httpapi.Call, cl *client, user matrix.UserID, device matrix.DeviceID, scope string, take func(tx *sqldb.Tx) (int64, error)) (*accounts.Session, error) {
	g, err := o.Accounts.NewGrant(user, device, cl.shownName("zh"), c.RemoteIP(), cl.ID, scope)
	if err != nil {
		var e *matrix.Error
		if errors.As(err, &e) && e.Code != "M_USER_LOCKED" {
			return nil, bad("invalid_grant", e.Msg)
		}
		return nil, err
	}
	err = o.DB.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		n, err := take(tx)
		if err != nil {
			return err
		}
		if n == 0 {
			return errTaken
		}
		if _, err := tx.Exec(qUseClient, cl.ID, matrix.Millis(o.Now())); err != nil {
			return err
		}
		return o.Accounts.StoreGrant(tx, g)
	})
	if err != nil {
		return nil, fmt.Errorf("creating session: %w", err)
	}
	return o.Accounts.Granted(g), nil
}

// replayed ends the session that was made of a code which is shown again.
// Spec: RFC 6749, section 4.1.2
func (o *Server) replayed(c *httpapi.Call, r codeRow) error {
	clients, err := o.Accounts.ClientsOf(c.Ctx(), r.user)
	if err != nil {
		return err
	}
	if clients[r.device] == r.client {
		log.WithField("user_id", r.user).Warn("a code was shown twice: its session is ended")
		if err := o.Devices.Delete(c.Ctx(), r.user, []matrix.DeviceID{r.device}); err != nil {
			return err
		}
	}
	return bad("invalid_grant", "the code has been used")
}

// verifies is the check of RFC 7636.
func verifies(verifier, challenge string) bool {
	if len(verifier) < 43 || len(verifier) > 128 {
		return false
	}
	sum := sha256.Sum256([]byte(verifier))
	return subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(challenge)) == 1
}

// refresh makes a new pair of a refresh token.
func (o *Server) refresh(c *httpapi.Call, cl *client, q map[string]string) (any, error) {
	if q["refresh_token"] == "" {
		return nil, bad("invalid_request", "refresh_token is needed")
	}
	s, scope, err := o.Accounts.RefreshGrant(c.Ctx(), q["refresh_token"], cl.ID, c.RemoteIP())
	switch {
	case errors.Is(err, accounts.ErrGrantReused):
		log.WithField("client_id", cl.ID).Warn("a refresh token was used twice: its session is ended")
		return nil, bad("invalid_grant", err.Error())
	case errors.Is(err, accounts.ErrGrant):
		return nil, bad("invalid_grant", err.Error())
	case err != nil:
		return nil, err
	}
	return told(s, scope), nil
}

// revoke is the revocation endpoint. Whoever holds a token may end its session.
// Spec: client-server-api#token-revocation, RFC 7009
func (o *Server) revoke(c *httpapi.Call) (any, error) {
	q, err := formOf(c)
	if err != nil {
		return answer(nil, err)
	}
	if q["token"] == "" {
		return answer(nil, bad("invalid_request", "token is needed"))
	}
	if hint := q["token_type_hint"]; hint != "" && hint != "access_token" && hint != "refresh_token" {
		return answer(nil, bad("unsupported_token_type", "token_type_hint is access_token or refresh_token"))
	}
	_, err = o.Accounts.RevokeGrant(c.Ctx(), q["token"])
	return answer(nil, err)
}
