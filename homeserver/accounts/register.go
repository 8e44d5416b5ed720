package accounts

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the algorithm of the shared-secret protocol
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

type registerRequest struct {
	Type         string          `json:"type"` // application services only
	Username     *string         `json:"username"`
	Password     string          `json:"password"`
	PasswordHash string          `json:"im.carillon.password_hash"` // application services only
	DeviceID     matrix.DeviceID `json:"device_id"`
	DisplayName  string          `json:"initial_device_display_name"`
	InhibitLogin bool            `json:"inhibit_login"`
	Refresh      bool            `json:"refresh_token"`
}

func (a *Accounts) register(c *httpapi.Call) (any, error) {
	var req registerRequest
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	switch c.Query("kind") {
	case "", "user":
	case "guest":
		return a.registerGuest(c, &req)
	default:
		return nil, matrix.InvalidParam("kind is user or guest")
	}
	if req.Type == typeAppService {
		return a.registerByService(c, &req)
	}
	flows := a.registrationFlows()
	if len(flows) == 0 {
		return nil, matrix.Forbidden("registration is not open on this server")
	}
	user, err := a.wantedUser(req.Username, nil)
	if err != nil {
		return nil, err
	}
	if req.Password != "" {
		if err := a.checkPassword(req.Password); err != nil {
			return nil, err
		}
	}
	s, err := a.uia.check(c, "", flows)
	if err != nil {
		return nil, err
	}
	defer s.release()
	if req.Password == "" {
		return nil, matrix.MissingParam("password is needed")
	}
	answer, err := a.finishRegistration(c, &req, NewUser{ID: user, Password: req.Password, RegistrationToken: s.Evidence[StageToken], Evidence: s.Evidence})
	if err != nil {
		return nil, err
	}
	return answer, a.uia.finish(c.Ctx(), s)
}

func (a *Accounts) registrationFlows() []Flow {
	r := a.opts.Registration
	if !r.Enabled {
		return nil
	}
	flows := slices.Clone(r.Flows)
	if len(flows) == 0 && r.Tokens {
		flows = append(flows, Flow{StageToken})
	}
	if len(r.Flows) == 0 && r.Dummy {
		flows = append(flows, Flow{StageDummy})
	}
	for i, f := range flows {
		if len(r.Policies) > 0 && !slices.Contains(f, StageTerms) {
			// Open registration asks for the terms alone.
			flows[i] = append(slices.DeleteFunc(slices.Clone(f), func(s string) bool { return s == StageDummy }), StageTerms)
		}
	}
	return flows
}

// Registers says whether a stage is part of a flow by which people can register.
func (a *Accounts) Registers(stage string) bool {
	return slices.ContainsFunc(a.registrationFlows(), func(f Flow) bool { return slices.Contains(f, stage) })
}

// CheckStages says which stage of the registration's flows nobody has made known. Call it when all is built.
func (a *Accounts) CheckStages() error {
	for _, f := range a.registrationFlows() {
		for _, stage := range f {
			if a.uia.Stage(stage) == nil {
				return fmt.Errorf("registration asks for %s, which this server is not set up for", stage)
			}
		}
	}
	return nil
}

// registerByService makes a user of an application service: one write, no password hash to compute.
//
// Spec: application-service-api#server-admin-style-permissions
func (a *Accounts) registerByService(c *httpapi.Call, req *registerRequest) (any, error) {
	as, err := a.needService(c)
	if err != nil {
		return nil, err
	}
	if req.Username == nil {
		return nil, matrix.MissingParam("username is needed")
	}
	user, err := a.wantedUser(req.Username, as)
	if err != nil {
		return nil, err
	}
	if req.PasswordHash != "" {
		if err := CheckHash(req.PasswordHash); err != nil {
			return nil, matrix.InvalidParam("im.carillon.password_hash: %v", err)
		}
	}
	return a.finishRegistration(c, req, NewUser{ID: user, PasswordHash: req.PasswordHash, AppService: as.ID})
}

func (a *Accounts) registerGuest(c *httpapi.Call, req *registerRequest) (any, error) {
	if !a.opts.Registration.Guests {
		return nil, matrix.Forbidden("guests are not admitted on this server")
	}
	user, err := a.wantedUser(nil, nil)
	if err != nil {
		return nil, err
	}
	// All but the display name is ignored for guests.
	guest := &registerRequest{DisplayName: req.DisplayName}
	return a.finishRegistration(c, guest, NewUser{ID: user, Guest: true})
}

// wantedUser checks the user name of a registration by as (nil: by anybody); a missing one is made up.
func (a *Accounts) wantedUser(username *string, as *ApplicationService) (matrix.UserID, error) {
	if username == nil {
		for {
			name := strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(matrix.RandomString(24)))
			id := matrix.NewUserID(name[:min(len(name), 12)], a.opts.ServerName)
			if !a.Exists(id) && a.ExclusiveUser(id) == nil {
				return id, nil
			}
		}
	}
	id, err := a.newUserID(*username)
	if err != nil {
		return "", err
	}
	if as != nil {
		if !as.OwnsUser(id) {
			return "", exclusive(id)
		}
	} else if a.ExclusiveUser(id) != nil {
		return "", exclusive(id)
	}
	if a.Exists(id) {
		return "", userInUse(id)
	}
	return id, nil
}

// finishRegistration makes the account and, unless the client wants none, its first session.
func (a *Accounts) finishRegistration(c *httpapi.Call, req *registerRequest, nu NewUser) (*Session, error) {
	if req.InhibitLogin {
		if err := a.Create(c.Ctx(), nu); err != nil {
			return nil, err
		}
		return &Session{UserID: nu.ID, HomeServer: a.opts.ServerName}, nil
	}
	l, err := a.newLogin(nu.ID, req.DeviceID, req.DisplayName, c.RemoteIP(), req.Refresh)
	if err != nil {
		return nil, err
	}
	if err := a.create(c.Ctx(), nu, l); err != nil {
		return nil, err
	}
	return a.session(l), nil
}

func (a *Accounts) available(c *httpapi.Call) (any, error) {
	if !c.Values().Has("username") {
		return nil, matrix.MissingParam("username is needed")
	}
	username := c.Query("username")
	if _, err := a.wantedUser(&username, nil); err != nil {
		return nil, err
	}
	return map[string]bool{"available": true}, nil
}

func (a *Accounts) tokenValidity(c *httpapi.Call) (any, error) {
	if !a.Registers(StageToken) {
		return nil, matrix.Forbidden("registration by token is not open on this server")
	}
	if !c.Values().Has("token") {
		return nil, matrix.MissingParam("token is needed")
	}
	t, err := a.registrationToken(c.Ctx(), c.Query("token"), "")
	if err != nil {
		return nil, err
	}
	return map[string]bool{"valid": t != nil && t.valid(a.now())}, nil
}

// nonces are those of the shared-secret registration, each good for one use within a minute.
type nonces struct {
	mu      sync.Mutex
	expires map[string]time.Time
}

const (
	nonceLifetime = time.Minute
	maxNonces     = 10_000
)

func (n *nonces) issue(now time.Time) (string, error) {
	n.cleanup(now)
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.expires) >= maxNonces {
		return "", matrix.LimitExceeded(nonceLifetime)
	}
	if n.expires == nil {
		n.expires = make(map[string]time.Time)
	}
	nonce := matrix.RandomString(64)
	n.expires[nonce] = now.Add(nonceLifetime)
	return nonce, nil
}

func (n *nonces) take(nonce string, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	until, ok := n.expires[nonce]
	delete(n.expires, nonce)
	return ok && now.Before(until)
}

// cleanup drops the expired nonces once they are many enough to matter.
func (n *nonces) cleanup(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.expires) < maxNonces/2 {
		return
	}
	for k, until := range n.expires {
		if !now.Before(until) {
			delete(n.expires, k)
		}
	}
}

func (a *Accounts) sharedSecretNonce(*httpapi.Call) (any, error) {
	nonce, err := a.nonces.issue(a.now())
	if err != nil {
		return nil, err
	}
	return map[string]string{"nonce": nonce}, nil
}

// sharedSecretRegister makes accounts, administrators too, for whoever knows the shared secret. It speaks the
// protocol that deployment scripts know from other homeservers.
func (a *Accounts) sharedSecretRegister(c *httpapi.Call) (any, error) {
	var req struct {
		registerRequest
		Nonce    string  `json:"nonce"`
		Admin    bool    `json:"admin"`
		UserType *string `json:"user_type"`
		Name     string  `json:"displayname"`
		MAC      string  `json:"mac"`
	}
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	switch {
	case req.Nonce == "" || req.MAC == "":
		return nil, matrix.MissingParam("nonce and mac are needed")
	case req.Username == nil || *req.Username == "":
		return nil, matrix.MissingParam("username is needed")
	case req.Password == "":
		return nil, matrix.MissingParam("password is needed")
	}
	if !a.nonces.take(req.Nonce, a.now()) {
		return nil, matrix.Unknown("the nonce is not known or has been used")
	}
	admin := "notadmin"
	if req.Admin {
		admin = "admin"
	}
	mac := hmac.New(sha1.New, []byte(a.opts.Registration.SharedSecret))
	parts := []string{req.Nonce, *req.Username, req.Password, admin}
	if req.UserType != nil {
		parts = append(parts, *req.UserType)
	}
	mac.Write([]byte(strings.Join(parts, "\x00")))
	given, err := hex.DecodeString(req.MAC)
	if err != nil || subtle.ConstantTimeCompare(given, mac.Sum(nil)) != 1 {
		return nil, matrix.Forbidden("the mac is wrong")
	}
	user, err := a.wantedUser(req.Username, nil)
	if err != nil {
		return nil, err
	}
	if err := a.checkPassword(req.Password); err != nil {
		return nil, err
	}
	return a.finishRegistration(c, &req.registerRequest,
		NewUser{ID: user, Password: req.Password, Admin: req.Admin, DisplayName: req.Name})
}
