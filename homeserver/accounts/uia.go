package accounts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// UIA is the user-interactive authentication API. Its sessions live in the database, so a restart between two
// stages is not noticed.
//
// Spec: client-server-api#user-interactive-authentication-api
type UIA struct {
	a        *Accounts
	external map[string]External
	sso      func(ctx context.Context, user matrix.UserID) (bool, error)
}

// External is a stage that a person completes in a browser, on pages that are another package's.
type External struct {
	// Params is what the client is told of the stage; nil: nothing.
	Params func(session string) any
}

// AddExternal makes a stage known that Complete completes. Call it before serving.
func (u *UIA) AddExternal(stage string, e External) {
	if u.external == nil {
		u.external = map[string]External{}
	}
	u.external[stage] = e
}

// UseSSO offers m.login.sso to whom linked says can sign in at the company's provider. Call it before serving.
func (u *UIA) UseSSO(linked func(ctx context.Context, user matrix.UserID) (bool, error)) {
	u.sso = linked
}

// Stages of interactive authentication.
const (
	StagePassword = "m.login.password"
	StageDummy    = "m.login.dummy"
	StageToken    = "m.login.registration_token"
	StageSSO      = "m.login.sso"
)

// Flow is a list of stages that are enough together.
type Flow []string

// authData is the auth object of a request.
type authData struct {
	Type       string      `json:"type"`
	Session    string      `json:"session"`
	Identifier *identifier `json:"identifier"`
	User       string      `json:"user"`
	Password   string      `json:"password"`
	Token      string      `json:"token"`
}

// identifier names a user.
//
// Spec: client-server-api#identifier-types
type identifier struct {
	Type string `json:"type"`
	User string `json:"user"`
}

// uiaSession is an authentication under way.
type uiaSession struct {
	id        string
	user      matrix.UserID
	operation string
	completed []string
	regToken  string
	stored    bool
}

// Require is nil once the caller has proven who they are by one of the flows; without flows, by the password. Its
// error is the 401 answer that tells the client what to do. Application services need no proof. Sessions of the OAuth
// 2.0 API cannot give one: their people do such things on the account pages.
func (u *UIA) Require(c *httpapi.Call, flows ...Flow) error {
	if c.Caller == nil {
		return matrix.MissingToken()
	}
	if c.Caller.AppService != "" {
		return nil
	}
	client, err := u.a.ClientOf(c.Ctx(), c.Caller)
	if err != nil {
		return err
	}
	if client != "" {
		return matrix.Forbidden("this is done on the account pages of the server, not by a client of the OAuth 2.0 API")
	}
	if len(flows) == 0 {
		if flows, err = u.usual(c.Ctx(), c.Caller.User); err != nil {
			return err
		}
	}
	return u.RequireOf(c, flows...)
}

// RequireOf is Require by these flows whatever the kind of the session.
func (u *UIA) RequireOf(c *httpapi.Call, flows ...Flow) error {
	s, err := u.check(c, c.Caller.User, flows)
	if err != nil {
		return err
	}
	return u.finish(c.Ctx(), s)
}

// usual are the flows by which a user can prove who they are: the password, the company's provider, or either.
func (u *UIA) usual(ctx context.Context, user matrix.UserID) ([]Flow, error) {
	if u.sso == nil {
		return []Flow{{StagePassword}}, nil
	}
	linked, err := u.sso(ctx, user)
	if err != nil || !linked {
		return []Flow{{StagePassword}}, err
	}
	if who, _ := u.a.User(user); who.HasPassword {
		return []Flow{{StagePassword}, {StageSSO}}, nil
	}
	return []Flow{{StageSSO}}, nil
}

// Pending is the user of an authentication session and what it is for ("DELETE /_matrix/…").
func (u *UIA) Pending(ctx context.Context, session string) (matrix.UserID, string, error) {
	s := &uiaSession{id: session}
	err := u.read(ctx, s)
	return s.user, s.operation, err
}

// Complete notes that the user has completed an external stage of a session.
func (u *UIA) Complete(ctx context.Context, session, stage string, user matrix.UserID) error {
	s := &uiaSession{id: session}
	if err := u.read(ctx, s); err != nil {
		return err
	}
	if s.user == "" || s.user != user {
		return matrix.Forbidden("this authentication session belongs to somebody else")
	}
	if slices.Contains(s.completed, stage) {
		return nil
	}
	s.completed = append(s.completed, stage)
	return u.save(ctx, s)
}

// check goes one step of the authentication. The session it returns is complete; finish ends it.
func (u *UIA) check(c *httpapi.Call, user matrix.UserID, flows []Flow) (*uiaSession, error) {
	var body struct {
		Auth *authData `json:"auth"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	operation := c.R.Method + " " + c.R.URL.Path
	if body.Auth == nil {
		s, err := u.begin(c.Ctx(), user, operation)
		if err != nil {
			return nil, err
		}
		return nil, u.challenge(s, flows, nil)
	}
	s := &uiaSession{id: body.Auth.Session, user: user, operation: operation}
	if s.id != "" {
		if err := u.load(c.Ctx(), s); err != nil {
			return nil, err
		}
	}
	if body.Auth.Type != "" && !slices.Contains(s.completed, body.Auth.Type) {
		if err := u.stage(c, s, body.Auth, flows); err != nil {
			var other *otherUserError
			if errors.As(err, &other) {
				return nil, other.refusal
			}
			var e *matrix.Error
			if !errors.As(err, &e) || e.Status >= 500 || e.Status == 429 {
				return nil, err
			}
			if err := u.save(c.Ctx(), s); err != nil { // a session begun without one gets its ID here
				return nil, err
			}
			return nil, u.challenge(s, flows, e)
		}
	}
	for _, f := range flows {
		if !slices.ContainsFunc(f, func(stage string) bool { return !slices.Contains(s.completed, stage) }) {
			return s, nil
		}
	}
	if err := u.save(c.Ctx(), s); err != nil {
		return nil, err
	}
	return nil, u.challenge(s, flows, nil)
}

// challenge is the 401 answer.
func (u *UIA) challenge(s *uiaSession, flows []Flow, failed *matrix.Error) *matrix.Error {
	type flow struct {
		Stages []string `json:"stages"`
	}
	list := make([]flow, len(flows))
	for i, f := range flows {
		list[i].Stages = f
	}
	completed := s.completed
	if completed == nil {
		completed = []string{}
	}
	params := map[string]any{}
	for stage, e := range u.external {
		if e.Params != nil && slices.ContainsFunc(flows, func(f Flow) bool { return slices.Contains(f, stage) }) {
			params[stage] = e.Params(s.id)
		}
	}
	e := &matrix.Error{Status: 401, Extra: map[string]any{
		"session": s.id, "flows": list, "params": params, "completed": completed,
	}}
	if failed != nil {
		e.Code, e.Msg = failed.Code, failed.Msg
	}
	return e
}

// stage tries one stage and notes its success in s.
func (u *UIA) stage(c *httpapi.Call, s *uiaSession, auth *authData, flows []Flow) error {
	if !slices.ContainsFunc(flows, func(f Flow) bool { return slices.Contains(f, auth.Type) }) {
		return matrix.NewError(401, "M_UNRECOGNIZED", "%s is no stage of the flows offered", auth.Type)
	}
	switch auth.Type {
	case StageDummy:
	case StagePassword:
		if err := u.password(c, s, auth); err != nil {
			return err
		}
	case StageToken:
		t, err := u.a.registrationToken(c.Ctx(), auth.Token, s.id)
		if err != nil {
			return err
		}
		if t == nil || !t.valid(u.a.now()) {
			return matrix.NewError(401, "M_UNAUTHORIZED", "the registration token is not valid")
		}
		s.regToken = auth.Token
	default:
		if _, ok := u.external[auth.Type]; ok {
			return matrix.NewError(401, "M_UNAUTHORIZED", "%s is not completed yet", auth.Type)
		}
		return matrix.NewError(401, "M_UNRECOGNIZED", "%s is not supported", auth.Type)
	}
	s.completed = append(s.completed, auth.Type)
	return nil
}

// otherUserError ends an authentication that somebody else tries: there is no use in asking again.
type otherUserError struct{ refusal *matrix.Error }

func (e *otherUserError) Error() string { return e.refusal.Error() }

// password is the stage m.login.password: the password of the caller and nobody else.
func (u *UIA) password(c *httpapi.Call, s *uiaSession, auth *authData) error {
	name := auth.User
	if auth.Identifier != nil {
		if auth.Identifier.Type != "m.id.user" {
			return matrix.Forbidden("only m.id.user can be used here")
		}
		name = auth.Identifier.User
	}
	if name != "" {
		who, ok := u.a.localUser(name)
		if !ok {
			return matrix.Forbidden("wrong user name or password")
		}
		if s.user != "" && who.ID != s.user {
			return &otherUserError{matrix.Forbidden("this is for %s to confirm", s.user)}
		}
	}
	user := s.user
	if user == "" {
		who, ok := u.a.localUser(name)
		if !ok {
			return matrix.Forbidden("wrong user name or password")
		}
		user = who.ID
	}
	if err := u.a.checkLogin(c.Ctx(), user, auth.Password); err != nil {
		return err
	}
	s.user = user
	return nil
}

func (u *UIA) begin(ctx context.Context, user matrix.UserID, operation string) (*uiaSession, error) {
	s := &uiaSession{user: user, operation: operation}
	return s, u.save(ctx, s)
}

// load reads a session and checks that it belongs to the same user and operation.
func (u *UIA) load(ctx context.Context, s *uiaSession) error {
	user, operation := s.user, s.operation
	if err := u.read(ctx, s); err != nil {
		return err
	}
	if operation != s.operation || (user != "" && user != s.user) {
		return matrix.Forbidden("this authentication session belongs to another request")
	}
	return nil
}

// read reads the session of an ID.
func (u *UIA) read(ctx context.Context, s *uiaSession) error {
	var completed string
	unknown := matrix.Unknown("there is no such authentication session, begin anew")
	if !isText(s.id) {
		return unknown
	}
	err := u.a.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qUIA, s.id).Scan(&s.user, &s.operation, &completed, &s.regToken)
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return unknown
	}
	if err != nil {
		return fmt.Errorf("reading authentication session: %w", err)
	}
	s.stored = true
	if err := json.Unmarshal([]byte(completed), &s.completed); err != nil {
		return fmt.Errorf("reading authentication session: %w", err)
	}
	return nil
}

// save stores a session, under a new ID if it has none.
func (u *UIA) save(ctx context.Context, s *uiaSession) error {
	completed, err := json.Marshal(s.completed)
	if err != nil {
		return err
	}
	if s.completed == nil {
		completed = []byte("[]")
	}
	isNew := !s.stored
	if isNew {
		s.id = matrix.RandomString(24)
	}
	err = u.a.db.Write(ctx, func(tx *sqldb.Tx) error {
		if isNew {
			if _, err := tx.Exec(qInsertUIA, s.id, string(s.user), s.operation, matrix.Millis(u.a.now())); err != nil {
				return err
			}
		}
		if isNew && s.completed == nil {
			return nil
		}
		_, err := tx.Exec(qSetUIA, s.id, string(completed), s.regToken)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing authentication session: %w", err)
	}
	s.stored = true
	return nil
}

// finish ends a completed session, so that its proof cannot be used again.
func (u *UIA) finish(ctx context.Context, s *uiaSession) error {
	if !s.stored {
		return nil
	}
	err := u.a.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qDeleteUIA, s.id)
		return err
	})
	if err != nil {
		return fmt.Errorf("ending authentication session: %w", err)
	}
	return nil
}
