package threepids

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
)

func stageOf(medium string) string {
	if medium == Email {
		return StageEmail
	}
	return StageMSISDN
}

// purposeOf is what a proof is needed for in an operation such as "POST /_matrix/client/v3/register".
func purposeOf(operation string) (purpose, bool) {
	switch {
	case strings.HasSuffix(operation, "/register"):
		return forRegistration, true
	case strings.HasSuffix(operation, "/account/password"):
		return forPassword, true
	}
	return "", false
}

// stage is m.login.email.identity or m.login.msisdn: part of a registration, and enough to reset a password.
//
// Spec: client-server-api#email-based-identity--homeserver
func (t *Threepids) stage(typ, medium string) accounts.Stage {
	return accounts.Stage{
		Type: typ,
		Alone: func(user accounts.User, operation string) bool {
			p, ok := purposeOf(operation)
			return ok && p == forPassword && user.ID == ""
		},
		Check: func(c *httpapi.Call, p *accounts.Proof, raw json.RawMessage) error {
			var auth struct {
				Creds *creds `json:"threepid_creds"`
				Old   *creds `json:"threepidCreds"` // what clients of older versions send
			}
			if err := httpapi.Decode(raw, &auth); err != nil {
				return err
			}
			if auth.Creds == nil {
				auth.Creds = auth.Old
			}
			if auth.Creds == nil || auth.Creds.SID == "" || auth.Creds.Secret == "" {
				return matrix.MissingParam("threepid_creds with sid and client_secret is needed")
			}
			return t.check(c, p, typ, medium, auth.Creds.SID, auth.Creds.Secret)
		},
		Page: func(c *httpapi.Call, p *accounts.Proof, lang string) (pages.Page, bool, error) {
			return t.stagePage(c, p, typ, medium, lang)
		},
	}
}

// check takes a proof for an authentication.
func (t *Threepids) check(c *httpapi.Call, p *accounts.Proof, typ, medium, sid, secret string) error {
	goal, ok := purposeOf(p.Operation)
	if !ok {
		return matrix.NewError(401, "M_UNRECOGNIZED", "%s does not help here", typ)
	}
	by := p.Session
	if by == "" {
		by = matrix.RandomString(24)
	}
	s, err := t.use(c.Ctx(), sid, secret, medium, goal, "", by)
	if matrix.IsCode(err, "M_THREEPID_AUTH_FAILED") {
		return matrix.NewError(401, "M_UNAUTHORIZED", "the address has not been proven yet")
	}
	if err != nil {
		return err
	}
	owner, err := t.UserOf(c.Ctx(), medium, s.address)
	if err != nil {
		return err
	}
	switch {
	case goal == forRegistration && owner != "":
		return accounts.Refusal(inUse())
	case goal == forPassword && owner == "":
		return accounts.Refusal(matrix.NewError(400, "M_THREEPID_NOT_FOUND", "no account has this address"))
	case goal == forPassword && p.User != "" && p.User != owner:
		return accounts.Refusal(matrix.Forbidden("this address belongs to somebody else"))
	case goal == forPassword:
		p.User = owner
	}
	evidence, err := json.Marshal(Contact{Medium: s.medium, Address: s.address, ValidatedAt: s.validated})
	if err != nil {
		return err
	}
	p.Remember(typ, string(evidence))
	return nil
}

// stagePage is the stage in a browser: first the address, then the code.
func (t *Threepids) stagePage(c *httpapi.Call, p *accounts.Proof, typ, medium, lang string) (pages.Page, bool, error) {
	goal, ok := purposeOf(p.Operation)
	if !ok {
		return pages.Page{}, false, matrix.Forbidden("this does not help here")
	}
	if err := t.offered(medium, goal); err != nil {
		return pages.Page{}, false, err
	}
	if c.R.Method != "POST" {
		return addressPage(medium, lang, ""), false, nil
	}
	form, err := pages.ReadForm(c.BodyReader())
	if err != nil {
		return pages.Page{}, false, err
	}
	if form.Get("sid") == "" {
		return t.sendFromPage(c, goal, medium, lang, form.Get("country"), form.Get("address"))
	}
	sid, secret := form.Get("sid"), form.Get("secret")
	again := codePage(medium, lang, sid, secret)
	// Who has pressed the button in the message has proven the address already.
	if _, err := t.proven(c.Ctx(), sid, secret, medium, goal, ""); err != nil {
		if _, err := t.submit(c.Ctx(), sid, secret, form.Get("code"), false); err != nil {
			again.Error = pages.Text{ZH: "验证码不正确或已失效。", EN: "The code is wrong or no longer valid."}.In(lang)
			again.Status = 401
			return again, false, ours(err)
		}
	}
	err = t.check(c, p, typ, medium, sid, secret)
	var refused *matrix.Error
	if errors.As(err, &refused) && refused.Status < 500 {
		again.Error = pages.Text{ZH: "此次验证无法用于当前操作。", EN: "This proof cannot be used here."}.In(lang)
		again.Status = 401
		return again, false, nil
	}
	return again, err == nil, err
}

// ours is an error that the person at the page can do nothing about; nil for their own mistakes.
func ours(err error) error {
	var e *matrix.Error
	if errors.As(err, &e) && e.Status < 500 && e.Status != 429 {
		return nil
	}
	return err
}

func (t *Threepids) sendFromPage(c *httpapi.Call, goal purpose, medium, lang, country, address string) (pages.Page, bool, error) {
	d := demand{medium: medium, purpose: goal, secret: matrix.RandomString(32), attempt: 1, client: c.RemoteIP(), lang: lang}
	var err error
	if medium == Email {
		d.address, err = EmailAddress(address)
	} else {
		d.address, err = Phone(strings.ToUpper(strings.TrimSpace(country)), address)
	}
	if err == nil && goal != forPassword {
		err = t.permitted(medium, d.address)
	}
	if err != nil {
		page := addressPage(medium, lang, pages.Text{ZH: "请检查您的输入。", EN: "Please check what you have entered."}.In(lang))
		page.Status = 400
		return page, false, ours(err)
	}
	sid, err := t.ask(c.Ctx(), d)
	if err != nil {
		return pages.Page{}, false, err
	}
	return codePage(medium, lang, sid, d.secret), false, nil
}

func addressPage(medium, lang, problem string) pages.Page {
	p := pages.Page{Error: problem, Form: &pages.Form{Button: pages.Text{ZH: "发送验证码", EN: "Send a code"}.In(lang)}}
	if medium == Email {
		p.Title = pages.Text{ZH: "验证邮箱", EN: "Confirm your e-mail address"}.In(lang)
		p.Form.Fields = []pages.Field{{Name: "address", Label: pages.Text{ZH: "邮箱", EN: "E-mail address"}.In(lang), Type: "email", Autocomplete: "email"}}
		return p
	}
	p.Title = pages.Text{ZH: "验证手机号", EN: "Confirm your telephone number"}.In(lang)
	p.Form.Fields = []pages.Field{
		{Name: "country", Label: pages.Text{ZH: "国家或地区（如 CN）", EN: "Country (such as CN)"}.In(lang), Value: "CN", Autocomplete: "country"},
		{Name: "address", Label: pages.Text{ZH: "手机号", EN: "Telephone number"}.In(lang), Type: "tel", Autocomplete: "tel"},
	}
	return p
}

func codePage(medium, lang, sid, secret string) pages.Page {
	p := pages.Page{
		Title: pages.Text{ZH: "输入验证码", EN: "Enter the code"}.In(lang),
		Text:  []string{pages.Text{ZH: "我们已发送一条短信，请输入其中的验证码。", EN: "A text has been sent to you. Enter the code that is in it."}.In(lang)},
		Form: &pages.Form{Button: pages.Text{ZH: "确认", EN: "Confirm"}.In(lang), Fields: []pages.Field{
			{Name: "sid", Value: sid},
			{Name: "secret", Value: secret},
			{Name: "code", Label: pages.Text{ZH: "验证码", EN: "Code"}.In(lang), Autocomplete: "one-time-code"},
		}},
	}
	if medium == Email {
		p.Text[0] = pages.Text{ZH: "我们已发送一封邮件，请输入其中的验证码。", EN: "A message has been sent to you. Enter the code that is in it."}.In(lang)
	}
	return p
}
