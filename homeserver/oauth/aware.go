package oauth

import (
	"net/url"

	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sso"
)

// AwareLogin is where m.login.sso goes that names no provider: the same sign-in as that of the OAuth 2.0 API, with a
// password or at a provider, for clients which know the legacy API alone.
// Spec: client-server-api#oauth-20-aware-clients
func (o *Server) AwareLogin(v *browser.Visit, redirectURL, action string) (any, error) {
	next := pathAccount + "/client?" + url.Values{"redirectUrl": {redirectURL}}.Encode()
	if open, _ := o.Accounts.RegistrationOpen(); open && action == "register" {
		return v.Redirect(pathSignUp + "?" + url.Values{"then": {next}}.Encode())
	}
	return v.Redirect(loginAddress(next, "", false))
}

// awareTarget is the address of the client, checked.
func awareTarget(v *browser.Visit) (string, error) {
	target := v.Query("redirectUrl")
	if !sso.ClientAddress(target) {
		return "", matrix.InvalidParam("redirectUrl is no address of a client")
	}
	return target, nil
}

// awarePage asks whether a client may use the account, by the name of where it is.
func (o *Server) awarePage(v *browser.Visit) (any, error) {
	target, err := awareTarget(v)
	if err != nil {
		return nil, err
	}
	s, a, err := o.need(v, false)
	if s == nil {
		return a, err
	}
	name := targetName(target)
	return v.Show("consent", browser.View{
		Bind: s.bind, Targets: []string{target},
		Body: &consent{Client: name, Host: name, Target: name, User: s.user, Again: here(v), SignOut: v.Token(s.bind)},
	})
}

func (o *Server) awareForm(v *browser.Visit) (any, error) {
	target, err := awareTarget(v)
	if err != nil {
		return nil, err
	}
	s, a, err := o.need(v, false)
	if s == nil {
		return a, err
	}
	if err := v.Check(s.bind); err != nil {
		return nil, err
	}
	if v.Form("decision") != "allow" {
		return v.Show("message", browser.View{Notice: v.T("已拒绝，该应用没有获得访问权限。", "Declined. The app has no access.")})
	}
	to, err := o.SSO.WithLoginToken(v.Ctx(), target, s.user)
	if err != nil {
		return nil, err
	}
	return v.Redirect(to)
}
