package hstest_test

import (
	"net/url"
	"strconv"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

func hello(text string) body { return body{"msgtype": "m.text", "body": text} }

// make creates a room and gives its ID.
func (w *walk) make(u *hstest.User, b body) string {
	w.t.Helper()
	return w.ok(u, "createRoom", b).Get("room_id").Str
}

func (w *walk) rooms() {
	w.room = w.make(w.alice, body{"preset": "public_chat", "name": "Plans", "topic": "what to do", "room_alias_name": "plans", "visibility": "public"})
	w.no(400, "M_ROOM_IN_USE", w.alice, "createRoom", body{"room_alias_name": "plans"})
	w.no(400, "M_UNSUPPORTED_ROOM_VERSION", w.alice, "createRoom", body{"room_version": "none"})
	w.no(400, "M_BAD_JSON", w.alice, "createRoom", body{"name": 1})

	w.ok(w.alice, "getRoomState", w.room)
	w.no(403, "M_FORBIDDEN", w.bob, "getRoomState", w.room)
	w.ok(w.alice, "getRoomStateWithKey", w.room, "m.room.name", "")
	w.ok(w.alice, "getRoomStateWithKey", w.room, "m.room.name", "", query("format=event"))
	w.no(404, "M_NOT_FOUND", w.alice, "getRoomStateWithKey", w.room, "m.room.avatar", "")
	w.no(403, "M_FORBIDDEN", w.bob, "getRoomStateWithKey", w.room, "m.room.name", "")
	w.ok(w.alice, "setRoomStateWithKey", w.room, "m.room.topic", "", body{"topic": "what we shall do"})
	w.no(403, "M_FORBIDDEN", w.bob, "setRoomStateWithKey", w.room, "m.room.topic", "", body{"topic": "mine"})
	w.no(400, "M_BAD_ALIAS", w.alice, "setRoomStateWithKey", w.room, "m.room.canonical_alias", "", body{"alias": "#other:a.example"})

	space := w.make(w.alice, body{"preset": "public_chat", "creation_content": body{"type": "m.space"}, "name": "All"})
	w.ok(w.alice, "setRoomStateWithKey", space, "m.space.child", w.room, body{"via": []string{"a.example"}})
	if n := len(w.ok(w.alice, "getSpaceHierarchy", space, query("limit=5")).Get("rooms").Array()); n != 2 && !w.lenient {
		w.t.Errorf("the space shows %d rooms", n)
	}
	w.no(403, "M_FORBIDDEN", w.alice, "getSpaceHierarchy", "!nothing:a.example")
	w.no(400, "M_INVALID_PARAM", w.alice, "getSpaceHierarchy", space, query("from=wrong"))
	w.ok(w.alice, "getRoomSummary", w.room)
	w.ok(nil, "getRoomSummary", "#plans:a.example")
	w.no(404, "M_NOT_FOUND", w.alice, "getRoomSummary", "!nothing:a.example")

	old := w.make(w.alice, body{"preset": "private_chat", "room_version": "11"})
	w.ok(w.alice, "upgradeRoom", old, body{"new_version": "12"})
	w.no(400, "M_UNSUPPORTED_ROOM_VERSION", w.alice, "upgradeRoom", w.room, body{"new_version": "none"})
	w.no(403, "M_FORBIDDEN", w.bob, "upgradeRoom", w.room, body{"new_version": "12"})
}

func (w *walk) members() {
	bob := body{"user_id": w.bob.UserID}
	w.ok(w.bob, "joinRoom", "#plans:a.example", body{"reason": "curious"})
	w.ok(w.carol, "joinRoomById", w.room, body{})
	secret := w.make(w.alice, body{"preset": "private_chat", "name": "Secret"})
	w.no(403, "M_FORBIDDEN", w.bob, "joinRoom", secret, body{})
	w.no(403, "M_FORBIDDEN", w.bob, "joinRoomById", secret, body{})
	w.ok(w.alice, "inviteUser", secret, bob)
	w.no(403, "M_FORBIDDEN", w.carol, "inviteUser", secret, bob)
	w.no(400, "M_BAD_JSON", w.alice, "inviteUser", secret, body{"user_id": 3})
	w.ok(w.bob, "joinRoomById", secret, body{})
	w.ok(w.alice, "getJoinedRooms")
	w.ok(w.alice, "getMembersByRoom", w.room, query("membership=join"))
	w.no(403, "M_FORBIDDEN", w.carol, "getMembersByRoom", secret)
	w.ok(w.alice, "getJoinedMembersByRoom", w.room)
	w.no(403, "M_FORBIDDEN", w.carol, "getJoinedMembersByRoom", secret)
	for _, c := range []string{"kick", "ban"} {
		w.no(403, "M_FORBIDDEN", w.carol, c, secret, bob)
		w.ok(w.alice, c, secret, body{"user_id": w.bob.UserID, "reason": "the walk"})
		if c == "kick" {
			w.ok(w.alice, "inviteUser", secret, bob)
			w.ok(w.bob, "joinRoomById", secret, body{})
		}
	}
	w.no(403, "M_FORBIDDEN", w.carol, "unban", secret, bob)
	w.ok(w.alice, "unban", secret, bob)
	w.no(400, "M_UNKNOWN", w.bob, "forgetRoom", w.room, body{})
	w.ok(w.bob, "forgetRoom", secret, body{})

	hall := w.make(w.alice, body{"preset": "private_chat", "initial_state": []body{{"type": "m.room.join_rules", "content": body{"join_rule": "knock"}}}})
	w.ok(w.carol, "knockRoom", hall, body{"reason": "let me in"})
	w.no(403, "M_FORBIDDEN", w.carol, "knockRoom", secret, body{})
	w.no(404, "M_NOT_FOUND", w.carol, "knockRoom", "#nothing:a.example", body{})
	w.ok(w.carol, "leaveRoom", hall, body{})
	w.no(403, "M_FORBIDDEN", w.bob, "inviteBy3PID", secret, body{"id_server": "id.example", "id_access_token": "x", "medium": "email", "address": "x@a.example"})
	w.no(403, "M_FORBIDDEN", w.bob, "leaveRoom", "!nothing:a.example", body{})
	w.ok(w.alice, "getMutualRooms", query("user_id=@bob:a.example"))
	w.no(400, "M_INVALID_PARAM", w.alice, "getMutualRooms", query("user_id=@alice:a.example"))
}

func (w *walk) messages() {
	first := w.ok(w.alice, "sendMessage", w.room, "m.room.message", "1", body(hello("你好"))).Get("event_id").Str
	w.no(403, "M_FORBIDDEN", w.olga, "sendMessage", w.room, "m.room.message", "1", hello("hello"))
	w.no(400, "M_NOT_JSON", w.alice, "sendMessage", w.room, "m.room.message", "2", raw("{"))
	for i, rel := range []string{"m.thread", "m.annotation", "m.reference"} {
		typ, relation := "m.room.message", body{"rel_type": rel, "event_id": first}
		if rel == "m.annotation" {
			typ, relation["key"] = "m.reaction", "👍"
		}
		w.ok(w.bob, "sendMessage", w.room, typ, "r"+strconv.Itoa(i), body{"msgtype": "m.text", "body": rel, "m.relates_to": relation})
	}
	w.ok(w.alice, "getRelatingEvents", w.room, first, query("dir=b&limit=2&recurse=true"))
	w.ok(w.alice, "getRelatingEventsWithRelType", w.room, first, "m.thread")
	w.ok(w.alice, "getRelatingEventsWithRelTypeAndEventType", w.room, first, "m.annotation", "m.reaction")
	w.no(404, "M_NOT_FOUND", w.alice, "getRelatingEvents", w.room, "$nothing")
	w.no(404, "M_NOT_FOUND", w.alice, "getRelatingEventsWithRelType", w.room, "$nothing", "m.thread")
	w.no(404, "M_NOT_FOUND", w.alice, "getRelatingEventsWithRelTypeAndEventType", w.room, "$nothing", "m.thread", "m.room.message")
	w.ok(w.alice, "getThreadRoots", w.room, query("include=participated&limit=1"))
	w.no(403, "M_FORBIDDEN", w.olga, "getThreadRoots", w.room)
	w.no(400, "M_INVALID_PARAM", w.alice, "getThreadRoots", w.room, query("include=some"))
	w.ok(w.alice, "getOneRoomEvent", w.room, first)
	w.no(404, "M_NOT_FOUND", w.alice, "getOneRoomEvent", w.room, "$nothing")
	w.ok(w.alice, "getEventContext", w.room, first, query("limit=4"))
	w.no(404, "M_NOT_FOUND", w.alice, "getEventContext", w.room, "$nothing")
	lazy := url.QueryEscape(`{"lazy_load_members":true}`)
	w.ok(w.alice, "getRoomEvents", w.room, query("dir=b&limit=3&filter="+lazy))
	w.no(403, "M_FORBIDDEN", w.olga, "getRoomEvents", w.room, query("dir=b"))
	w.ok(w.alice, "getEventByTimestamp", w.room, query("ts=0&dir=f"))
	w.no(404, "M_NOT_FOUND", w.alice, "getEventByTimestamp", w.room, query("ts=0&dir=b"))
	w.ok(w.alice, "redactEvent", w.room, w.ok(w.alice, "sendMessage", w.room, "m.room.message", "bad", hello("oops")).Get("event_id").Str, "1", body{"reason": "oops"})
	w.no(403, "M_FORBIDDEN", w.carol, "redactEvent", w.room, first, "2", body{})
	w.ok(w.bob, "reportEvent", w.room, first, body{"reason": "rude"})
	w.no(404, "M_NOT_FOUND", w.olga, "reportEvent", w.room, first, body{"reason": "rude"})
	w.ok(w.bob, "reportRoom", w.room, body{"reason": "rude"})
	w.no(400, "M_BAD_JSON", w.bob, "reportRoom", w.room, body{"reason": 1})
	w.ok(w.bob, "reportUser", string(w.alice.UserID), body{"reason": "rude"})
	w.no(400, "M_BAD_JSON", w.bob, "reportUser", string(w.alice.UserID), body{"reason": 1})
	found := w.ok(w.alice, "search", body{"search_categories": body{"room_events": body{
		"search_term": "你好", "event_context": body{"include_profile": true}, "include_state": true,
		"groupings": body{"group_by": []body{{"key": "room_id"}}},
	}}})
	if !found.Get("search_categories.room_events.results.0.context.events_after").Exists() && !w.lenient {
		w.t.Errorf("the search gives %s", found.Raw)
	}
	w.no(400, "M_BAD_JSON", w.alice, "search", body{"search_categories": 1})
}

// readers are sync and what belongs to it.
func (w *walk) readers() {
	alice, event := string(w.alice.UserID), w.ok(w.bob, "sendMessage", w.room, "m.room.message", "read me", hello("alice, read me")).Get("event_id").Str
	filter := w.ok(w.alice, "defineFilter", alice, body{"room": body{"timeline": body{"limit": 5}, "state": body{"lazy_load_members": true}}}).Get("filter_id").Str
	w.no(403, "M_FORBIDDEN", w.bob, "defineFilter", alice, body{})
	w.ok(w.alice, "getFilter", alice, filter)
	w.no(404, "M_NOT_FOUND", w.alice, "getFilter", alice, "no such filter")
	w.ok(w.alice, "setTyping", w.room, alice, body{"typing": true, "timeout": 10000})
	w.no(403, "M_FORBIDDEN", w.bob, "setTyping", w.room, alice, body{"typing": true})
	w.ok(w.alice, "postReceipt", w.room, "m.read", event, body{})
	w.no(400, "M_INVALID_PARAM", w.alice, "postReceipt", w.room, "m.seen", event, body{})
	w.ok(w.alice, "setReadMarker", w.room, body{"m.fully_read": event, "m.read": event})
	w.no(403, "M_FORBIDDEN", w.olga, "setReadMarker", w.room, body{"m.read": event})
	w.ok(w.alice, "setPresence", alice, body{"presence": "online", "status_msg": "here"})
	w.no(403, "M_FORBIDDEN", w.bob, "setPresence", alice, body{"presence": "online"})
	w.ok(w.bob, "getPresence", alice)
	w.no(403, "M_FORBIDDEN", w.olga, "getPresence", alice)

	w.ok(w.alice, "setAccountData", alice, "org.example", body{"a": 1})
	w.no(403, "M_FORBIDDEN", w.bob, "setAccountData", alice, "org.example", body{"a": 1})
	w.no(405, "M_BAD_JSON", w.alice, "setAccountData", alice, "m.push_rules", body{})
	w.ok(w.alice, "getAccountData", alice, "org.example")
	w.no(404, "M_NOT_FOUND", w.alice, "getAccountData", alice, "org.example.none")
	w.ok(w.alice, "setAccountDataPerRoom", alice, w.room, "org.example", body{"a": 1})
	w.no(403, "M_FORBIDDEN", w.bob, "setAccountDataPerRoom", alice, w.room, "org.example", body{"a": 1})
	w.no(405, "M_BAD_JSON", w.alice, "setAccountDataPerRoom", alice, w.room, "m.fully_read", body{})
	w.ok(w.alice, "getAccountDataPerRoom", alice, w.room, "org.example")
	w.no(404, "M_NOT_FOUND", w.alice, "getAccountDataPerRoom", alice, w.room, "org.example.none")
	w.ok(w.alice, "setRoomTag", alice, w.room, "m.favourite", body{"order": 0.5})
	w.ok(w.alice, "setRoomTag", alice, w.room, "u.other", body{})
	w.ok(w.alice, "getRoomTags", alice, w.room)
	w.ok(w.alice, "deleteRoomTag", alice, w.room, "u.other")
	for op, args := range map[string][]any{"setRoomTag": {"u.x", body{}}, "deleteRoomTag": {"u.x"}, "getRoomTags": {}} {
		w.no(403, "M_FORBIDDEN", w.bob, op, append([]any{alice, w.room}, args...)...)
	}

	all := w.ok(w.alice, "sync", query("set_presence=online"))
	since := all.Get("next_batch").Str
	invited := w.make(w.bob, body{"preset": "private_chat", "invite": []string{alice}})
	knocked := w.make(w.bob, body{"initial_state": []body{{"type": "m.room.join_rules", "content": body{"join_rule": "knock"}}}})
	w.ok(w.alice, "knockRoom", knocked, body{})
	left := w.make(w.bob, body{"preset": "public_chat"})
	w.ok(w.alice, "joinRoomById", left, body{})
	w.ok(w.alice, "leaveRoom", left, body{})
	w.ok(w.bob, "setTyping", w.room, string(w.bob.UserID), body{"typing": true, "timeout": 10000})
	news := w.ok(w.alice, "sync", query("since="+since))
	for section, room := range map[string]string{"invite": invited, "knock": knocked, "leave": left} {
		if !news.Get("rooms."+section+"."+escape(room)).Exists() && !w.lenient {
			w.t.Errorf("%s is not in %s of %s", room, section, news.Raw)
		}
	}
	w.ok(w.alice, "sync", query("filter="+filter+"&use_state_after=true"))
	w.ok(w.alice, "sync", query("full_state=true&since="+since))
	w.no(400, "M_INVALID_PARAM", w.alice, "sync", query("since=wrong"))
	w.ok(w.alice, "getNotifications", query("limit=3"))
	w.ok(w.alice, "requestOpenIdToken", alice, body{})
	w.no(403, "M_FORBIDDEN", w.bob, "requestOpenIdToken", alice, body{})
}

func (w *walk) profiles() {
	alice := string(w.alice.UserID)
	for key, value := range map[string]any{"displayname": "爱丽丝", "avatar_url": "mxc://a.example/face", "m.tz": "Asia/Shanghai", "org.example": []int{1}} {
		w.ok(w.alice, "setProfileField", alice, key, body{key: value})
		w.ok(nil, "getProfileField", alice, key)
	}
	w.ok(nil, "getUserProfile", alice)
	w.ok(w.alice, "deleteProfileField", alice, "org.example")
	w.no(403, "M_FORBIDDEN", w.bob, "setProfileField", alice, "displayname", body{"displayname": "x"})
	w.no(400, "M_MISSING_PARAM", w.alice, "setProfileField", alice, "displayname", body{})
	w.no(403, "M_FORBIDDEN", w.bob, "deleteProfileField", alice, "displayname")
	w.no(404, "M_NOT_FOUND", nil, "getProfileField", alice, "org.example")
	w.no(404, "M_NOT_FOUND", nil, "getUserProfile", "@nobody:a.example")
	w.ok(w.alice, "searchUserDirectory", body{"search_term": "bob", "limit": 5})
	w.no(400, "M_BAD_JSON", w.alice, "searchUserDirectory", body{"search_term": 1})
}

func (w *walk) directories() {
	w.ok(w.alice, "setRoomAlias", "#walk:a.example", body{"room_id": w.room})
	w.no(409, "M_UNKNOWN", w.alice, "setRoomAlias", "#walk:a.example", body{"room_id": w.room})
	w.no(400, "M_INVALID_PARAM", w.alice, "setRoomAlias", "walk", body{"room_id": w.room})
	w.ok(nil, "getRoomIdByAlias", "#walk:a.example")
	w.no(404, "M_NOT_FOUND", nil, "getRoomIdByAlias", "#nothing:a.example")
	w.no(400, "M_INVALID_PARAM", nil, "getRoomIdByAlias", "walk")
	w.ok(w.alice, "getLocalAliases", w.room)
	w.no(403, "M_FORBIDDEN", w.olga, "getLocalAliases", w.room)
	w.ok(w.alice, "deleteRoomAlias", "#walk:a.example")
	w.no(404, "M_NOT_FOUND", w.alice, "deleteRoomAlias", "#walk:a.example")
	w.ok(w.alice, "setRoomVisibilityOnDirectory", w.room, body{"visibility": "public"})
	w.no(404, "M_NOT_FOUND", w.alice, "setRoomVisibilityOnDirectory", "!nothing:a.example", body{"visibility": "public"})
	w.ok(nil, "getRoomVisibilityOnDirectory", w.room)
	w.no(404, "M_NOT_FOUND", nil, "getRoomVisibilityOnDirectory", "!nothing:a.example")
	w.ok(nil, "getPublicRooms", query("limit=1"))
	w.no(400, "M_INVALID_PARAM", nil, "getPublicRooms", query("since=wrong"))
	w.ok(w.alice, "queryPublicRooms", body{"limit": 1, "filter": body{"generic_search_term": "plans", "room_types": []any{nil}}})
	w.no(400, "M_INVALID_PARAM", w.alice, "queryPublicRooms", body{"include_all_networks": true, "third_party_instance_id": "irc|libera"})
	w.ok(nil, "updateAppserviceRoomDirectoryVisibility", "libera", w.room, as("as-secret"), body{"visibility": "public"})
	w.no(403, "M_FORBIDDEN", w.alice, "updateAppserviceRoomDirectoryVisibility", "libera", w.room, body{"visibility": "public"})
}

func (w *walk) networks() {
	w.ok(w.alice, "getProtocols")
	w.ok(w.alice, "getProtocolMetadata", "irc")
	w.no(404, "M_NOT_FOUND", w.alice, "getProtocolMetadata", "fax")
	w.ok(w.alice, "queryLocationByProtocol", "irc", query("channel=%23go"))
	w.ok(w.alice, "queryUserByProtocol", "irc", query("nick=fan"))
	w.ok(w.alice, "queryLocationByAlias", query("alias=%23irc_go:a.example"))
	w.ok(w.alice, "queryUserByID", query("userid=@irc_fan:a.example"))
	w.ok(nil, "pingAppservice", "irc", as("as-secret"), body{"transaction_id": "1"})
	w.no(403, "M_FORBIDDEN", nil, "pingAppservice", "gone", as("as-secret"), body{})
	w.no(502, "M_CONNECTION_FAILED", nil, "pingAppservice", "gone", as("gone-secret"), body{})
}

func (w *walk) oldSync() {
	all := w.ok(w.alice, "initialSync", query("limit=3&archived=true"))
	from := all.Get("end").Str
	event := w.ok(w.bob, "sendMessage", w.room, "m.room.message", "old", hello("for an old client")).Get("event_id").Str
	news := w.ok(w.alice, "getEvents", query("timeout=5000&from="+from))
	if got := news.Get("chunk.#.event_id").String(); !contains(got, event) && !w.lenient {
		w.t.Errorf("the events are %s", news.Raw)
	}
	w.no(400, "M_INVALID_PARAM", w.alice, "getEvents", query("from=wrong"))
	w.ok(w.alice, "getOneEvent", event)
	w.no(404, "M_NOT_FOUND", w.olga, "getOneEvent", event)
	w.ok(w.alice, "roomInitialSync", w.room)
	w.no(403, "M_FORBIDDEN", w.olga, "roomInitialSync", w.room)
	w.no(400, "M_INVALID_PARAM", w.alice, "initialSync", query("limit=wrong"))

	window := w.make(w.alice, body{"preset": "private_chat", "initial_state": []body{{"type": "m.room.history_visibility", "content": body{"history_visibility": "world_readable"}}}})
	guest := as(w.ok(nil, "register", query("kind=guest"), body{}).Get("access_token").Str)
	end := w.ok(nil, "roomInitialSync", window, guest).Get("messages.end").Str
	event = w.ok(w.alice, "sendMessage", window, "m.room.message", "peek", hello("for those outside")).Get("event_id").Str
	news = w.ok(nil, "peekEvents", guest, query("timeout=5000&room_id="+url.QueryEscape(window)+"&from="+end))
	if got := news.Get("chunk.#.event_id").String(); !contains(got, event) && !w.lenient {
		w.t.Errorf("a guest sees %s", news.Raw)
	}
	w.no(403, "M_FORBIDDEN", nil, "peekEvents", guest, query("timeout=0&room_id="+url.QueryEscape(w.room)))
}
