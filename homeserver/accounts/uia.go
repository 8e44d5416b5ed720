package accounts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// UIA is the user-interactive authentication API. Its sessions live in the database, so a restart between two
// stages is not noticed. A session belongs to one endpoint and one user, ends after a day, and proves one request.
//
// Spec: client-server-api#user-interactive-authentication-api
type UIA struct {
	a      *Accounts
	stages []*Stage
	sso    func(ctx context.Context, user matrix.UserID) (bool, error)
	busy   gate.Keyed[string] // sessions in use
}

// Stages of interactive authentication that this package knows by itself.
const (
	StagePassword = "m.login.password"
	StageDummy    = "m.login.dummy"
	StageToken    = "m.login.registration_token"
	StageTerms    = "m.login.terms"
	StageSSO      = "m.login.sso"
)

// Flow is a list of stages that are enough together, in their order.
type Flow []string

// Stage is a way of proving something. Packages above this one add theirs with AddStage.
type Stage struct {
	Type string
	// Check tries the stage with the auth object of a request; nil is success. It may set p.User, when that is empty,
	// and p.Evidence. A *matrix.Error lets the client try again; see Refusal for what does not.
	Check func(c *httpapi.Call, p *Proof, auth json.RawMessage) error
	// Params is what the client has to know, for "params" of the challenge. Nil: nothing.
	Params func(p *Proof) any
	// Alone says whether this stage is enough to confirm a request of a user; the user is empty for a request
	// without an access token. Nil: never, it is only part of flows that are named.
	Alone func(user User, operation string) bool
	// Page is the stage in a browser, for clients that do not know it: GET shows it, POST brings what was filled in.
	// done completes the stage, as Check does with nil. Nil: there is none.
	Page func(c *httpapi.Call, p *Proof, lang string) (page pages.Page, done bool, err error)
}

// Proof is an authentication under way, as its stages see it.
type Proof struct {
	Session   string        // its ID; empty until it has one
	User      matrix.UserID // whom it is about; empty until a stage has found out
	Operation string        // "POST /_matrix/client/v3/register"
	Flows     []Flow
	Evidence  map[string]string // what stages remember, by their type

	completed []string
	stored    bool
	changed   bool
	unlock    func()
}

// Completed says whether a stage is done.
func (p *Proof) Completed(stage string) bool { return slices.Contains(p.completed, stage) }

// Remember keeps something that a stage has found out.
func (p *Proof) Remember(stage, value string) {
	if p.Evidence == nil {
		p.Evidence = make(map[string]string)
	}
	p.Evidence[stage] = value
	p.changed = true
}

// release lets others use the session.
func (p *Proof) release() {
	if p != nil && p.unlock != nil {
		p.unlock()
		p.unlock = nil
	}
}

// mayFollow says whether a stage comes next in one of the flows.
func (p *Proof) mayFollow(stage string) bool {
	n := len(p.completed)
	return slices.ContainsFunc(p.Flows, func(f Flow) bool {
		return len(f) > n && f[n] == stage && slices.Equal([]string(f[:n]), p.completed)
	})
}

// enough says whether one of the flows is complete.
func (p *Proof) enough() bool {
	return slices.ContainsFunc(p.Flows, func(f Flow) bool { return slices.Equal([]string(f), p.completed) })
}

func (p *Proof) complete(stage string) {
	p.completed = append(p.completed, stage)
	p.changed = true
}

// refusal ends an authentication: there is no use in asking again.
type refusal struct{ err *matrix.Error }

func (r *refusal) Error() string { return r.err.Error() }

// Refusal makes the error of a stage that the client is told as it is, instead of being asked to try again.
func Refusal(err *matrix.Error) error { return &refusal{err} }

// AddStage makes a stage known. Call it before serving.
func (u *UIA) AddStage(s Stage) { u.stages = append(u.stages, &s) }

// External is a stage that a person completes in a browser, on pages that are another package's.
type External struct {
	// Params is what the client is told of the stage; nil: nothing.
	Params func(session string) any
}

// AddExternal makes a stage known that Complete completes. Call it before serving.
func (u *UIA) AddExternal(stage string, e External) {
	s := Stage{Type: stage, Check: func(*httpapi.Call, *Proof, json.RawMessage) error {
		return matrix.NewError(401, "M_UNAUTHORIZED", "%s is not completed yet", stage)
	}}
	if e.Params != nil {
		s.Params = func(p *Proof) any { return e.Params(p.Session) }
	}
	u.AddStage(s)
}

// UseSSO offers m.login.sso to whom linked says can sign in at the company's provider. Call it before serving.
func (u *UIA) UseSSO(linked func(ctx context.Context, user matrix.UserID) (bool, error)) {
	u.sso = linked
}

// Stage is the stage of a type, or nil.
func (u *UIA) Stage(typ string) *Stage {
	for _, s := range u.stages {
		if s.Type == typ {
			return s
		}
	}
	return nil
}

// usual are the stages each of which alone confirms a request of the user: the password, the company's provider, or
// what else says so.
func (u *UIA) usual(ctx context.Context, user matrix.UserID, operation string) ([]Flow, error) {
	who, _ := u.a.User(user)
	var flows []Flow
	for _, s := range u.stages {
		if s.Alone != nil && s.Alone(who, operation) {
			flows = append(flows, Flow{s.Type})
		}
	}
	if u.sso != nil && user != "" {
		linked, err := u.sso(ctx, user)
		if err != nil {
			return nil, err
		}
		if linked {
			flows = append(flows, Flow{StageSSO})
		}
	}
	if flows == nil {
		flows = []Flow{{StagePassword}}
	}
	return flows, nil
}

// Require is nil once the caller has proven who they are by one of the flows; without flows, by one of the stages
// that are enough alone, such as the password. Its error is the 401 answer that tells the client what to do.
// Application services need no proof. Sessions of the OAuth 2.0 API cannot give one: their people do such things on
// the account pages.
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
		if flows, err = u.usual(c.Ctx(), c.Caller.User, operation(c)); err != nil {
			return err
		}
	}
	return u.RequireOf(c, flows...)
}

// RequireOf is Require by these flows whatever the kind of the session.
func (u *UIA) RequireOf(c *httpapi.Call, flows ...Flow) error {
	p, err := u.check(c, c.Caller.User, flows)
	if err != nil {
		return err
	}
	defer p.release()
	return u.finish(c.Ctx(), p)
}

func operation(c *httpapi.Call) string { return c.R.Method + " " + c.R.URL.Path }

// check goes one step of the authentication. The session it returns is complete and the caller's alone: finish ends
// it, release lets it go.
func (u *UIA) check(c *httpapi.Call, user matrix.UserID, flows []Flow) (*Proof, error) {
	var body struct {
		Auth json.RawMessage `json:"auth"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	p := &Proof{User: user, Operation: operation(c), Flows: flows}
	if len(body.Auth) == 0 || string(body.Auth) == "null" {
		if err := u.save(c.Ctx(), p); err != nil {
			return nil, err
		}
		return nil, u.challenge(p, nil)
	}
	var auth struct {
		Type    string `json:"type"`
		Session string `json:"session"`
	}
	if err := httpapi.Decode(body.Auth, &auth); err != nil {
		return nil, err
	}
	if auth.Session != "" {
		if err := u.load(c.Ctx(), p, auth.Session); err != nil {
			return nil, err
		}
	}
	if err := u.step(c, p, auth.Type, body.Auth); err != nil {
		p.release()
		return nil, err
	}
	return p, nil
}

// step tries a stage, unless that is done or none is named. It is nil when the authentication is complete.
func (u *UIA) step(c *httpapi.Call, p *Proof, stage string, auth json.RawMessage) error {
	var failed *matrix.Error
	if stage != "" && !p.Completed(stage) {
		err := u.try(c, p, stage, auth)
		var no *refusal
		switch {
		case err == nil:
		case errors.As(err, &no):
			return no.err
		case !errors.As(err, &failed) || failed.Status >= 500 || failed.Status == 429:
			return err
		}
	}
	if failed == nil && p.enough() {
		if p.changed && p.stored { // the request may fail yet, and the client try again
			return u.save(c.Ctx(), p)
		}
		return nil
	}
	if p.changed || !p.stored { // a session begun without one gets its ID here
		if err := u.save(c.Ctx(), p); err != nil {
			return err
		}
	}
	return u.challenge(p, failed)
}

// try tries one stage and notes its success.
func (u *UIA) try(c *httpapi.Call, p *Proof, stage string, auth json.RawMessage) error {
	if !p.mayFollow(stage) {
		return matrix.NewError(401, "M_UNRECOGNIZED", "%s does not come next in any of the flows", stage)
	}
	s := u.Stage(stage)
	if s == nil || s.Check == nil {
		return matrix.NewError(401, "M_UNRECOGNIZED", "%s is not supported", stage)
	}
	if err := s.Check(c, p, auth); err != nil {
		return err
	}
	p.complete(stage)
	return nil
}

// challenge is the 401 answer.
func (u *UIA) challenge(p *Proof, failed *matrix.Error) *matrix.Error {
	type flow struct {
		Stages []string `json:"stages"`
	}
	list := make([]flow, len(p.Flows))
	params := map[string]any{}
	for i, f := range p.Flows {
		list[i].Stages = f
		for _, typ := range f {
			if s := u.Stage(typ); s != nil && s.Params != nil && params[typ] == nil {
				params[typ] = s.Params(p)
			}
		}
	}
	maps.DeleteFunc(params, func(_ string, v any) bool { return v == nil })
	completed := p.completed
	if completed == nil {
		completed = []string{}
	}
	e := &matrix.Error{Status: 401, Extra: map[string]any{
		"session": p.Session, "flows": list, "params": params, "completed": completed,
	}}
	if failed != nil {
		e.Code, e.Msg = failed.Code, failed.Msg
	}
	return e
}

// Complete notes that the user has completed a stage of a session outside of its request, such as on another site.
func (u *UIA) Complete(ctx context.Context, session, stage string, user matrix.UserID) error {
	p := &Proof{}
	if err := u.load(ctx, p, session); err != nil {
		return err
	}
	defer p.release()
	switch {
	case p.User == "" || p.User != user:
		return matrix.Forbidden("this authentication session belongs to somebody else")
	case p.Completed(stage):
		return nil
	case !p.mayFollow(stage):
		return matrix.Forbidden("%s does not come next in any of the flows", stage)
	}
	p.complete(stage)
	return u.save(ctx, p)
}

// Pending is the user of an authentication session and what it is for ("DELETE /_matrix/…").
func (u *UIA) Pending(ctx context.Context, session string) (matrix.UserID, string, error) {
	p := &Proof{}
	err := u.load(ctx, p, session)
	p.release()
	return p.User, p.Operation, err
}

// load takes a session for itself and reads it. It must belong to the user and the operation that p names, if any.
func (u *UIA) load(ctx context.Context, p *Proof, id string) error {
	var (
		user                              matrix.UserID
		operation, completed, flows, data string
		created                           int64
	)
	unknown := matrix.Unknown("there is no such authentication session, begin anew")
	if !isText(id) || len(id) > 255 {
		return unknown
	}
	unlock, err := u.busy.LockContext(ctx, id)
	if err != nil {
		return err
	}
	p.unlock = unlock
	err = u.a.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qUIA, id).Scan(&user, &operation, &completed, &flows, &data, &created)
	})
	if err == nil && created < matrix.Millis(u.a.now().Add(-uiaLifetime)) {
		err = sqldb.ErrNoRows
	}
	switch {
	case errors.Is(err, sqldb.ErrNoRows):
		err = unknown
	case err != nil:
		err = fmt.Errorf("reading authentication session: %w", err)
	case p.Operation != "" && operation != p.Operation || p.User != "" && user != p.User:
		err = matrix.Forbidden("this authentication session belongs to another request")
	default:
		err = errors.Join(json.Unmarshal([]byte(completed), &p.completed), json.Unmarshal([]byte(data), &p.Evidence))
		if p.Flows == nil && err == nil {
			err = json.Unmarshal([]byte(flows), &p.Flows)
		}
		if err != nil {
			err = fmt.Errorf("reading authentication session: %w", err)
		}
	}
	if err != nil {
		p.release()
		return err
	}
	p.Session, p.User, p.Operation, p.stored = id, user, operation, true
	return nil
}

// save stores a session, under a new ID if it has none.
func (u *UIA) save(ctx context.Context, p *Proof) error {
	completed, err1 := json.Marshal(append([]string{}, p.completed...))
	flows, err2 := json.Marshal(p.Flows)
	evidence, err3 := json.Marshal(p.Evidence)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if p.Evidence == nil {
		evidence = []byte("{}")
	}
	id := p.Session
	if !p.stored {
		id = matrix.RandomString(24)
	}
	err := u.a.db.Write(ctx, func(tx *sqldb.Tx) error {
		if !p.stored {
			_, err := tx.Exec(qInsertUIA, id, string(p.User), p.Operation, string(completed), string(flows), string(evidence),
				p.Evidence[StageToken], matrix.Millis(u.a.now()))
			return err
		}
		_, err := tx.Exec(qSetUIA, id, string(p.User), string(completed), string(evidence), p.Evidence[StageToken])
		return err
	})
	if err != nil {
		return fmt.Errorf("storing authentication session: %w", err)
	}
	p.Session, p.stored, p.changed = id, true, false
	return nil
}

// finish ends a completed session, so that its proof cannot be used again.
func (u *UIA) finish(ctx context.Context, p *Proof) error {
	if !p.stored {
		return nil
	}
	err := u.a.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qDeleteUIA, p.Session)
		return err
	})
	if err != nil {
		return fmt.Errorf("ending authentication session: %w", err)
	}
	return nil
}
