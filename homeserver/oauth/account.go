package oauth

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/devices"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/profiles"
)

// links are the pages behind the actions of the account management address; the names beside the specified ones are
// what clients used before.
// Spec: client-server-api#account-management-url-actions
var links = []struct{ action, path string }{
	{"org.matrix.profile", pathAccount},
	{"org.matrix.devices_list", pathAccount + "/devices"},
	{"org.matrix.device_view", pathAccount + "/devices/"},
	{"org.matrix.device_delete", pathAccount + "/devices/"},
	{"org.matrix.account_deactivate", pathAccount + "/deactivate"},
	{"org.matrix.cross_signing_reset", pathAccount + "/reset"},
	{"org.matrix.sessions_list", pathAccount + "/devices"},
	{"org.matrix.session_view", pathAccount + "/devices/"},
	{"org.matrix.session_end", pathAccount + "/devices/"},
	{"profile", pathAccount},
	{"sessions_list", pathAccount + "/devices"},
	{"session_view", pathAccount + "/devices/"},
	{"session_end", pathAccount + "/devices/"},
	{"account_deactivate", pathAccount + "/deactivate"},
	{"cross_signing_reset", pathAccount + "/reset"},
}

// actions are those that the metadata names.
func actions() []string {
	var list []string
	for _, l := range links {
		if strings.HasPrefix(l.action, "org.matrix.") {
			list = append(list, l.action)
		}
	}
	return list
}

// need is the visitor's session, or sends them to the sign-in page; fresh asks for one that is just made.
func (o *Server) need(v *browser.Visit, fresh bool) (*session, any, error) {
	s, err := o.session(v)
	if err != nil {
		return nil, nil, err
	}
	if s == nil || fresh && !s.recent(v.Now(), sudoLifetime) {
		a, err := v.Redirect(loginAddress(here(v), "", s != nil))
		return nil, a, err
	}
	return s, nil, nil
}

// accountBody is what the first page of an account shows.
type accountBody struct {
	User      matrix.UserID
	Name      string
	Password  bool
	Companies []string // providers that the account is linked with
	Contacts  []string // e-mail addresses and telephone numbers
}

// accountPage is where the account management address leads.
func (o *Server) accountPage(v *browser.Visit) (any, error) {
	if a := v.Query("action"); a != "" {
		i := slices.IndexFunc(links, func(l struct{ action, path string }) bool { return l.action == a })
		if i >= 0 && links[i].path != pathAccount {
			path := links[i].path
			if strings.HasSuffix(path, "/") {
				if id := v.Query("device_id"); id != "" {
					path += url.PathEscape(id)
				} else {
					path = strings.TrimSuffix(path, "/")
				}
			}
			return v.Redirect(path)
		}
	}
	s, a, err := o.need(v, false)
	if s == nil {
		return a, err
	}
	notice := ""
	if v.Query("saved") != "" {
		notice = v.T("已保存。", "Saved.")
	}
	return o.showAccount(v, s, 0, "", notice, o.Profiles.Name(s.user).DisplayName)
}

func (o *Server) showAccount(v *browser.Visit, s *session, status int, problem, notice, name string) (any, error) {
	u, _ := o.Accounts.User(s.user)
	body := accountBody{User: s.user, Name: name, Password: u.HasPassword && o.Accounts.PasswordsAllowed()}
	if o.contacts != nil {
		var err error
		if body.Contacts, err = o.contacts(v.Ctx(), s.user); err != nil {
			return nil, err
		}
	}
	if o.SSO != nil {
		var err error
		if body.Companies, err = o.SSO.Linked(v.Ctx(), s.user); err != nil {
			return nil, err
		}
	}
	return v.Show("account", browser.View{Status: status, Bind: s.bind, Body: body, Error: problem, Notice: notice})
}

// maxName is the longest display name, in bytes.
const maxName = 256

// accountForm changes the display name.
func (o *Server) accountForm(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, false)
	if s == nil {
		return a, err
	}
	if err := v.Check(s.bind); err != nil {
		return nil, err
	}
	name := strings.TrimSpace(v.Form("name"))
	if len(name) > maxName {
		return o.showAccount(v, s, http.StatusBadRequest, v.T("名称太长。", "The name is too long."), "", name)
	}
	value, err := json.Marshal(name)
	if err != nil {
		return nil, err
	}
	if err := o.Profiles.Set(v.Ctx(), s.user, profiles.DisplayName, value); err != nil {
		return nil, err
	}
	return v.Redirect(pathAccount + "?saved=1")
}

// passwordPage lets people change their password.
func (o *Server) passwordPage(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, false)
	if s == nil {
		return a, err
	}
	return o.showPassword(v, s, 0, "", "")
}

func (o *Server) showPassword(v *browser.Visit, s *session, status int, problem, notice string) (any, error) {
	if u, _ := o.Accounts.User(s.user); !u.HasPassword || !o.Accounts.PasswordsAllowed() {
		return nil, matrix.NotFound("this account has no password")
	}
	return v.Show("password", browser.View{Status: status, Bind: s.bind, Error: problem, Notice: notice})
}

func (o *Server) passwordForm(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, false)
	if s == nil {
		return a, err
	}
	if err := v.Check(s.bind); err != nil {
		return nil, err
	}
	if u, _ := o.Accounts.User(s.user); !u.HasPassword || !o.Accounts.PasswordsAllowed() {
		return nil, matrix.NotFound("this account has no password")
	}
	if v.Form("password") != v.Form("repeat") {
		return o.showPassword(v, s, http.StatusBadRequest, v.T("两次输入的密码不一致。", "The two passwords differ."), "")
	}
	var e *matrix.Error
	if _, err := o.Accounts.CheckPassword(v.Ctx(), string(s.user), v.Form("current")); err != nil {
		if errors.As(err, &e) && e.Code == "M_FORBIDDEN" {
			return o.showPassword(v, s, http.StatusForbidden, v.T("当前密码不正确。", "The current password is wrong."), "")
		}
		if errors.As(err, &e) {
			status, text := v.Explain(err)
			return o.showPassword(v, s, status, text, "")
		}
		return nil, err
	}
	if err := o.Accounts.SetPassword(v.Ctx(), s.user, v.Form("password"), v.Form("logout") != "", ""); err != nil {
		if errors.As(err, &e) && e.Status < 500 {
			status, text := v.Explain(err)
			return o.showPassword(v, s, status, text, "")
		}
		return nil, err
	}
	// All browsers are signed out with the old password; this one has proven the new one.
	if s.bind, err = o.signIn(v, s.user, matrix.Millis(o.Now())); err != nil {
		return nil, err
	}
	return o.showPassword(v, s, 0, "", v.T("密码已更改。", "The password has been changed."))
}

// device is a device as its page shows it.
type device struct {
	ID, Name, Client, Host string
	Seen, IP               string
	Link                   string
}

// perPage is how many devices a page lists.
const perPage = 30

// devicesBody is a page of the list.
type devicesBody struct {
	Devices    []device
	Next, Back string
	Count      int
}

// devicesPage lists the user's devices, the one last seen first.
func (o *Server) devicesPage(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, false)
	if s == nil {
		return a, err
	}
	list, err := o.Devices.List(v.Ctx(), s.user)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b devices.Device) int { return int(min(max(b.SeenAt-a.SeenAt, -1), 1)) })
	page, _ := strconv.Atoi(v.Query("page"))
	page = min(max(page, 0), len(list)/perPage)
	body := devicesBody{Count: len(list)}
	if page > 0 {
		body.Back = pathAccount + "/devices?page=" + strconv.Itoa(page-1)
	}
	if (page+1)*perPage < len(list) {
		body.Next = pathAccount + "/devices?page=" + strconv.Itoa(page+1)
	}
	body.Devices, err = o.describe(v, s, list[page*perPage:min((page+1)*perPage, len(list))])
	if err != nil {
		return nil, err
	}
	notice := ""
	if v.Query("gone") != "" {
		notice = v.T("该设备已退出登录。", "The device has been signed out.")
	}
	return v.Show("devices", browser.View{Bind: s.bind, Body: body, Notice: notice})
}

// describe adds to devices what their clients are called.
func (o *Server) describe(v *browser.Visit, s *session, list []devices.Device) ([]device, error) {
	of, err := o.Accounts.ClientsOf(v.Ctx(), s.user)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, d := range list {
		if id := of[d.ID]; id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	known, err := o.clients(v.Ctx(), ids)
	if err != nil {
		return nil, err
	}
	out := make([]device, len(list))
	for i, d := range list {
		out[i] = device{ID: string(d.ID), Name: d.DisplayName, IP: d.SeenIP, Link: pathAccount + "/devices/" + url.PathEscape(string(d.ID))}
		if d.SeenAt > 0 {
			out[i].Seen = time.UnixMilli(d.SeenAt).UTC().Format("2006-01-02 15:04") + " UTC"
		}
		if c := known[of[d.ID]]; c != nil {
			out[i].Client, out[i].Host = c.shownName(v.Lang), c.host()
		}
		if out[i].Name == "" {
			out[i].Name = out[i].Client
		}
		if out[i].Name == "" {
			out[i].Name = string(d.ID)
		}
	}
	return out, nil
}

// theDevice is the device of the page's address.
func (o *Server) theDevice(v *browser.Visit, s *session) (device, error) {
	list, err := o.Devices.List(v.Ctx(), s.user)
	if err != nil {
		return device{}, err
	}
	id := matrix.DeviceID(v.Var("deviceId"))
	i := slices.IndexFunc(list, func(d devices.Device) bool { return d.ID == id })
	if i < 0 {
		return device{}, matrix.NotFound("no device %q", id)
	}
	out, err := o.describe(v, s, list[i:i+1])
	if err != nil {
		return device{}, err
	}
	return out[0], nil
}

// devicePage shows one device, and lets its user sign it out.
func (o *Server) devicePage(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, false)
	if s == nil {
		return a, err
	}
	d, err := o.theDevice(v, s)
	if err != nil {
		return nil, err
	}
	return v.Show("device", browser.View{Bind: s.bind, Body: d})
}

// deviceForm renames a device or signs it out.
func (o *Server) deviceForm(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, false)
	if s == nil {
		return a, err
	}
	if err := v.Check(s.bind); err != nil {
		return nil, err
	}
	d, err := o.theDevice(v, s)
	if err != nil {
		return nil, err
	}
	id := matrix.DeviceID(d.ID)
	if v.Form("do") == "delete" {
		if err := o.Devices.Delete(v.Ctx(), s.user, []matrix.DeviceID{id}); err != nil {
			return nil, err
		}
		return v.Redirect(pathAccount + "/devices?gone=1")
	}
	name := strings.TrimSpace(v.Form("name"))
	if len(name) > maxName {
		return v.Show("device", browser.View{
			Status: http.StatusBadRequest, Bind: s.bind, Body: d, Error: v.T("名称太长。", "The name is too long."),
		})
	}
	if err := o.Devices.Rename(v.Ctx(), s.user, id, name); err != nil {
		return nil, err
	}
	return v.Redirect(d.Link)
}

// deactivateBody is what the page for closing the account shows.
type deactivateBody struct{ User matrix.UserID }

// deactivatePage explains what closing an account means.
func (o *Server) deactivatePage(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, true)
	if s == nil {
		return a, err
	}
	return v.Show("deactivate", browser.View{Bind: s.bind + "deactivate", Body: deactivateBody{s.user}})
}

func (o *Server) deactivateForm(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, true)
	if s == nil {
		return a, err
	}
	if err := v.Check(s.bind + "deactivate"); err != nil {
		return nil, err
	}
	typed := strings.TrimSpace(v.Form("confirm"))
	if typed != string(s.user) && typed != s.user.Localpart() {
		return v.Show("deactivate", browser.View{
			Status: http.StatusBadRequest, Bind: s.bind + "deactivate", Body: deactivateBody{s.user},
			Error: v.T("输入的用户名不一致，账号未停用。", "That is not your user name. The account stays."),
		})
	}
	if err := o.Accounts.Deactivate(v.Ctx(), s.user, v.Form("erase") != ""); err != nil {
		return nil, err
	}
	v.DropCookie(sessionCookie)
	return v.Show("message", browser.View{Notice: v.T("账号已停用。", "The account has been deactivated.")})
}
