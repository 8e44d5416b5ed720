package accounts

import (
	"errors"
	"net/http"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
)

// fallback is a stage in the browser, for clients that do not know it.
//
// Spec: client-server-api#fallback
func (u *UIA) fallback(c *httpapi.Call) (any, error) {
	lang := pages.Language(c.R.Header.Get("Accept-Language"), u.a.opts.Language)
	page, err := u.fallbackPage(c, lang)
	var e *matrix.Error
	switch {
	case errors.As(err, &e) && e.Status == http.StatusTooManyRequests:
		page = pages.Page{
			Status: e.Status, Title: pages.Text{ZH: "请稍后再试", EN: "Try again later"}.In(lang),
			Text: []string{pages.Text{ZH: "尝试次数过多。", EN: "There were too many attempts."}.In(lang)},
		}
	case errors.As(err, &e):
		page = pages.Page{
			Status: e.Status, Title: pages.Text{ZH: "无法继续", EN: "This cannot go on"}.In(lang),
			Text: []string{pages.Text{ZH: "此页面已失效，请回到应用中重新开始。", EN: "This page is no longer valid. Go back to your app and begin anew."}.In(lang)},
		}
	case err != nil:
		log.WithError(err).WithField("request_id", c.ID()).Error("a page of interactive authentication failed")
		page = pages.Page{
			Status: http.StatusInternalServerError, Title: pages.Text{ZH: "出错了", EN: "Something went wrong"}.In(lang),
			Text: []string{pages.Text{ZH: "请稍后再试。", EN: "Try again later."}.In(lang)},
		}
	}
	page.Lang = lang
	return httpapi.Done, page.Write(c.W)
}

func (u *UIA) fallbackPage(c *httpapi.Call, lang string) (pages.Page, error) {
	if c.Query("session") == "" {
		return pages.Page{}, matrix.MissingParam("session is needed")
	}
	p := &Proof{}
	if err := u.load(c.Ctx(), p, c.Query("session")); err != nil {
		return pages.Page{}, err
	}
	defer p.release()
	s := u.Stage(c.Var("type"))
	switch {
	case s == nil || s.Page == nil:
		return pages.Page{}, matrix.NotFound("there is no page for this")
	case p.Completed(s.Type):
		return authDone(lang), nil
	case !p.mayFollow(s.Type):
		return pages.Page{}, matrix.Forbidden("this does not come next")
	}
	page, done, err := s.Page(c, p, lang)
	if err == nil && done {
		p.complete(s.Type)
	}
	if err == nil && p.changed {
		err = u.save(c.Ctx(), p)
	}
	if err != nil {
		return pages.Page{}, err
	}
	if done {
		return authDone(lang), nil
	}
	return page, nil
}

func authDone(lang string) pages.Page {
	return pages.Page{
		Title: pages.Text{ZH: "已完成", EN: "Done"}.In(lang), AuthDone: true,
		Text: []string{pages.Text{ZH: "您可以关闭此页面并回到应用。", EN: "You can close this page and go back to your app."}.In(lang)},
	}
}
