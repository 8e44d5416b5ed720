package oauth

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Issuer identifies this authorization server.
func (o *Server) Issuer() string { return o.issuer }

// AccountURL is where people look after their account.
func (o *Server) AccountURL() string { return o.BaseURL + pathAccount }

// metadata is the authorization server metadata.
// Spec: client-server-api#get_matrixclientv1auth_metadata, RFC 8414
func (o *Server) metadata(c *httpapi.Call) (any, error) {
	c.W.Header().Set("Cache-Control", "public, max-age=600")
	m := map[string]any{
		"issuer":                                         o.issuer,
		"authorization_endpoint":                         o.BaseURL + pathAuthorize,
		"token_endpoint":                                 o.BaseURL + pathToken,
		"revocation_endpoint":                            o.BaseURL + pathRevoke,
		"registration_endpoint":                          o.BaseURL + pathRegister,
		"device_authorization_endpoint":                  o.BaseURL + pathDevice,
		"jwks_uri":                                       o.BaseURL + pathKeys,
		"response_types_supported":                       []string{"code"},
		"response_modes_supported":                       []string{"query", "fragment"},
		"grant_types_supported":                          grantTypes,
		"code_challenge_methods_supported":               []string{"S256"},
		"token_endpoint_auth_methods_supported":          []string{"none"},
		"revocation_endpoint_auth_methods_supported":     []string{"none"},
		"authorization_response_iss_parameter_supported": true,
		"scopes_supported":                               []string{"openid", scopeAPI, scopeOldAPI},
		"subject_types_supported":                        []string{"public"},
		"id_token_signing_alg_values_supported":          []string{"RS256"},
		"ui_locales_supported":                           []string{"zh", "en"},
		"account_management_uri":                         o.AccountURL(),
		"account_management_actions_supported":           actions(),
	}
	if open, _ := o.Accounts.RegistrationOpen(); open {
		m["prompt_values_supported"] = []string{"create"}
	}
	return m, nil
}

// authIssuer is the older way for clients to find the metadata.
func (o *Server) authIssuer(*httpapi.Call) (any, error) {
	return map[string]string{"issuer": o.issuer}, nil
}

// signingKey signs ID tokens. The specification knows none, but clients of before it ask for them with the scope openid.
type signingKey struct {
	id  string
	key *rsa.PrivateKey
}

// signer is the key, made when it is first needed.
func (o *Server) signer(ctx context.Context) (*signingKey, error) {
	o.keyMu.Lock()
	defer o.keyMu.Unlock()
	if o.key != nil {
		return o.key, nil
	}
	var id, text string
	err := o.DB.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qKey).Scan(&id, &text) })
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return nil, fmt.Errorf("reading signing key: %w", err)
	}
	if err == nil {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("reading signing key: %w", err)
		}
		k, err := x509.ParsePKCS1PrivateKey(der)
		if err != nil {
			return nil, fmt.Errorf("reading signing key: %w", err)
		}
		o.key = &signingKey{id, k}
		return o.key, nil
	}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("making signing key: %w", err)
	}
	id, text = matrix.RandomString(12), base64.StdEncoding.EncodeToString(x509.MarshalPKCS1PrivateKey(k))
	err = o.DB.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qInsertKey, id, text, matrix.Millis(o.Now()))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing signing key: %w", err)
	}
	o.key = &signingKey{id, k}
	return o.key, nil
}

// publicKeys is the set of keys by which ID tokens are checked.
func (o *Server) publicKeys(c *httpapi.Call) (any, error) {
	k, err := o.signer(c.Ctx())
	if err != nil {
		return nil, err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return map[string]any{"keys": []any{map[string]string{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": k.id,
		"n": b64(k.key.N.Bytes()), "e": b64(big.NewInt(int64(k.key.E)).Bytes()),
	}}}, nil
}

// idToken says to a client who has signed in, and when.
func (o *Server) idToken(ctx context.Context, user matrix.UserID, client, nonce string, authAt int64) (string, error) {
	k, err := o.signer(ctx)
	if err != nil {
		return "", err
	}
	now := o.Now()
	claims := map[string]any{
		"iss": o.issuer, "sub": string(user), "aud": client, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	if authAt != 0 {
		claims["auth_time"] = authAt / 1000
	}
	if nonce != "" {
		claims["nonce"] = nonce
	}
	head, err := json.Marshal(map[string]string{"alg": "RS256", "typ": "JWT", "kid": k.id})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(body)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, k.key, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}
