package hstest_test

import (
	"net/url"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// threepids calls what has to do with contact addresses.
func (w *walk) threepids() {
	t, s, u := w.t, w.s, w.alice
	mail := func(address string) body { return body{"client_secret": "s", "email": address, "send_attempt": 1} }
	phone := func(number string) body {
		return body{"client_secret": "s", "country": "CN", "phone_number": number, "send_attempt": 1}
	}
	for _, op := range []string{"requestTokenTo3PIDEmail", "requestTokenToRegisterEmail", "requestTokenToResetPasswordEmail"} {
		w.ok(nil, op, mail("nobody@mail.example"))
		w.no(400, "M_MISSING_PARAM", nil, op, body{"client_secret": "s"})
		w.no(400, "M_INVALID_PARAM", nil, op, mail("nobody"))
	}
	for _, op := range []string{"requestTokenTo3PIDMSISDN", "requestTokenToRegisterMSISDN", "requestTokenToResetPasswordMSISDN"} {
		w.ok(nil, op, phone("13800138000"))
		w.no(400, "M_MISSING_PARAM", nil, op, mail("nobody@mail.example"))
		w.no(400, "M_INVALID_PARAM", nil, op, phone("1"))
	}
	sid := w.post.prove(t, s, u.AccessToken, "account/3pid", "alice@mail.example", "s3cret")
	w.no(400, "M_MISSING_PARAM", u, "add3PID", body{"sid": sid})
	w.no(400, "M_THREEPID_AUTH_FAILED", u, "add3PID", body{"sid": sid, "client_secret": "guess"})
	w.no(401, "", u, "add3PID", body{"sid": sid, "client_secret": "s3cret"})
	w.ok(u, "add3PID", body{"sid": sid, "client_secret": "s3cret", "auth": passwordOf(u, "")})
	if got := w.ok(u, "getAccount3PIDs").Get("threepids.0.address").Str; got != "alice@mail.example" && !w.lenient {
		t.Errorf("the address is %q", got)
	}

	creds := func(sid string) body {
		return body{"id_server": w.ids.name, "id_access_token": idToken, "sid": sid, "client_secret": "s"}
	}
	w.ids.prove("one", "s", "alice@mail.example")
	w.ok(u, "bind3PID", creds("one"))
	w.no(404, "M_NO_VALID_SESSION", u, "bind3PID", creds("none"))
	w.no(400, "M_MISSING_PARAM", u, "bind3PID", body{})
	w.ok(u, "post3PIDs", body{"three_pid_creds": creds("one")})
	w.no(403, "M_THREEPID_AUTH_FAILED", u, "post3PIDs", body{"three_pid_creds": creds("none")})
	address := body{"medium": "email", "address": "alice@mail.example"}
	w.ok(u, "unbind3pidFromAccount", address)
	w.no(400, "M_MISSING_PARAM", u, "unbind3pidFromAccount", body{"medium": "email"})
	w.ok(u, "delete3pidFromAccount", address)
	w.no(400, "M_INVALID_PARAM", u, "delete3pidFromAccount", body{"medium": "pigeon", "address": "x"})

	room := u.OK("POST", hstest.Path("createRoom"), body{}).Get("room_id").Str
	w.ok(u, "inviteBy3PID", room, body(w.ids.invitation("carol@mail.example")))
	w.no(403, "M_FORBIDDEN", w.bob, "inviteBy3PID", room, body(w.ids.invitation("carol@mail.example")))
	w.no(400, "M_MISSING_PARAM", u, "inviteBy3PID", room, body{"medium": "email", "address": "carol@mail.example"})
	if status, _, _ := visit(t, s.URL+"/_carillon/contacts/v1/validate?sid="+url.QueryEscape(sid)+"&token=x", nil); status != 404 {
		t.Errorf("the link of a session that has ended: %d", status)
	}
}
