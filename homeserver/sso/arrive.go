package sso

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// user is the account of an identity, "" if it has none.
func (s *SSO) user(ctx context.Context, i identity) (user matrix.UserID, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qIdentity, i.Provider, i.Subject).Scan(&user) })
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return "", fmt.Errorf("reading identity: %w", err)
	}
	return user, nil
}

// arrive finds or makes the account of somebody who has signed in at a provider.
func (s *SSO) arrive(v *browser.Visit, p *provider, who *person, w Purpose) (any, error) {
	i := identity{p.ID, who.Subject}
	user, err := s.user(v.Ctx(), i)
	if err != nil {
		return nil, err
	}
	if user != "" {
		return s.finish(v, user, w)
	}
	if w.UIA != "" { // whoever confirms something has an account
		return s.finishUnknown(v)
	}
	name, err := render(p.local, who.claims)
	if err != nil {
		log.WithError(err).WithField("provider", p.ID).Warn("the claims of a person make no user name")
		return v.Show("problem", browser.View{Status: http.StatusForbidden, Error: v.T("登录服务没有提供您的用户名，请联系管理员。", "The sign-in service does not tell your user name. Ask your administrator.")})
	}
	name = localpart(name)
	have, taken := s.accounts.Local(name)
	switch {
	case taken && (have.Deactivated || have.Guest || have.AppService != "" && s.isService(have.ID)):
		return s.noAccount(v)
	case taken && p.LinkExisting:
		return s.linkAndFinish(v, i, have.ID, w)
	case taken:
		return s.conflict(v, 0, i, have, w, "")
	case !p.Create:
		return s.noAccount(v)
	}
	return s.create(v, p, i, name, who, w)
}

// isService says whether an account is an application service's own user.
func (s *SSO) isService(user matrix.UserID) bool {
	for _, as := range s.accounts.ApplicationServices() {
		if as.Sender(user.Server()) == user {
			return true
		}
	}
	return false
}

func (s *SSO) noAccount(v *browser.Visit) (any, error) {
	return v.Show("problem", browser.View{
		Status: http.StatusForbidden,
		Error:  v.T("您在此服务器上没有账号，请联系管理员。", "You have no account on this server. Ask your administrator."),
	})
}

func (s *SSO) finishUnknown(v *browser.Visit) (any, error) {
	return v.Show("problem", browser.View{
		Status: http.StatusForbidden,
		Error:  v.T("您登录的是另一个账号，无法确认此操作。", "You have signed in as somebody else, who cannot confirm this."),
	})
}

// create makes the account and gives it to the identity, in one commit.
func (s *SSO) create(v *browser.Visit, p *provider, i identity, name string, who *person, w Purpose) (any, error) {
	user, err := s.accounts.FreeUser(name)
	if err != nil {
		var e *matrix.Error
		if errors.As(err, &e) {
			log.WithFields(log.Fields{"provider": p.ID, "code": e.Code}).Warn("a person's user name is not possible here")
			return s.noAccount(v)
		}
		return nil, err
	}
	display, err := render(p.display, who.claims)
	if err != nil {
		display = "" // a missing name keeps nobody out
	}
	now := s.now()
	err = s.accounts.Create(v.Ctx(), accounts.NewUser{
		ID: user, DisplayName: display, Also: func(tx *sqldb.Tx) error { return s.link(tx, i, user, now) },
	})
	switch {
	case errors.Is(err, errLinked): // the same person in another window, a moment ago
		if user, err = s.user(v.Ctx(), i); err != nil || user == "" {
			return nil, err
		}
	case err != nil:
		return nil, err
	default:
		log.WithFields(log.Fields{"provider": p.ID, "user_id": user}).Info("an account was made at its first sign-in")
	}
	return s.finish(v, user, w)
}

func (s *SSO) linkAndFinish(v *browser.Visit, i identity, user matrix.UserID, w Purpose) (any, error) {
	if err := s.accounts.MayLogin(user); err != nil {
		return nil, err
	}
	err := s.db.Write(v.Ctx(), func(tx *sqldb.Tx) error { return s.link(tx, i, user, s.now()) })
	if errors.Is(err, errLinked) {
		if user, err = s.user(v.Ctx(), i); err != nil || user == "" {
			return nil, err
		}
		return s.finish(v, user, w)
	}
	if err != nil {
		return nil, fmt.Errorf("storing identity: %w", err)
	}
	log.WithFields(log.Fields{"provider": i.Provider, "user_id": user}).Info("an account was linked with an identity")
	return s.finish(v, user, w)
}

// claim is what is sealed while somebody proves that an account is theirs.
type claim struct {
	Identity identity      `json:"i"`
	User     matrix.UserID `json:"u"`
	Purpose  Purpose       `json:"w"`
}

// conflictBody is what the page for a taken name shows.
type conflictBody struct {
	Box      string
	User     matrix.UserID
	Provider string
	Password bool // the account can be proven by its password
}

// conflict tells somebody that their name is taken, and lets them prove that the account is theirs.
func (s *SSO) conflict(v *browser.Visit, status int, i identity, have accounts.User, w Purpose, problem string) (any, error) {
	box, err := s.seal.close(sealLink, claim{i, have.ID, w}, flowLifetime)
	if err != nil {
		return nil, err
	}
	if status == 0 {
		status = http.StatusConflict
	}
	body := conflictBody{Box: box, User: have.ID, Password: have.HasPassword && s.accounts.PasswordsAllowed()}
	if p := s.provider(i.Provider); p != nil {
		body.Provider = p.Name
	}
	view := browser.View{Status: status, Bind: "link", Body: body, Error: problem}
	if w.Client != "" {
		view.Targets = []string{w.Client} // where the form may lead in the end
	}
	return v.Show("conflict", view)
}

// linkForm is the password of somebody whose name was taken.
func (s *SSO) linkForm(v *browser.Visit) (any, error) {
	if err := v.Check("link"); err != nil {
		return nil, err
	}
	var c claim
	if s.seal.open(sealLink, v.Form("box"), &c) != nil {
		return nil, browser.ErrForm
	}
	_, err := s.accounts.CheckPassword(v.Ctx(), string(c.User), v.Form("password"))
	var e *matrix.Error
	if errors.As(err, &e) {
		have, _ := s.accounts.User(c.User)
		status, text := v.Explain(err)
		if e.Code == "M_FORBIDDEN" {
			text = v.T("密码不正确。", "Wrong password.")
		}
		return s.conflict(v, status, c.Identity, have, c.Purpose, text)
	}
	if err != nil {
		return nil, err
	}
	c.Purpose.authAt = matrix.Millis(s.now())
	return s.linkAndFinish(v, c.Identity, c.User, c.Purpose)
}
