package accounts

import (
	"encoding/json"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
)

// identifier names a user.
//
// Spec: client-server-api#identifier-types
type identifier struct {
	Type    string `json:"type"`
	User    string `json:"user"`
	Medium  string `json:"medium"`
	Address string `json:"address"`
	Country string `json:"country"`
	Phone   string `json:"phone"`
	Number  string `json:"number"` // an older name of phone
}

// Policy is a document that people have to accept when they register.
//
// Spec: client-server-api#terms-of-service-at-registration
type Policy struct {
	ID      string // such as terms_of_service
	Version string
	Name    pages.Text
	URL     pages.Text
}

// addStages makes the stages known that need nobody else.
func (u *UIA) addStages() {
	u.AddStage(Stage{
		Type: StagePassword, Check: u.checkPassword, Page: u.passwordPage,
		Alone: func(user User, _ string) bool { return u.a.PasswordsAllowed() && (user.ID == "" || user.HasPassword) },
	})
	u.AddStage(Stage{
		Type:  StageDummy,
		Check: func(*httpapi.Call, *Proof, json.RawMessage) error { return nil },
		Page: func(c *httpapi.Call, _ *Proof, lang string) (pages.Page, bool, error) {
			return pages.Page{
				Title: pages.Text{ZH: "继续", EN: "Continue"}.In(lang),
				Form:  &pages.Form{Button: pages.Text{ZH: "继续", EN: "Continue"}.In(lang)},
			}, isPost(c), nil
		},
	})
	u.AddStage(Stage{Type: StageToken, Check: u.checkToken, Page: u.tokenPage})
	u.AddStage(Stage{Type: StageTerms, Check: u.acceptTerms, Params: u.termsParams, Page: u.termsPage})
}

func isPost(c *httpapi.Call) bool { return c.R.Method == "POST" }

// checkPassword is the stage m.login.password: the password of the session's user and nobody else.
func (u *UIA) checkPassword(c *httpapi.Call, p *Proof, raw json.RawMessage) error {
	var auth struct {
		Identifier *identifier `json:"identifier"`
		User       string      `json:"user"`
		Password   string      `json:"password"`
	}
	if err := httpapi.Decode(raw, &auth); err != nil {
		return err
	}
	user, byAddress := p.User, false
	if auth.Identifier != nil || auth.User != "" {
		who, err := u.a.identified(c.Ctx(), auth.Identifier, auth.User)
		if err != nil {
			return err
		}
		byAddress = who.byAddress
		if p.User != "" && who.user != p.User {
			if byAddress { // whose address it is, is not told
				return Refusal(wrongPassword())
			}
			if !u.a.Exists(who.user) {
				return wrongPassword()
			}
			return Refusal(matrix.Forbidden("this is for %s to confirm", p.User))
		}
		user = who.user
	}
	if user == "" {
		return wrongPassword()
	}
	if err := u.a.checkLogin(c.Ctx(), user, auth.Password); err != nil {
		if byAddress && matrix.IsCode(err, "M_FORBIDDEN") {
			return Refusal(wrongPassword()) // as for an address that nobody has
		}
		return err
	}
	p.User, p.changed = user, true
	return nil
}

func wrongPassword() *matrix.Error { return matrix.Forbidden("wrong user name or password") }

func (u *UIA) passwordPage(c *httpapi.Call, p *Proof, lang string) (pages.Page, bool, error) {
	page := pages.Page{
		Title: pages.Text{ZH: "确认身份", EN: "Confirm that it is you"}.In(lang),
		Text:  []string{pages.Text{ZH: "请输入账户密码以继续。", EN: "Enter the password of your account to continue."}.In(lang)},
		Form:  &pages.Form{Button: pages.Text{ZH: "确认", EN: "Confirm"}.In(lang)},
	}
	user := pages.Field{Name: "user", Label: pages.Text{ZH: "用户名", EN: "User name"}.In(lang), Autocomplete: "username"}
	if p.User == "" {
		page.Form.Fields = append(page.Form.Fields, user)
	} else {
		page.Text = append(page.Text, string(p.User))
	}
	page.Form.Fields = append(page.Form.Fields, pages.Field{
		Name: "password", Label: pages.Text{ZH: "密码", EN: "Password"}.In(lang), Type: "password", Autocomplete: "current-password",
	})
	if !isPost(c) {
		return page, false, nil
	}
	form, err := pages.ReadForm(c.BodyReader())
	if err != nil {
		return page, false, err
	}
	who := p.User
	if who == "" {
		found, _ := u.a.localUser(strings.TrimSpace(form.Get("user")))
		who = found.ID
	}
	err = u.a.checkLogin(c.Ctx(), who, form.Get("password"))
	if matrix.IsCode(err, "M_FORBIDDEN") || matrix.IsCode(err, "M_USER_DEACTIVATED") {
		page.Error = pages.Text{ZH: "用户名或密码不正确。", EN: "The user name or the password is wrong."}.In(lang)
		page.Status = 403
		return page, false, nil
	}
	if err == nil {
		p.User, p.changed = who, true
	}
	return page, err == nil, err
}

// checkToken is the stage m.login.registration_token.
//
// Spec: client-server-api#token-authenticated-registration
func (u *UIA) checkToken(c *httpapi.Call, p *Proof, raw json.RawMessage) error {
	var auth struct {
		Token string `json:"token"`
	}
	if err := httpapi.Decode(raw, &auth); err != nil {
		return err
	}
	return u.useToken(c, p, auth.Token)
}

func (u *UIA) useToken(c *httpapi.Call, p *Proof, token string) error {
	t, err := u.a.registrationToken(c.Ctx(), token, p.Session)
	if err != nil {
		return err
	}
	if t == nil || !t.valid(u.a.now()) {
		return matrix.NewError(401, "M_UNAUTHORIZED", "the registration token is not valid")
	}
	p.Remember(StageToken, token)
	return nil
}

func (u *UIA) tokenPage(c *httpapi.Call, p *Proof, lang string) (pages.Page, bool, error) {
	page := pages.Page{
		Title: pages.Text{ZH: "注册邀请码", EN: "Registration token"}.In(lang),
		Text:  []string{pages.Text{ZH: "请输入管理员给您的注册邀请码。", EN: "Enter the registration token that you were given."}.In(lang)},
		Form: &pages.Form{Button: pages.Text{ZH: "继续", EN: "Continue"}.In(lang), Fields: []pages.Field{
			{Name: "token", Label: pages.Text{ZH: "邀请码", EN: "Token"}.In(lang), Autocomplete: "off"},
		}},
	}
	if !isPost(c) {
		return page, false, nil
	}
	form, err := pages.ReadForm(c.BodyReader())
	if err != nil {
		return page, false, err
	}
	err = u.useToken(c, p, strings.TrimSpace(form.Get("token")))
	if matrix.IsCode(err, "M_UNAUTHORIZED") {
		page.Error, page.Status = pages.Text{ZH: "邀请码无效或已用完。", EN: "The token is not valid or used up."}.In(lang), 401
		return page, false, nil
	}
	return page, err == nil, err
}

// acceptTerms is the stage m.login.terms: what was accepted is what is in force now.
func (u *UIA) acceptTerms(_ *httpapi.Call, p *Proof, _ json.RawMessage) error {
	versions := map[string]string{}
	for _, d := range u.a.opts.Registration.Policies {
		versions[d.ID] = d.Version
	}
	b, err := json.Marshal(versions)
	if err == nil {
		p.Remember(StageTerms, string(b))
	}
	return err
}

func (u *UIA) termsParams(*Proof) any {
	type document struct {
		Name string `json:"name"`
		URL  string `json:"url"`
	}
	policies := map[string]map[string]any{}
	for _, d := range u.a.opts.Registration.Policies {
		m := map[string]any{"version": d.Version}
		for _, lang := range []string{pages.Chinese, pages.English} {
			if d.URL.In(lang) != "" {
				m[lang] = document{d.Name.In(lang), d.URL.In(lang)}
			}
		}
		policies[d.ID] = m
	}
	return map[string]any{"policies": policies}
}

func (u *UIA) termsPage(c *httpapi.Call, p *Proof, lang string) (pages.Page, bool, error) {
	page := pages.Page{
		Title: pages.Text{ZH: "服务条款", EN: "Terms of service"}.In(lang),
		Text:  []string{pages.Text{ZH: "注册前请阅读并同意以下文件。", EN: "Please read and accept these documents before you register."}.In(lang)},
		Form:  &pages.Form{Button: pages.Text{ZH: "我已阅读并同意", EN: "I have read and accept them"}.In(lang)},
	}
	for _, d := range u.a.opts.Registration.Policies {
		address := d.URL.In(lang)
		if address == "" {
			address = d.URL.ZH + d.URL.EN // the one that there is
		}
		page.Links = append(page.Links, pages.Link{Text: d.Name.In(lang), URL: address})
	}
	if !isPost(c) {
		return page, false, nil
	}
	return page, true, u.acceptTerms(c, p, nil)
}
