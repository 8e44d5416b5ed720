package threepids

import (
	"errors"
	"net/url"
	"slices"
	"strings"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
)

// validatePage is behind the link in an e-mail. Opening it proves nothing, as programs that look for evil links open
// all of them: a person presses a button.
func (t *Threepids) validatePage(c *httpapi.Call) (any, error) {
	lang := c.Query("lang")
	if lang != pages.Chinese && lang != pages.English {
		lang = pages.Language(c.R.Header.Get("Accept-Language"), t.opts.Language)
	}
	page, err := t.validate(c, lang)
	var e *matrix.Error
	if errors.As(err, &e) {
		page = pages.Page{
			Status: e.Status, Title: pages.Text{ZH: "链接已失效", EN: "This link is no longer valid"}.In(lang),
			Text: []string{pages.Text{
				ZH: "链接可能已过期，或之后又发送了新的邮件。请使用最新的邮件，或在应用中重新发送。",
				EN: "It has expired, or a newer message has been sent. Use the newest message, or ask your app to send another.",
			}.In(lang)},
		}
	} else if err != nil {
		log.WithError(err).WithField("request_id", c.ID()).Error("the page that validates an address failed")
		page = pages.Page{
			Status: 500, Title: pages.Text{ZH: "出错了", EN: "Something went wrong"}.In(lang),
			Text: []string{pages.Text{ZH: "请稍后再试。", EN: "Try again later."}.In(lang)},
		}
	}
	page.Lang = lang
	return httpapi.Done, page.Write(c.W)
}

func (t *Threepids) validate(c *httpapi.Call, lang string) (pages.Page, error) {
	sid, token := c.Query("sid"), c.Query("token")
	if c.R.Method != "POST" {
		s, err := t.read(c.Ctx(), sid)
		if err != nil {
			return pages.Page{}, err
		}
		if !same(s.tokenHash, hash("token", s.sid, token)) || s.dud {
			return pages.Page{}, wrongToken()
		}
		page := pages.Page{
			Title: titleOf(s.purpose).In(lang),
			Text:  []string{pages.Text{ZH: "请确认此邮箱属于您：", EN: "Please confirm that this address is yours:"}.In(lang), s.address},
			Form:  &pages.Form{Button: pages.Text{ZH: "确认", EN: "Confirm"}.In(lang)},
		}
		if t.leadsOn(s.nextLink) {
			page.FormTargets = []string{s.nextLink}
		}
		return page, nil
	}
	s, err := t.submit(c.Ctx(), sid, "", token, true)
	if err != nil {
		return pages.Page{}, err
	}
	if t.leadsOn(s.nextLink) {
		return pages.Page{Redirect: s.nextLink}, nil
	}
	page := pages.Page{
		Title: pages.Text{ZH: "邮箱已确认", EN: "Your address is confirmed"}.In(lang),
		Text:  []string{pages.Text{ZH: "您可以关闭此页面并回到应用继续。", EN: "You can close this page and go on in your app."}.In(lang)},
	}
	if u, err := url.Parse(s.nextLink); err == nil && u.Host != "" {
		page.Links = []pages.Link{{Text: pages.Text{ZH: "前往 ", EN: "Go to "}.In(lang) + u.Host, URL: s.nextLink}}
	}
	return page, nil
}

func titleOf(p purpose) pages.Text {
	if p == forPassword {
		return pages.Text{ZH: "重置密码", EN: "Reset your password"}
	}
	return pages.Text{ZH: "确认邮箱", EN: "Confirm your e-mail address"}
}

// leadsOn says whether people are sent on to a page at once: it is on this server's own host or on one of those in the
// configuration. To others, which whoever asked for the message may have chosen to deceive its reader, a link is shown.
func (t *Threepids) leadsOn(next string) bool {
	u, err := url.Parse(next)
	if err != nil || u.Host == "" {
		return false
	}
	host := strings.ToLower(u.Host)
	return u.Host == t.public.Host || slices.ContainsFunc(t.opts.NextHosts, func(h string) bool { return strings.ToLower(h) == host })
}
