package oauth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Bounds of device grants.
const (
	deviceLifetime = 20 * time.Minute
	pollEvery      = 5 * time.Second
	maxPending     = 5000 // device codes at a time
)

// States of a device grant.
const (
	statePending  = "pending"
	stateApproved = "approved"
	stateDenied   = "denied"
	stateUsed     = "used"
)

// deviceRow is a stored device grant.
type deviceRow struct {
	client, scope, state string
	device               matrix.DeviceID
	user                 matrix.UserID
	expires, authAt      int64
}

func scanDevice(r *sqldb.Row) (d deviceRow, err error) {
	err = r.Scan(&d.client, &d.device, &d.scope, &d.expires, &d.state, &d.user, &d.authAt)
	return d, err
}

// userCodeLetters have no vowels, so that no words come about, and nothing that looks alike.
const userCodeLetters = "BCDFGHJKLMNPQRSTVWXZ"

// newUserCode is eight letters: 34 bits, for people to type.
func newUserCode() string {
	code := make([]byte, 0, 8)
	var b [32]byte
	for len(code) < cap(code) {
		rand.Read(b[:]) // never fails: it ends the program instead
		for _, x := range b {
			if x < 240 && len(code) < cap(code) { // 240 is a multiple of 20: every letter is as likely
				code = append(code, userCodeLetters[x%20])
			}
		}
	}
	return string(code)
}

// tidyUserCode is what somebody typed, as it is stored; "" if it cannot be a code.
func tidyUserCode(s string) string {
	code := strings.Map(func(r rune) rune {
		if strings.ContainsRune(userCodeLetters, r) {
			return r
		}
		if r == '-' || r == ' ' || r == '\u2013' {
			return -1
		}
		return '?'
	}, strings.ToUpper(strings.TrimSpace(s)))
	if len(code) != 8 || strings.Contains(code, "?") {
		return ""
	}
	return code
}

func shownUserCode(code string) string { return code[:4] + "-" + code[4:] }

// deviceAuthorization begins a grant for a device without a browser.
// Spec: client-server-api#device-authorisation-flow, RFC 8628
func (o *Server) deviceAuthorization(c *httpapi.Call) (any, error) {
	q, err := formOf(c)
	if err != nil {
		return answer(nil, err)
	}
	cl, err := o.client(c.Ctx(), q["client_id"])
	switch {
	case err != nil:
		return nil, err
	case cl == nil:
		return answer(nil, errNoClient)
	case !slices.Contains(cl.Grants, grantDevice):
		return answer(nil, bad("unauthorized_client", "the client has not registered for device codes"))
	}
	sc, err := parseScope(q["scope"])
	if err != nil {
		return answer(nil, err)
	}
	code, user := matrix.RandomString(43), newUserCode()
	full := false
	err = o.DB.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		var n int
		if err := tx.QueryRow(qCountDevices).Scan(&n); err != nil {
			return err
		}
		if full = n >= maxPending; full {
			return nil
		}
		_, err := tx.Exec(qInsertDevice, hash(code), user, cl.ID, string(sc.device), sc.text, matrix.Millis(o.Now().Add(deviceLifetime)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing device code: %w", err)
	}
	if full {
		return answer(nil, &Error{http.StatusServiceUnavailable, "temporarily_unavailable", "too many devices wait, try again later"})
	}
	shown := shownUserCode(user)
	return map[string]any{
		"device_code": code, "user_code": shown, "verification_uri": o.BaseURL + pathLink,
		"verification_uri_complete": o.BaseURL + pathLink + "?user_code=" + shown,
		"expires_in":                int(deviceLifetime.Seconds()), "interval": int(pollEvery.Seconds()),
	}, nil
}

// polls remembers in memory when each device may ask again; after a restart none has asked too early.
type polls struct {
	mu   sync.Mutex
	next map[string]poll
}

type poll struct {
	at       time.Time // not before
	interval time.Duration
	end      time.Time
}

// tooEarly says whether a device asks sooner than it was told to; it is then told to take longer.
func (p *polls) tooEarly(key []byte, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		p.next = map[string]poll{}
	}
	last, ok := p.next[string(key)]
	if !ok {
		last = poll{interval: pollEvery, end: now.Add(deviceLifetime)}
	}
	early := ok && now.Before(last.at)
	if early {
		last.interval += pollEvery
	}
	last.at = now.Add(last.interval - time.Second) // the network may bring two polls closer to each other
	p.next[string(key)] = last
	return early
}

// cleanup forgets the devices whose codes have expired; there are never more than stored codes.
func (p *polls) cleanup(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, v := range p.next {
		if now.After(v.end) {
			delete(p.next, k)
		}
	}
}

// poll is a device asking whether its grant has been decided.
func (o *Server) poll(c *httpapi.Call, cl *client, q map[string]string) (any, error) {
	if q["device_code"] == "" {
		return nil, bad("invalid_request", "device_code is needed")
	}
	key := hash(q["device_code"])
	var d deviceRow
	err := o.DB.Read(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		d, err = scanDevice(tx.QueryRow(qDevice, key))
		return err
	})
	switch {
	case errors.Is(err, sqldb.ErrNoRows):
		return nil, bad("invalid_grant", "the device code is not valid")
	case err != nil:
		return nil, fmt.Errorf("reading device code: %w", err)
	case d.client != cl.ID || d.state == stateUsed:
		return nil, bad("invalid_grant", "the device code is not valid")
	case d.expires <= matrix.Millis(o.Now()):
		return nil, bad("expired_token", "the device code has expired")
	case d.state == stateDenied:
		return nil, bad("access_denied", "the person has declined")
	case o.polls.tooEarly(key, o.Now()):
		return nil, bad("slow_down", "ask less often, five seconds more between two requests")
	case d.state == statePending:
		return nil, bad("authorization_pending", "the person has not decided yet")
	}
	ses, err := o.grant(c, cl, d.user, d.device, d.scope, func(tx *sqldb.Tx) (int64, error) { return tx.Exec(qTakeDevice, key) })
	if errors.Is(err, errTaken) {
		return nil, bad("invalid_grant", "the device code is not valid")
	}
	if err != nil {
		return nil, err
	}
	return o.withID(c, told(ses, d.scope), d.user, cl.ID, "", d.authAt)
}

// pendingDevice is the grant of a code that somebody has typed, with its client; nil if there is none to decide.
func (o *Server) pendingDevice(ctx context.Context, code string) (*deviceRow, *client, error) {
	if code == "" {
		return nil, nil, nil
	}
	var d deviceRow
	err := o.DB.Read(ctx, func(tx *sqldb.Tx) (err error) {
		d, err = scanDevice(tx.QueryRow(qDeviceByCode, code))
		return err
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading device code: %w", err)
	}
	if d.state != statePending || d.expires <= matrix.Millis(o.Now()) {
		return nil, nil, nil
	}
	cl, err := o.client(ctx, d.client)
	if err != nil || cl == nil {
		return nil, nil, err
	}
	return &d, cl, nil
}

// linkBody is what the page for device codes shows.
type linkBody struct{ Code string }

// linkPage asks for the code of a device, and shows what it belongs to.
func (o *Server) linkPage(v *browser.Visit) (any, error) {
	s, err := o.session(v)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return v.Redirect(loginAddress(here(v), "", false))
	}
	typed := v.Query("user_code")
	if typed == "" {
		return v.Show("link", browser.View{Bind: s.bind, Body: linkBody{}})
	}
	if ok, retry := o.typed.Allow(s.user); !ok { // codes are short: nobody may try many
		return nil, matrix.LimitExceeded(retry)
	}
	code := tidyUserCode(typed)
	d, cl, err := o.pendingDevice(v.Ctx(), code)
	if err != nil {
		return nil, err
	}
	if d == nil {
		return v.Show("link", browser.View{
			Status: http.StatusBadRequest, Bind: s.bind, Body: linkBody{typed},
			Error: v.T("代码无效或已过期，请在设备上查看最新的代码。", "This code is not valid or has expired. Look at the device for its code."),
		})
	}
	body, err := o.consent(v, s, cl, d.device)
	if err != nil {
		return nil, err
	}
	body.UserCode = shownUserCode(code)
	return v.Show("consent", browser.View{Bind: s.bind + code, Body: body})
}

// linkForm is the answer of the person.
func (o *Server) linkForm(v *browser.Visit) (any, error) {
	s, err := o.session(v)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return v.Redirect(loginAddress(here(v), "", false))
	}
	if typed := v.Form("user_code"); typed != "" {
		if err := v.Check(s.bind); err != nil {
			return nil, err
		}
		return v.Redirect(pathLink + "?" + url.Values{"user_code": {typed}}.Encode())
	}
	code := tidyUserCode(v.Query("user_code"))
	if err := v.Check(s.bind + code); err != nil {
		return nil, err
	}
	state := stateDenied
	if v.Form("decision") == "allow" {
		state = stateApproved
	}
	var n int64
	err = o.DB.Write(v.Ctx(), func(tx *sqldb.Tx) (err error) {
		n, err = tx.Exec(qDecideDevice, code, state, string(s.user), s.authAt, matrix.Millis(o.Now()))
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("storing decision: %w", err)
	case n == 0:
		return v.Show("message", browser.View{
			Status: http.StatusBadRequest,
			Error:  v.T("代码已过期，请在设备上重新开始。", "The code has expired. Begin anew on the device."),
		})
	case state == stateDenied:
		return v.Show("message", browser.View{Notice: v.T("已拒绝，该设备没有获得访问权限。", "Declined. The device has no access.")})
	}
	return v.Show("message", browser.View{Notice: v.T("已完成，请回到您的设备继续。", "Done. Go on at your device.")})
}
