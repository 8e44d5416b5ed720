package push

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/pages"
)

// leavePath is the page behind the link that ends the e-mails.
const leavePath = "/_carillon/push/v1/unsubscribe"

// leaveRoutes are there whether e-mails are sent or not: links in old ones go on to work.
func (p *Push) leaveRoutes() []httpapi.Route {
	if p.opts.Email == nil {
		return nil
	}
	route := func(method string) httpapi.Route {
		return httpapi.Route{Method: method, Path: leavePath, Auth: httpapi.AuthNone, RateLimit: true, MaxBody: 16 << 10, Handler: p.leavePage}
	}
	return []httpapi.Route{route("GET"), route("POST")}
}

func (p *Push) leaveLink(x *pusher, lang string) string {
	return strings.TrimSuffix(p.opts.Email.PublicURL, "/") + leavePath + "?" + url.Values{"token": {p.leaveToken(x)}, "lang": {lang}}.Encode()
}

// leaveToken names a pusher and proves that it comes from one of its e-mails. It is good for this pusher alone: for one
// that is made anew later, another is needed.
func (p *Push) leaveToken(x *pusher) string {
	mac := hmac.New(sha256.New, p.opts.Email.Key)
	fmt.Fprintf(mac, "unsubscribe\x00%d\x00%s\x00%s", x.ID, x.User, x.Pushkey)
	return strconv.FormatInt(x.ID, 36) + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// ofToken finds the pusher of a link, nil if the link is forged or the pusher is gone.
func (p *Push) ofToken(token string) *pusher {
	head, _, _ := strings.Cut(token, ".")
	id, err := strconv.ParseInt(head, 36, 64)
	if err != nil {
		return nil
	}
	p.mail.mu.Lock()
	b := p.mail.boxes[id]
	p.mail.mu.Unlock()
	if b == nil || !hmac.Equal([]byte(p.leaveToken(b.s.pusher)), []byte(token)) {
		return nil
	}
	return b.s.pusher
}

// leavePage asks for a press of the button, as programs that look for evil links open all of them; mail programs send
// the POST by themselves (RFC 8058).
func (p *Push) leavePage(c *httpapi.Call) (any, error) {
	lang := c.Query("lang")
	if lang != pages.Chinese && lang != pages.English {
		lang = pages.Language(c.R.Header.Get("Accept-Language"), pages.Chinese)
	}
	page := pages.Page{Lang: lang, Title: pages.Text{ZH: "邮件通知", EN: "E-mails of unread messages"}.In(lang)}
	x := p.ofToken(c.Query("token"))
	switch {
	case x == nil:
		page.Text = []string{pages.Text{ZH: "链接已失效：通知可能已经关闭。", EN: "This link is no longer valid. Perhaps the e-mails have been ended already."}.In(lang)}
		page.Status = 404
	case c.R.Method == "GET":
		page.Text = []string{pages.Text{ZH: "停止向此邮箱发送未读消息通知：", EN: "End the e-mails of unread messages to this address:"}.In(lang), x.Pushkey}
		page.Form = &pages.Form{Button: pages.Text{ZH: "停止发送", EN: "End them"}.In(lang)}
	default:
		if err := p.dropPusher(context.WithoutCancel(c.Ctx()), x.User, x.AppID, x.Pushkey); err != nil {
			log.WithError(err).Error("ending the e-mails of a user failed")
			page.Text, page.Status = []string{pages.Text{ZH: "出错了，请稍后再试。", EN: "Something went wrong. Try again later."}.In(lang)}, 500
			break
		}
		page.Text = []string{pages.Text{ZH: "已停止发送。您可以随时在应用设置中重新开启。", EN: "They have been ended. You can have them again in the settings of your app."}.In(lang)}
	}
	return httpapi.Done, page.Write(c.W)
}
