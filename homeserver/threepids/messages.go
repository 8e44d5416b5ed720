package threepids

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/mail"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
)

// base is where the pages and endpoints of this package are that the specification does not name.
const base = "/_carillon/contacts/v1"

// linkOf is the address in a message that proves an e-mail address.
func (t *Threepids) linkOf(s *session, token, lang string) string {
	return t.public.String() + base + "/validate?" + url.Values{"sid": {s.sid}, "token": {token}, "lang": {lang}}.Encode()
}

// submitURL is where clients bring the code.
func (t *Threepids) submitURL(medium string) string {
	return t.public.String() + base + "/" + medium + "/submit_token"
}

// send sends the message of a session, whatever it has to say.
func (t *Threepids) send(ctx context.Context, s *session, lang, token, code string) error {
	var err error
	if s.medium == Email {
		var m mail.Message
		l := t.letter(s, lang, token, code)
		if m, err = l.To(s.address, l.Title+" - "+t.opts.Company); err == nil {
			err = t.opts.Mail.Send(ctx, m)
		}
	} else {
		err = t.opts.SMS(ctx, "+"+s.address, t.text(s, lang, code))
	}
	if err == nil {
		return nil
	}
	log.WithError(err).WithField("medium", s.medium).Warn("a message with a code could not be sent")
	return matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the message could not be sent, try again later")
}

// text is a short message. Those in Chinese begin with their sender in brackets, as networks there ask for.
func (t *Threepids) text(s *session, lang, code string) string {
	var x pages.Text
	switch {
	case !s.dud:
		x = pages.Text{ZH: "【{}】验证码 " + code + "，60 分钟内有效。如非本人操作，请忽略本短信。", EN: "{}: your code is " + code + ", valid for 60 minutes. If you did not ask for it, ignore this message."}
	case s.purpose == forPassword:
		x = pages.Text{ZH: "【{}】您正在重置密码，但此号码没有对应的账户。", EN: "{}: somebody wants to reset a password with this number, but no account has it."}
	default:
		x = pages.Text{ZH: "【{}】此号码已属于一个账户。如忘记密码，请使用重置密码功能。", EN: "{}: this number belongs to an account already. If you have forgotten the password, reset it."}
	}
	return strings.ReplaceAll(x.In(lang), "{}", t.opts.Company)
}

// letter is an e-mail.
func (t *Threepids) letter(s *session, lang, token, code string) mail.Letter {
	say := func(zh, en string) mail.Part {
		return mail.Part{Text: strings.ReplaceAll(pages.Text{ZH: zh, EN: en}.In(lang), "{}", t.opts.Company)}
	}
	l := mail.Letter{Lang: lang}
	if small := t.opts.Signature.In(lang); small != "" {
		l.Small = append(l.Small, small)
	}
	switch {
	case s.dud && s.purpose == forPassword:
		l.Title = say("没有找到账户", "No account found").Text
		l.Parts = []mail.Part{
			say("有人（可能是您）想用这个邮箱重置 {} 的密码，但没有账户使用此邮箱。", "Somebody, perhaps you, wants to reset a password of {} with this e-mail address, but no account has it."),
			say("请确认您注册时使用的是否为其他邮箱。如果不是您本人操作，请忽略此邮件。", "Perhaps you have registered with another address. If it was not you, ignore this message."),
		}
		return l
	case s.dud:
		l.Title = say("此邮箱已被使用", "This address is in use").Text
		l.Parts = []mail.Part{
			say("有人（可能是您）想在 {} 使用这个邮箱，但它已属于一个账户。", "Somebody, perhaps you, wants to use this e-mail address at {}, but it belongs to an account already."),
			say("如果那是您的账户而您忘记了密码，请在登录页面选择“忘记密码”。如果不是您本人操作，请忽略此邮件。", "If it is your account and you have forgotten its password, choose to reset it where you log in. If it was not you, ignore this message."),
		}
		return l
	}
	switch s.purpose {
	case forPassword:
		l.Title = say("重置密码", "Reset your password").Text
		l.Parts = append(l.Parts, say("有人（可能是您）要求重置您在 {} 的密码。", "Somebody, perhaps you, wants to reset your password at {}."))
	default:
		l.Title = say("确认邮箱", "Confirm your e-mail address").Text
		l.Parts = append(l.Parts, say("请确认此邮箱属于您，以便在 {} 使用。", "Please confirm that this e-mail address is yours, to use it at {}."))
	}
	button := say("确认", "Confirm")
	button.Link = t.linkOf(s, token, lang)
	l.Parts = append(l.Parts,
		say("点击按钮，或在应用中输入验证码。60 分钟内有效。", "Press the button, or type the code into your app. They are valid for 60 minutes."),
		button, mail.Part{Code: code},
		say("如果不是您本人操作，请忽略此邮件，也不要把验证码告诉任何人。", "If it was not you, ignore this message, and tell nobody the code."))
	return l
}
