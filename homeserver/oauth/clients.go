package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// The ways to a session.
const (
	grantCode    = "authorization_code"
	grantRefresh = "refresh_token"
	grantDevice  = "urn:ietf:params:oauth:grant-type:device_code"
)

var grantTypes = []string{grantCode, grantRefresh, grantDevice}

// client is what a client says of itself.
// Spec: client-server-api#client-metadata
type client struct {
	ID        string `json:"-"`
	used      bool
	checkedAt int64

	Name         string            `json:"client_name,omitempty"`
	URI          string            `json:"client_uri"`
	LogoURI      string            `json:"logo_uri,omitempty"`
	TermsURI     string            `json:"tos_uri,omitempty"`
	PolicyURI    string            `json:"policy_uri,omitempty"`
	Redirects    []string          `json:"redirect_uris,omitempty"`
	Responses    []string          `json:"response_types"`
	Grants       []string          `json:"grant_types"`
	AuthMethod   string            `json:"token_endpoint_auth_method"`
	Application  string            `json:"application_type"`
	Translations map[string]string `json:"-"` // "client_name#zh" and the like
}

// Bounds of a registration.
const (
	maxRedirects    = 16
	maxClientName   = 100 // characters
	maxTranslations = 20
	maxUnused       = 5000 // clients without a session
	unusedKept      = 24 * time.Hour
	recheckAfter    = 14 * 24 * time.Hour
	clientIDLength  = 27 // of 32 bytes in base64: 162 bits
)

// stored is a client as it is kept and told: the fields and the translations beside each other.
func (c *client) stored() (json.RawMessage, error) {
	b, err := json.Marshal(c)
	if err != nil || len(c.Translations) == 0 {
		return b, err
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	for k, v := range c.Translations {
		m[k] = v
	}
	return json.Marshal(m)
}

// parseClient reads the metadata of a registration and checks them.
func parseClient(b []byte) (*client, error) {
	c := &client{Responses: []string{"code"}, Grants: []string{grantCode}, Application: "web", AuthMethod: "none"}
	if err := httpapi.Decode(b, c); err != nil {
		return nil, bad("invalid_client_metadata", err.Error())
	}
	base := httpsURI(c.URI)
	if base == nil || base.Fragment != "" || isLoopback(base.Hostname()) {
		return nil, bad("invalid_client_metadata", "client_uri must be an https address without user and password")
	}
	c.Name = cleanName(c.Name)
	c.Responses = known(c.Responses, "code")
	c.Grants = known(c.Grants, grantTypes...)
	switch {
	case c.AuthMethod != "none":
		return nil, bad("invalid_client_metadata", "token_endpoint_auth_method can only be none: clients keep no secret")
	case c.Application != "web" && c.Application != "native":
		return nil, bad("invalid_client_metadata", "application_type is web or native")
	case !slices.Contains(c.Grants, grantCode) && !slices.Contains(c.Grants, grantDevice):
		return nil, bad("invalid_client_metadata", "grant_types names no way to log in that this server has")
	case slices.Contains(c.Grants, grantCode) && !slices.Contains(c.Responses, "code"):
		return nil, bad("invalid_client_metadata", "response_types must name code")
	case slices.Contains(c.Grants, grantCode) && len(c.Redirects) == 0:
		return nil, bad("invalid_redirect_uri", "redirect_uris is needed")
	case len(c.Redirects) > maxRedirects:
		return nil, bad("invalid_redirect_uri", fmt.Sprintf("there may be %d redirect_uris", maxRedirects))
	}
	for _, r := range c.Redirects {
		if p := redirectProblem(r, base, c.Application == "native"); p != "" {
			return nil, bad("invalid_redirect_uri", "a redirect address is not possible: "+p)
		}
	}
	for name, v := range map[string]string{"logo_uri": c.LogoURI, "tos_uri": c.TermsURI, "policy_uri": c.PolicyURI} {
		if v != "" && !ownPage(v, base) {
			return nil, bad("invalid_client_metadata", name+" must be https and on the host of client_uri")
		}
	}
	return c, c.translations(b, base)
}

func ownPage(s string, base *url.URL) bool {
	u := httpsURI(s)
	return u != nil && below(u, base)
}

// translations reads "client_name#zh" and the like.
// Spec: client-server-api#metadata-localization
func (c *client) translations(b []byte, base *url.URL) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return bad("invalid_client_metadata", "it is no JSON object")
	}
	for k, raw := range all {
		name, tag, ok := strings.Cut(k, "#")
		if !ok || !slices.Contains([]string{"client_name", "logo_uri", "tos_uri", "policy_uri"}, name) {
			continue
		}
		var v string
		if len(tag) == 0 || len(tag) > 35 || strings.Trim(strings.ToLower(tag), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" ||
			json.Unmarshal(raw, &v) != nil {
			return bad("invalid_client_metadata", "a translation is malformed")
		}
		if name == "client_name" {
			v = cleanName(v)
		} else if !ownPage(v, base) {
			return bad("invalid_client_metadata", name+" must be https and on the host of client_uri")
		}
		if len(c.Translations) == maxTranslations {
			return bad("invalid_client_metadata", "there are too many translations")
		}
		if c.Translations == nil {
			c.Translations = map[string]string{}
		}
		c.Translations[k] = v
	}
	return nil
}

// in is a text of the client in a language.
func (c *client) in(name, otherwise, lang string) string {
	for _, tag := range []string{lang, map[string]string{"zh": "zh-CN", "en": "en-US"}[lang], map[string]string{"zh": "zh-Hans", "en": "en-GB"}[lang]} {
		if v := c.Translations[name+"#"+tag]; v != "" {
			return v
		}
	}
	return otherwise
}

// shownName is what the client is called on a page; its host stands beside it, as the name is but what it claims.
func (c *client) shownName(lang string) string {
	if n := c.in("client_name", c.Name, lang); n != "" {
		return n
	}
	return c.host()
}

func (c *client) host() string {
	if u := httpsURI(c.URI); u != nil {
		return u.Hostname()
	}
	return c.URI
}

// cleanName keeps what a name may show: no control characters, none that turn the direction of writing.
func cleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if runes := []rune(s); len(runes) > maxClientName {
		s = string(runes[:maxClientName])
	}
	return s
}

// known keeps the values that this server knows, each once and in its own order.
func known(list []string, possible ...string) []string {
	out := []string{}
	for _, p := range possible {
		if slices.Contains(list, p) {
			out = append(out, p)
		}
	}
	return out
}

// register is dynamic client registration.
// Spec: client-server-api#dynamic-client-registration-flow, RFC 7591
func (o *Server) register(c *httpapi.Call) (any, error) {
	b, err := c.RawBody()
	if err != nil {
		return answer(nil, bad("invalid_client_metadata", "the body must be a JSON object"))
	}
	cl, err := parseClient(b)
	if err != nil {
		return answer(nil, err)
	}
	stored, err := cl.stored()
	if err != nil {
		return nil, err
	}
	// The ID follows from the metadata, so that all installations of a client are one row.
	sum := sha256.Sum256(stored)
	cl.ID = base64.RawURLEncoding.EncodeToString(sum[:])[:clientIDLength]
	if err := o.keepClient(c.Ctx(), cl.ID, stored); err != nil {
		return answer(nil, err)
	}
	told := map[string]any{}
	if err := json.Unmarshal(stored, &told); err != nil {
		return nil, err
	}
	told["client_id"] = cl.ID
	return httpapi.Status{Code: http.StatusCreated, Body: told}, nil
}

// keepClient stores a client that is new, and notes that one without a session was asked for again.
func (o *Server) keepClient(ctx context.Context, id string, stored []byte) error {
	now := o.Now()
	have, err := o.client(ctx, id)
	if err != nil {
		return err
	}
	if have != nil && (have.used || now.Sub(time.UnixMilli(have.checkedAt)) < unusedKept/24) {
		return nil
	}
	full := false
	err = o.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if have == nil {
			var n int
			if err := tx.QueryRow(qUnusedClients).Scan(&n); err != nil {
				return err
			}
			if n >= maxUnused { // who has just registered is about to log in; the others have not come back
				if _, err := tx.Exec(qDropUnused, matrix.Millis(now.Add(-unusedKept/96))); err != nil {
					return err
				}
				if err := tx.QueryRow(qUnusedClients).Scan(&n); err != nil {
					return err
				}
			}
			if full = n >= maxUnused; full {
				return nil
			}
		}
		_, err := tx.Exec(qInsertClient, id, string(stored), matrix.Millis(now))
		return err
	})
	if err != nil {
		return fmt.Errorf("storing client: %w", err)
	}
	if full {
		return &Error{http.StatusServiceUnavailable, "temporarily_unavailable", "too many clients have registered, try again later"}
	}
	return nil
}

// client is a registered client, nil if there is none of the ID.
func (o *Server) client(ctx context.Context, id string) (*client, error) {
	if len(id) != clientIDLength || strings.IndexByte(id, 0) >= 0 {
		return nil, nil
	}
	c := &client{ID: id}
	var text string
	err := o.DB.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qClient, id).Scan(&text, &c.used, &c.checkedAt) })
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading client: %w", err)
	}
	return c, c.load(text)
}

func (c *client) load(text string) error {
	if err := json.Unmarshal([]byte(text), c); err != nil {
		return fmt.Errorf("reading client: %w", err)
	}
	var all map[string]any
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return fmt.Errorf("reading client: %w", err)
	}
	for k, v := range all {
		if s, ok := v.(string); ok && strings.Contains(k, "#") {
			if c.Translations == nil {
				c.Translations = map[string]string{}
			}
			c.Translations[k] = s
		}
	}
	return nil
}

// clients are those of the IDs that are still known.
func (o *Server) clients(ctx context.Context, ids []string) (map[string]*client, error) {
	found := map[string]*client{}
	if len(ids) == 0 {
		return found, nil
	}
	err := o.DB.Read(ctx, func(tx *sqldb.Tx) error {
		clear(found)
		rows, err := tx.Query(qClients, ids)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			c := &client{}
			var text string
			if err := rows.Scan(&c.ID, &text); err != nil {
				return err
			}
			if err := c.load(text); err != nil {
				return err
			}
			found[c.ID] = c
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading clients: %w", err)
	}
	return found, nil
}

// dropClients removes clients that had a session long ago and have none now.
func (o *Server) dropClients(ctx context.Context, now time.Time) error {
	limit := matrix.Millis(now.Add(-recheckAfter))
	for {
		var old []string
		err := o.DB.Read(ctx, func(tx *sqldb.Tx) (err error) {
			old, err = sqldb.Select(tx, func(r *sqldb.Rows) (id string, err error) {
				err = r.Scan(&id)
				return id, err
			}, qOldClients, limit)
			return err
		})
		if err != nil || len(old) == 0 {
			return err
		}
		used, err := o.Accounts.ClientsInUse(ctx, old)
		if err != nil {
			return err
		}
		err = o.DB.Write(ctx, func(tx *sqldb.Tx) error {
			if _, err := tx.Exec(qKeepClients, used, matrix.Millis(now)); err != nil {
				return err
			}
			_, err := tx.Exec(qDropClients, old, limit)
			return err
		})
		if err != nil {
			return err
		}
	}
}
