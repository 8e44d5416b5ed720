package hstest_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
)

func pusherBody(address string) obj {
	return obj{
		"kind": "email", "app_id": "m.email", "pushkey": address, "app_display_name": "邮件", "device_display_name": address,
		"lang": "zh-CN", "data": obj{}, "append": true,
	}
}

func TestUnreadMessagesAreToldByEmail(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t, func(o *homeserver.Options) {
		o.Contacts.Notify, o.Contacts.NotifyAfter, o.Contacts.NotifyEvery = true, 300*time.Millisecond, 500*time.Millisecond
	})
	s := hstest.New(t, opts...)
	alice, bob := s.User("alice"), s.User("bob")
	const address = "alice@mail.example"
	set := hstest.Path("pushers", "set")
	alice.Refused(400, "M_INVALID_PARAM", "POST", set, pusherBody(address))
	p.addEmail(t, s, alice, address)
	bob.Refused(400, "M_INVALID_PARAM", "POST", set, pusherBody(address))

	open := bob.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Name: "研发部"}, alice)
	quiet := bob.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Name: "已读房间"}, alice)
	bob.Say(open, "说在通知之前")
	alice.OK("POST", set, pusherBody("Alice@mail.example"))
	if got := alice.OK("GET", hstest.Path("pushers"), nil).Get("pushers.0"); got.Get("kind").Str != "email" || got.Get("pushkey").Str != address {
		t.Error(got)
	}
	read := bob.Say(quiet, "这条会读")
	bob.Say(open, "明天开会\n<b>十点</b>")
	if _, err := bob.SendMessageEvent(t.Context(), open, event.EventEncrypted, map[string]any{"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "geheim", "body": "geheim"}); err != nil {
		t.Fatal(err)
	}
	alice.OK("POST", hstest.Path("rooms", string(quiet), "receipt", "m.read", string(read)), obj{})
	m := p.Wait(t, address, 2) // the first was that of the address
	for _, want := range []string{"您有 2 条未读消息", "研发部", "@bob:a.example: 明天开会 <b>十点</b>", "（加密消息）", "不再接收此类邮件: " + publicURL} {
		if !strings.Contains(m.Text, want) {
			t.Errorf("no %q in\n%s", want, m.Text)
		}
	}
	for _, never := range []string{"geheim", "这条会读", "已读房间", "说在通知之前"} {
		if strings.Contains(m.Text+m.HTML, never) {
			t.Errorf("%q is in\n%s", never, m.Text)
		}
	}
	if !strings.Contains(m.HTML, "&lt;b&gt;") || m.Header.Get("List-Unsubscribe-Post") != "List-Unsubscribe=One-Click" || m.Header.Get("Auto-Submitted") == "" {
		t.Errorf("%v\n%s", m.Header, m.HTML)
	}
	// Nothing twice; the next message comes in an e-mail of its own, over a restart.
	bob.Say(open, "会议改到下午")
	time.Sleep(20 * time.Millisecond)
	s.Stop()
	s.Start()
	m = p.Wait(t, address, 3)
	if !strings.Contains(m.Text, "您有 1 条未读消息") || !strings.Contains(m.Text, "会议改到下午") || strings.Contains(m.Text, "明天开会") {
		t.Errorf("%s", m.Text)
	}
	// A mail server that is away for a moment loses nothing: it is tried again later, here at the next message.
	p.Refuse(&smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no"})
	bob.Say(open, "没人收")
	time.Sleep(700 * time.Millisecond)
	p.Refuse(nil)

	// The link ends it: looking does not, pressing does, once.
	link := linkIn(t, s, strings.Trim(m.Header.Get("List-Unsubscribe"), "<>"))
	forged := strings.Replace(link, "token=", "token=x", 1)
	for _, l := range []string{forged, strings.Split(link, "?")[0], strings.Split(link, "token=")[0] + "token=1"} {
		if status, _, _ := visit(t, l, url.Values{}); status != http.StatusNotFound {
			t.Errorf("%s: %d", l, status)
		}
	}
	if status, _, b := visit(t, link, nil); status != 200 || !strings.Contains(b, address) {
		t.Errorf("%d %s", status, b)
	}
	if n := alice.OK("GET", hstest.Path("pushers"), nil).Get("pushers.#").Int(); n != 1 {
		t.Errorf("%d pushers after a look", n)
	}
	if status, _, _ := visit(t, link, url.Values{"List-Unsubscribe": {"One-Click"}}); status != 200 {
		t.Errorf("%d", status)
	}
	if n := alice.OK("GET", hstest.Path("pushers"), nil).Get("pushers.#").Int(); n != 0 {
		t.Errorf("%d pushers after unsubscribing", n)
	}
	// A pusher made anew is not ended by the old link, but by the loss of the address.
	alice.OK("POST", set, pusherBody(address))
	if status, _, _ := visit(t, link, url.Values{}); status != http.StatusNotFound {
		t.Errorf("an old link ends a new pusher: %d", status)
	}
	alice.OK("POST", hstest.Path("account", "3pid", "delete"), obj{"medium": "email", "address": address})
	if n := alice.OK("GET", hstest.Path("pushers"), nil).Get("pushers.#").Int(); n != 0 {
		t.Errorf("%d pushers without the address", n)
	}
	before := len(p.All(address))
	bob.Say(open, "还有人吗")
	time.Sleep(700 * time.Millisecond)
	if n := len(p.All(address)); n != before {
		t.Errorf("%d e-mails after the end", n-before)
	}
}
