package hstest_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

func escape(s string) string { return gjson.Escape(s) }

func contains(s, part string) bool { return strings.Contains(s, part) }

// keys are end-to-end encryption.
func (w *walk) keys() {
	uploadKeys(w.t, w.alice, 1)
	alice, bob := string(w.alice.UserID), string(w.bob.UserID)
	w.ok(w.bob, "uploadKeys", body{})
	w.no(400, "M_BAD_JSON", w.bob, "uploadKeys", body{"device_keys": 1})
	got := w.ok(w.bob, "queryKeys", body{"device_keys": body{alice: []string{}, "@far:unreachable.example": []string{}}, "timeout": 100})
	if !got.Get("device_keys."+escape(alice)).Exists() && !w.lenient {
		w.t.Errorf("the keys are %s", got.Raw)
	}
	w.no(400, "M_BAD_JSON", w.bob, "queryKeys", body{"device_keys": 1})
	w.ok(w.bob, "claimKeys", body{"one_time_keys": body{alice: body{string(w.alice.DeviceID): "signed_curve25519"}}})
	w.no(400, "M_BAD_JSON", w.bob, "claimKeys", body{"one_time_keys": 1})
	now := w.ok(w.bob, "sync").Get("next_batch").Str
	w.ok(w.bob, "getKeysChanges", query("from="+now+"&to="+now))
	w.no(400, "M_MISSING_PARAM", w.bob, "getKeysChanges")
	keys, _, _ := crossKeys(w.t, w.bob)
	w.ok(w.bob, "uploadCrossSigningKeys", body(keys))
	w.no(400, "M_BAD_JSON", w.bob, "uploadCrossSigningKeys", body{"master_key": 1})
	w.ok(w.bob, "uploadCrossSigningSignatures", body{bob: body{"NOTHING": body{"user_id": bob, "device_id": "NOTHING", "signatures": body{}}}})
	w.no(400, "M_BAD_JSON", w.bob, "uploadCrossSigningSignatures", body{bob: 1})
	w.ok(w.bob, "sendToDevice", "m.room_key_request", "1", body{"messages": body{alice: body{"*": body{"action": "request"}}}})
	w.no(400, "M_BAD_JSON", w.bob, "sendToDevice", "m.room_key_request", "2", body{"messages": 1})
	w.ok(w.alice, "sync")
}

func (w *walk) backups() {
	w.no(404, "M_NOT_FOUND", w.alice, "getRoomKeysVersionCurrent")
	w.no(404, "M_NOT_FOUND", w.alice, "getRoomKeysVersion", "77")
	made := body{"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": body{"public_key": "abc"}}
	v := w.ok(w.alice, "postRoomKeysVersion", made).Get("version").Str
	w.no(400, "M_BAD_JSON", w.alice, "postRoomKeysVersion", body{"algorithm": 1})
	w.ok(w.alice, "getRoomKeysVersionCurrent")
	w.ok(w.alice, "getRoomKeysVersion", v)
	made["version"] = v
	w.ok(w.alice, "putRoomKeysVersion", v, made)
	w.no(404, "M_NOT_FOUND", w.alice, "putRoomKeysVersion", "77", body{"algorithm": made["algorithm"], "auth_data": body{}})
	w.no(400, "M_INVALID_PARAM", w.alice, "putRoomKeysVersion", v, body{"algorithm": "other", "auth_data": body{}, "version": v})
	key := body{"first_message_index": 1, "forwarded_count": 0, "is_verified": true, "session_data": body{"ciphertext": "x"}}
	inRoom := body{"sessions": body{"s": key}}
	all := body{"rooms": body{w.room: inRoom}}
	at, wrong := query("version="+v), query("version=77")
	w.ok(w.alice, "putRoomKeys", at, all)
	w.ok(w.alice, "putRoomKeysByRoomId", w.room, at, inRoom)
	w.ok(w.alice, "putRoomKeyBySessionId", w.room, "s", at, key)
	w.no(404, "M_NOT_FOUND", w.alice, "putRoomKeys", wrong, all)
	w.no(404, "M_NOT_FOUND", w.alice, "putRoomKeysByRoomId", w.room, wrong, inRoom)
	w.no(404, "M_NOT_FOUND", w.alice, "putRoomKeyBySessionId", w.room, "s", wrong, key)
	w.ok(w.alice, "getRoomKeys", at)
	w.ok(w.alice, "getRoomKeysByRoomId", w.room, at)
	w.ok(w.alice, "getRoomKeyBySessionId", w.room, "s", at)
	w.no(404, "M_NOT_FOUND", w.alice, "getRoomKeys", wrong)
	w.no(404, "M_NOT_FOUND", w.alice, "getRoomKeysByRoomId", w.room, wrong)
	w.no(404, "M_NOT_FOUND", w.alice, "getRoomKeyBySessionId", w.room, "none", at)
	w.ok(w.alice, "deleteRoomKeyBySessionId", w.room, "s", at)
	w.ok(w.alice, "deleteRoomKeysByRoomId", w.room, at)
	w.ok(w.alice, "deleteRoomKeys", at)
	w.no(404, "M_NOT_FOUND", w.alice, "deleteRoomKeyBySessionId", w.room, "s", wrong)
	w.no(404, "M_NOT_FOUND", w.alice, "deleteRoomKeysByRoomId", w.room, wrong)
	w.no(404, "M_NOT_FOUND", w.alice, "deleteRoomKeys", wrong)
	next := w.ok(w.alice, "postRoomKeysVersion", body{"algorithm": made["algorithm"], "auth_data": made["auth_data"]}).Get("version").Str
	w.no(403, "M_WRONG_ROOM_KEYS_VERSION", w.alice, "putRoomKeys", at, all)
	w.ok(w.alice, "deleteRoomKeysVersion", next)
	w.no(404, "M_NOT_FOUND", w.alice, "deleteRoomKeysVersion", "77")
}

func (w *walk) media() {
	img := picture(64, 64)
	mxc := w.ok(w.alice, "uploadContent", query("filename=a.png"), kind("image/png"), raw(img)).Get("content_uri").Str
	w.no(413, "M_TOO_LARGE", w.alice, "uploadContent", raw(make([]byte, 2<<20)))
	server, id, _ := strings.Cut(strings.TrimPrefix(mxc, "mxc://"), "/")
	late := w.ok(w.alice, "createContent").Get("content_uri").Str
	_, slot, _ := strings.Cut(strings.TrimPrefix(late, "mxc://"), "/")
	w.no(504, "M_NOT_YET_UPLOADED", w.alice, "getContentAuthed", server, slot, query("timeout_ms=1"))
	w.no(403, "M_FORBIDDEN", w.bob, "uploadContentToMXC", server, slot, raw(img))
	w.ok(w.alice, "uploadContentToMXC", server, slot, kind("image/png"), raw(img))
	w.no(409, "M_CANNOT_OVERWRITE_MEDIA", w.alice, "uploadContentToMXC", server, slot, raw(img))
	w.no(404, "M_NOT_FOUND", w.alice, "uploadContentToMXC", server, "nothing", raw(img))
	for _, v := range []struct{ suffix string }{{"Authed"}, {""}} {
		w.ok(w.alice, "getConfig"+v.suffix)
		w.ok(w.alice, "getContent"+v.suffix, server, id)
		w.ok(w.alice, "getContentOverrideName"+v.suffix, server, id, "b.png")
		w.ok(w.alice, "getContentThumbnail"+v.suffix, server, id, query("width=32&height=32&method=crop"))
		w.no(404, "M_NOT_FOUND", w.alice, "getContent"+v.suffix, server, "nothing")
		w.no(404, "M_NOT_FOUND", w.alice, "getContentOverrideName"+v.suffix, server, "nothing", "x")
		w.no(404, "M_NOT_FOUND", w.alice, "getContentThumbnail"+v.suffix, server, "nothing", query("width=32&height=32"))
		w.no(400, "M_INVALID_PARAM", w.alice, "getContentThumbnail"+v.suffix, server, id, query("width=x&height=32"))
		w.ok(w.alice, "getUrlPreview"+v.suffix, query("url="+url.QueryEscape(page1(w.t))))
	}
}

// page1 is a page that people link to.
func page1(t testing.TB) string {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(`<html><head><meta property="og:title" content="The page"><meta property="og:image" content="/p.png"></head></html>`))
	})
	mux.HandleFunc("/p.png", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "image/png")
		_, _ = w.Write(picture(40, 40))
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

func (w *walk) push() {
	w.ok(w.alice, "getPushRules")
	w.ok(w.alice, "getPushRulesGlobal")
	w.ok(w.alice, "setPushRule", "content", "walk", body{"pattern": "walk", "actions": []any{"notify", body{"set_tweak": "sound", "value": "default"}}})
	w.no(400, "M_INVALID_PARAM", w.alice, "setPushRule", "nonsense", "walk", body{"actions": []any{}})
	w.no(400, "M_UNKNOWN", w.alice, "setPushRule", "content", "other", query("before=nothing"), body{"pattern": "x", "actions": []any{}})
	w.ok(w.alice, "getPushRule", "content", "walk")
	w.ok(w.alice, "getPushRule", "override", ".m.rule.master")
	w.ok(w.alice, "getPushRuleActions", "content", "walk")
	w.ok(w.alice, "setPushRuleActions", "content", "walk", body{"actions": []any{"notify"}})
	w.ok(w.alice, "isPushRuleEnabled", "content", "walk")
	w.ok(w.alice, "setPushRuleEnabled", "content", "walk", body{"enabled": false})
	for op, b := range map[string]body{
		"getPushRule": nil, "getPushRuleActions": nil, "isPushRuleEnabled": nil, "deletePushRule": nil,
		"setPushRuleActions": {"actions": []any{}}, "setPushRuleEnabled": {"enabled": true},
	} {
		args := []any{"content", "nothing"}
		if b != nil {
			args = append(args, b)
		}
		w.no(404, "M_NOT_FOUND", w.alice, op, args...)
	}
	w.ok(w.alice, "deletePushRule", "content", "walk")
	pusher := body{
		"kind": "http", "pushkey": "key", "app_id": "org.example", "app_display_name": "Example", "device_display_name": "phone", "lang": "zh",
		"data": body{"url": "https://push.example/_matrix/push/v1/notify", "format": "event_id_only"},
	}
	w.ok(w.alice, "postPusher", pusher)
	w.ok(w.alice, "getPushers")
	w.no(400, "M_MISSING_PARAM", w.alice, "postPusher", body{"kind": "http"})
	pusher["kind"] = nil
	w.ok(w.alice, "postPusher", pusher)
}
