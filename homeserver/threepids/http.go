package threepids

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
)

const smallBody = 64 << 10

// Routes are the endpoints of this package.
func (t *Threepids) Routes() []httpapi.Route {
	const v3 = "/_matrix/client/v3"
	open := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthNone, RateLimit: true, MaxBody: smallBody, Handler: h}
	}
	user := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: v3 + "/account/3pid" + path, Auth: httpapi.AuthUser, RateLimit: true, MaxBody: smallBody, AllowSuspended: true, Handler: h}
	}
	routes := []httpapi.Route{
		user("GET", "", t.getAll),
		user("POST", "", t.postOld),
		user("POST", "/add", t.postAdd),
		user("POST", "/bind", t.postBind),
		user("POST", "/delete", t.postDelete),
		user("POST", "/unbind", t.postUnbind),
		open("GET", base+"/validate", t.validatePage),
		open("POST", base+"/validate", t.validatePage),
		open("PUT", "/_matrix/federation/v1/3pid/onbind", t.onBind),
	}
	for i := range routes {
		// Adding is possible for who is suspended, removing is not.
		// Spec: client-server-api#account-suspension
		if strings.HasSuffix(routes[i].Path, "/delete") || strings.HasSuffix(routes[i].Path, "/unbind") {
			routes[i].AllowSuspended = false
		}
	}
	for _, medium := range []string{Email, MSISDN} {
		request := open("POST", v3+"/account/3pid/"+medium+"/requestToken", t.request(medium, forAccount))
		request.Auth, request.AllowSuspended = httpapi.AuthOptional, true
		routes = append(routes, request,
			open("POST", v3+"/register/"+medium+"/requestToken", t.request(medium, forRegistration)),
			open("POST", v3+"/account/password/"+medium+"/requestToken", t.request(medium, forPassword)),
			open("POST", base+"/"+medium+"/submit_token", t.postToken))
	}
	return append(routes, t.adminRoutes()...)
}

// request makes the handler of one of the six endpoints that send a message.
//
// Spec: client-server-api#post_matrixclientv3registeremailrequesttoken and those like it
func (t *Threepids) request(medium string, p purpose) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		var q struct {
			Secret   *string `json:"client_secret"`
			Email    *string `json:"email"`
			Country  *string `json:"country"`
			Number   *string `json:"phone_number"`
			Attempt  *int64  `json:"send_attempt"`
			NextLink string  `json:"next_link"`
		}
		if err := c.Body(&q); err != nil {
			return nil, err
		}
		if err := t.offered(medium, p); err != nil {
			return nil, err
		}
		missing := q.Secret == nil || q.Attempt == nil || medium == Email && q.Email == nil || medium == MSISDN && (q.Country == nil || q.Number == nil)
		switch {
		case missing && medium == Email:
			return nil, matrix.MissingParam("client_secret, email and send_attempt are needed")
		case missing:
			return nil, matrix.MissingParam("client_secret, country, phone_number and send_attempt are needed")
		case !validSecret(*q.Secret):
			return nil, matrix.InvalidParam("client_secret has 1 to 255 characters of 0-9, a-z, A-Z and . = _ -")
		case *q.Attempt < 0:
			return nil, matrix.InvalidParam("send_attempt must not be negative")
		}
		d := demand{medium: medium, purpose: p, secret: *q.Secret, attempt: *q.Attempt, client: c.RemoteIP(), nextLink: q.NextLink}
		if err := checkNextLink(q.NextLink); err != nil {
			return nil, err
		}
		var err error
		country := ""
		if medium == Email {
			d.address, err = EmailAddress(*q.Email)
		} else {
			country = strings.ToUpper(*q.Country)
			d.address, err = Phone(country, *q.Number)
		}
		if err == nil && p != forPassword {
			err = t.permitted(medium, d.address)
		}
		if err != nil {
			return nil, err
		}
		if c.Caller != nil {
			d.user = c.Caller.User
		}
		d.lang = pages.Language(c.R.Header.Get("Accept-Language"), t.languageOf(country))
		sid, err := t.ask(c.Ctx(), d)
		if err != nil {
			return nil, err
		}
		return map[string]string{"sid": sid, "submit_url": t.submitURL(medium)}, nil
	}
}

// languageOf is the language of messages for who names none.
func (t *Threepids) languageOf(country string) string {
	switch country {
	case "":
		return t.opts.Language
	case "CN", "HK", "MO", "TW":
		return pages.Chinese
	}
	return pages.English
}

// offered says whether an address of the medium may be proven for the purpose at all.
func (t *Threepids) offered(medium string, p purpose) error {
	switch {
	case !t.supports(medium):
		return matrix.NewError(http.StatusBadRequest, "M_THREEPID_MEDIUM_NOT_SUPPORTED", "this server does not send messages of the kind %s", medium)
	case p == forAccount && t.opts.Fixed:
		return fixed()
	case p == forRegistration && !t.accounts.Registers(stageOf(medium)):
		return matrix.NewError(http.StatusForbidden, "M_THREEPID_DENIED", "registration on this server does not ask for this")
	}
	return nil
}

func fixed() *matrix.Error {
	return matrix.Forbidden("addresses cannot be changed on this server")
}

// permitted applies the lists of the configuration.
func (t *Threepids) permitted(medium, address string) error {
	list, part := t.opts.Prefixes, "+"+address
	if medium == Email {
		list, part = t.opts.Domains, address[strings.LastIndexByte(address, '@')+1:]
	}
	if len(list) == 0 {
		return nil
	}
	for _, l := range list {
		l = strings.ToLower(l)
		below, wild := strings.CutPrefix(l, "*")
		if part == l || wild && strings.HasSuffix(part, below) || medium == MSISDN && strings.HasPrefix(part, l) {
			return nil
		}
	}
	return matrix.NewError(http.StatusForbidden, "M_THREEPID_DENIED", "addresses of this kind are not accepted on this server")
}

// checkNextLink refuses what no browser should be sent to.
func checkNextLink(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || len(s) > 2048 {
		return matrix.InvalidParam("next_link must be the address of a page")
	}
	return nil
}

func (t *Threepids) getAll(c *httpapi.Call) (any, error) {
	list, err := t.Of(c.Ctx(), c.Caller.User)
	if err != nil {
		return nil, err
	}
	if list == nil {
		list = []Contact{}
	}
	return map[string]any{"threepids": list}, nil
}

// creds are those of a validation session.
type creds struct {
	SID     string `json:"sid"`
	Secret  string `json:"client_secret"`
	Server  string `json:"id_server"`
	IDToken string `json:"id_access_token"`
}

// postAdd adds an address that has been proven to this server.
//
// Spec: client-server-api#post_matrixclientv3account3pidadd
func (t *Threepids) postAdd(c *httpapi.Call) (any, error) {
	var q creds
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	if t.opts.Fixed {
		return nil, fixed()
	}
	if q.SID == "" || q.Secret == "" {
		return nil, matrix.MissingParam("client_secret and sid are needed")
	}
	// Looked at first, so that nobody proves who they are in vain.
	if _, err := t.proven(c.Ctx(), q.SID, q.Secret, "", forAccount, c.Caller.User); err != nil {
		return nil, err
	}
	if err := t.accounts.UIA().Require(c); err != nil {
		return nil, err
	}
	s, err := t.use(c.Ctx(), q.SID, q.Secret, "", forAccount, c.Caller.User, "add")
	if err != nil {
		return nil, err
	}
	return nil, t.add(c.Ctx(), c.Caller.User, s.medium, s.address, s.validated, s.sid)
}

// postToken is where clients bring the token or code that people have typed in.
//
// Spec: identity-service-api#post_matrixidentityv2validateemailsubmittoken
func (t *Threepids) postToken(c *httpapi.Call) (any, error) {
	var q struct {
		SID    *string `json:"sid"`
		Secret *string `json:"client_secret"`
		Token  *string `json:"token"`
	}
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	switch {
	case q.SID == nil || q.Secret == nil || q.Token == nil:
		return nil, matrix.MissingParam("sid, client_secret and token are needed")
	case !validSecret(*q.SID) || !validSecret(*q.Secret):
		return nil, matrix.InvalidParam("sid and client_secret have 1 to 255 characters of 0-9, a-z, A-Z and . = _ -")
	}
	if _, err := t.submit(c.Ctx(), *q.SID, *q.Secret, *q.Token, false); err != nil {
		return nil, err
	}
	return map[string]bool{"success": true}, nil
}

func (t *Threepids) postDelete(c *httpapi.Call) (any, error) {
	medium, address, server, err := t.readAddress(c)
	if err != nil {
		return nil, err
	}
	if t.opts.Fixed {
		return nil, fixed()
	}
	result := "success"
	if ok, _ := t.unbind(c.Ctx(), c.Caller.User, medium, address, server); !ok {
		result = "no-support"
	}
	if err := t.remove(c.Ctx(), c.Caller.User, medium, address); err != nil {
		return nil, err
	}
	return map[string]string{"id_server_unbind_result": result}, nil
}

// readAddress reads the body of /delete and /unbind.
func (t *Threepids) readAddress(c *httpapi.Call) (medium, address string, server matrix.ServerName, err error) {
	var q struct {
		Medium  string `json:"medium"`
		Address string `json:"address"`
		Server  string `json:"id_server"`
	}
	if err := c.Body(&q); err != nil {
		return "", "", "", err
	}
	if q.Medium == "" || q.Address == "" {
		return "", "", "", matrix.MissingParam("medium and address are needed")
	}
	if address, err = Canonical(q.Medium, q.Address); err != nil {
		return "", "", "", err
	}
	if q.Server != "" {
		if server, err = t.trusted(q.Server); err != nil {
			return "", "", "", err
		}
	}
	return q.Medium, address, server, nil
}
