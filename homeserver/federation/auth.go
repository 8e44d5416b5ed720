package federation

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
	log "github.com/sirupsen/logrus"
)

// Verifier checks the signatures of requests from other servers. It is an httpapi.OriginVerifier.
type Verifier struct {
	ring    *serverkeys.Ring
	allowed func(matrix.ServerName) bool
	// alive is told of each server whose request was proved.
	alive func(matrix.ServerName)
}

// NewVerifier makes a verifier; alive may be nil.
func NewVerifier(ring *serverkeys.Ring, alive func(matrix.ServerName)) *Verifier {
	return &Verifier{ring: ring, alive: alive}
}

// Only refuses servers that are not allowed; nil allows all.
func (v *Verifier) Only(allowed func(matrix.ServerName) bool) *Verifier {
	v.allowed = allowed
	return v
}

// credential is one X-Matrix header.
type credential struct{ origin, destination, key, sig string }

func unauthorized(format string, args ...any) error {
	return matrix.NewError(http.StatusUnauthorized, "M_UNAUTHORIZED", format, args...)
}

// VerifyOrigin names the server that signed the request. Spec: server-server-api#request-authentication
func (v *Verifier) VerifyOrigin(r *http.Request, body []byte) (matrix.ServerName, error) {
	creds, err := credentials(r.Header.Values("Authorization"))
	if err != nil {
		return "", err
	}
	own := v.ring.Own().Server()
	origin := matrix.ServerName(creds[0].origin)
	for _, c := range creds {
		if c.origin != string(origin) {
			return "", unauthorized("the signatures are of different servers")
		}
		if c.destination != "" && c.destination != string(own) {
			return "", unauthorized("the request is for %q and not for this server", c.destination)
		}
	}
	if origin == own {
		return "", unauthorized("a request of this server to itself")
	}
	if v.allowed != nil && !v.allowed(origin) {
		return "", matrix.Forbidden("this server does not federate with %s", origin)
	}
	message, err := signedMessage(r, body, creds, own)
	if err != nil {
		return "", err
	}
	if err := v.ring.VerifyJSON(r.Context(), origin, message); err != nil {
		log.WithError(err).WithField("origin", origin).Debug("a request's signature was refused")
		return "", unauthorized("the signature of %s could not be verified", origin)
	}
	if v.alive != nil {
		v.alive(origin)
	}
	return origin, nil
}

// signedMessage is the JSON object that the sender has signed, with its signatures.
func signedMessage(r *http.Request, body []byte, creds []credential, own matrix.ServerName) ([]byte, error) {
	type doc struct {
		Method      string                       `json:"method"`
		URI         string                       `json:"uri"`
		Origin      string                       `json:"origin"`
		Destination string                       `json:"destination"`
		Content     json.RawMessage              `json:"content,omitempty"`
		Signatures  map[string]map[string]string `json:"signatures"`
	}
	sigs := make(map[string]string, len(creds))
	for _, c := range creds {
		sigs[c.key] = c.sig
	}
	uri := r.RequestURI
	if uri == "" {
		uri = r.URL.RequestURI()
	}
	d := doc{
		Method: r.Method, URI: uri, Origin: creds[0].origin, Destination: string(own),
		Signatures: map[string]map[string]string{creds[0].origin: sigs},
	}
	if b := bytes.TrimSpace(body); len(b) > 0 {
		if !utf8.Valid(b) || !json.Valid(b) {
			return nil, matrix.NotJSON("the body is not valid JSON")
		}
		d.Content = b
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(d); err != nil {
		return nil, matrix.NotJSON("the body is not valid JSON")
	}
	return buf.Bytes(), nil
}

// credentials reads the X-Matrix headers; there is at least one in the result.
func credentials(headers []string) ([]credential, error) {
	var out []credential
	for _, h := range headers {
		scheme, rest, _ := strings.Cut(h, " ")
		if !strings.EqualFold(scheme, "X-Matrix") {
			continue
		}
		params, ok := authParams(rest)
		if !ok {
			return nil, unauthorized("the X-Matrix header is malformed")
		}
		c := credential{params["origin"], params["destination"], params["key"], params["sig"]}
		if c.sig == "" {
			c.sig = params["signature"]
		}
		if !matrix.ValidServerName(c.origin) || c.key == "" || c.sig == "" {
			return nil, unauthorized("the X-Matrix header needs origin, key and sig")
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, unauthorized("an X-Matrix authorization header is needed")
	}
	if len(out) > 8 {
		return nil, unauthorized("too many X-Matrix headers")
	}
	return out, nil
}

// authParams reads name=value pairs separated by commas; values are tokens, with colons allowed, or quoted strings.
func authParams(s string) (map[string]string, bool) {
	out := map[string]string{}
	for {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			return out, true
		}
		name, rest, ok := strings.Cut(s, "=")
		if !ok {
			return nil, false
		}
		name = strings.ToLower(strings.TrimSpace(name))
		var value string
		if strings.HasPrefix(rest, `"`) {
			if value, s, ok = quoted(rest[1:]); !ok {
				return nil, false
			}
			if s = strings.TrimLeft(s, " \t"); s != "" && s[0] != ',' {
				return nil, false
			}
		} else {
			value, s, _ = strings.Cut(rest, ",")
			value = strings.TrimSpace(value)
		}
		if _, twice := out[name]; twice {
			return nil, false
		}
		out[name] = value
	}
}

// quoted reads the inside of a quoted string up to the closing quote.
func quoted(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
