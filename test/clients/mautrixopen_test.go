package clients_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
	"maunium.net/go/mautrix/pushrules"
)

// refused checks that the server says no with a code.
func refused(t *testing.T, err error, code string) {
	t.Helper()
	var e mautrix.HTTPError
	if !errors.As(err, &e) || e.RespError == nil || e.RespError.ErrCode != code {
		t.Errorf("%s was expected, not %v", code, err)
	}
}

// made makes a room that is not encrypted, and waits for it.
func (h *handset) made(q *mautrix.ReqCreateRoom) id.RoomID {
	h.t.Helper()
	r, err := h.CreateRoom(h.t.Context(), q)
	h.must(err)
	h.isIn(r.RoomID, event.MembershipJoin)
	return r.RoomID
}

// isIn waits until the device has heard where its person stands.
func (h *handset) isIn(room id.RoomID, as event.Membership) {
	h.t.Helper()
	h.until(string(as)+" of "+string(room), func() bool { return h.within[room] == as })
}

func (h *handset) joins(room id.RoomID) {
	h.t.Helper()
	_, err := h.JoinRoomByID(h.t.Context(), room)
	h.must(err)
	h.isIn(room, event.MembershipJoin)
}

// removed: a message is redacted.
func (d *day) removed() {
	d.t.Helper()
	e := d.zhou.says(d.secret, "说错了")
	d.chen.reads(e, "说错了")
	_, err := d.zhou.RedactEvent(d.t.Context(), d.secret, e)
	d.zhou.must(err)
	d.chen.until("the message is gone", func() bool { return d.chen.gone[e] })
}

// open: a room without encryption, published, with an alias.
func (d *day) open() {
	t, ctx := d.t, d.t.Context()
	t.Helper()
	d.plain = d.zhou.made(&mautrix.ReqCreateRoom{Name: "公告", Preset: "public_chat", Visibility: "public", RoomAliasName: "news", Topic: "公司公告"})
	alias := id.NewRoomAlias("news", string(d.s.Name))
	if r, err := d.chen.ResolveAlias(ctx, alias); err != nil || r.RoomID != d.plain {
		t.Errorf("the alias is of %+v: %v", r, err)
	}
	list, err := d.chen.PublicRooms(ctx, &mautrix.ReqPublicRooms{Limit: 10})
	if err != nil || !slices.ContainsFunc(list.Chunk, func(r *mautrix.PublicRoomInfo) bool { return r.RoomID == d.plain && r.NumJoinedMembers == 1 }) {
		t.Errorf("published are %+v: %v", list, err)
	}
	if sum, err := d.chen.GetRoomSummary(ctx, string(alias)); err != nil || sum.Name != "公告" {
		t.Errorf("the summary is %+v: %v", sum, err)
	}
	d.chen.joins(d.plain)
}

// receipts: public and private ones, unread counts, typing.
func (d *day) receipts() {
	t, ctx, zhou, chen := d.t, d.t.Context(), d.zhou, d.chen
	t.Helper()
	unread := func(notify, highlight int) {
		t.Helper()
		chen.until(fmt.Sprintf("%d unread, %d for chen", notify, highlight), func() bool {
			return chen.unread[d.plain] == mautrix.UnreadNotificationCounts{NotificationCount: notify, HighlightCount: highlight}
		})
	}
	chen.reads(zhou.says(d.plain, "请大家确认"), "请大家确认")
	unread(1, 0)
	mention := zhou.sends(d.plain, event.EventMessage, &event.MessageEventContent{MsgType: event.MsgText, Body: "陈晨？", Mentions: &event.Mentions{UserIDs: []id.UserID{chen.UserID}}})
	chen.reads(mention, "陈晨？")
	unread(2, 1)
	chen.must(chen.MarkRead(ctx, d.plain, mention))
	zhou.until("zhou sees who has read", func() bool { return zhou.read[d.plain][chen.UserID] == mention })
	unread(0, 0)
	private := zhou.says(d.plain, "还有一件事")
	chen.reads(private, "还有一件事")
	unread(1, 0)
	chen.must(chen.SendReceipt(ctx, d.plain, private, event.ReceiptTypeReadPrivate, nil))
	unread(0, 0)
	chen.must(chen.SetReadMarkers(ctx, d.plain, &mautrix.ReqSetReadMarkers{FullyRead: private}))
	zhou.reads(chen.says(d.plain, "先放一放"), "先放一放")
	zhou.mu.Lock()
	if zhou.read[d.plain][chen.UserID] == private {
		t.Error("a private receipt is seen by another")
	}
	zhou.mu.Unlock()
	_, err := chen.UserTyping(ctx, d.secret, true, 10*time.Second)
	chen.must(err)
	zhou.until("chen types", func() bool { return slices.Contains(zhou.typing[d.secret], chen.UserID) })
	_, err = chen.UserTyping(ctx, d.secret, false, 0)
	chen.must(err)
	zhou.until("chen types no more", func() bool { return len(zhou.typing[d.secret]) == 0 })
}

// search: in Chinese and in English, what was edited, and never in encrypted rooms.
func (d *day) search() {
	t, ctx := d.t, d.t.Context()
	t.Helper()
	chinese := d.zhou.says(d.plain, "预算报告明天提交")
	english := d.zhou.says(d.plain, "The Deployment of version two is done")
	edited := d.zhou.says(d.plain, "会议在三楼")
	edit := &event.MessageEventContent{MsgType: event.MsgText, Body: "会议在五楼"}
	edit.SetEdit(edited)
	d.chen.reads(d.zhou.sends(d.plain, event.EventMessage, edit), "* 会议在五楼")
	for term, want := range map[string]id.EventID{"预算报告": chinese, "报": chinese, "deploy": english, "VERSION done": english, "五楼": edited, "三楼": "", "你好": ""} {
		r, err := d.chen.Search(ctx, &mautrix.ReqSearch{SearchTerm: term, OrderBy: "recent"})
		switch {
		case err != nil:
			t.Errorf("%s: %v", term, err)
		case want == "" && len(r.Results) > 0:
			t.Errorf("%s finds %s", term, r.Results[0].Event.ID)
		case want != "" && (len(r.Results) != 1 || r.Results[0].Event.ID != want):
			t.Errorf("%s finds %d: %+v", term, len(r.Results), r)
		}
	}
	if r, err := d.chen.Search(ctx, &mautrix.ReqSearch{SearchTerm: "deploy"}); err != nil || !slices.Contains(r.Highlights, "Deployment") {
		t.Errorf("highlights: %+v %v", r, err)
	}
}

// past: page by page, around an event, and by time.
func (d *day) past() {
	t, ctx := d.t, d.t.Context()
	t.Helper()
	var said []id.EventID
	for i := range 25 {
		said = append(said, d.zhou.says(d.plain, fmt.Sprint("第", i)))
	}
	var seen []id.EventID
	var fifth time.Time
	for from := ""; len(seen) < len(said); {
		page, err := d.chen.Messages(ctx, d.plain, from, "", mautrix.DirectionBackward, nil, 10)
		d.chen.must(err)
		for _, e := range page.Chunk {
			if slices.Contains(said, e.ID) {
				seen = append(seen, e.ID)
			}
			if e.ID == said[5] {
				fifth = time.UnixMilli(e.Timestamp)
			}
		}
		if from = page.End; from == "" {
			break
		}
	}
	slices.Reverse(seen)
	if !slices.Equal(seen, said) {
		t.Errorf("paging finds %d of %d", len(seen), len(said))
	}
	around, err := d.chen.Context(ctx, d.plain, said[12], nil, 6)
	if err != nil || around.Event.ID != said[12] || len(around.EventsBefore) != 3 || len(around.EventsAfter) != 3 {
		t.Errorf("around an event: %+v %v", around, err)
	}
	if r, err := d.chen.TimestampToEvent(ctx, d.plain, fifth, mautrix.DirectionForward); err != nil || !slices.Contains(said[:6], r.EventID) {
		t.Errorf("by time: %+v %v", r, err)
	}
}

// people: names, looking up, ignoring, tags.
func (d *day) people() {
	t, ctx, zhou, chen := d.t, d.t.Context(), d.zhou, d.chen
	t.Helper()
	chen.must(chen.SetDisplayName(ctx, "陈晨（研发）"))
	zhou.until("the new name", func() bool {
		m, err := zhou.StateStore.GetMember(ctx, d.secret, chen.UserID)
		return err == nil && m.Displayname == "陈晨（研发）"
	})
	if r, err := zhou.SearchUserDirectory(ctx, "陈晨", 5); err != nil || len(r.Results) != 1 || r.Results[0].UserID != chen.UserID {
		t.Errorf("looking chen up: %+v %v", r, err)
	}
	ignored := event.IgnoredUserListEventContent{IgnoredUsers: map[id.UserID]event.IgnoredUser{"@li:" + id.UserID(d.s.Name): {}}}
	zhou.must(zhou.SetAccountData(ctx, "m.ignored_user_list", &ignored))
	zhou.until("li is ignored", func() bool { return bytes.Contains(zhou.said["m.ignored_user_list"], []byte("@li:")) })
	zhou.must(zhou.SetAccountData(ctx, "m.ignored_user_list", map[string]any{"ignored_users": map[string]any{}}))
	zhou.must(zhou.AddTag(ctx, d.secret, event.RoomTagFavourite, 0.5))
	if tags, err := zhou.GetTags(ctx, d.secret); err != nil || len(tags.Tags) != 1 {
		t.Errorf("tags: %+v %v", tags, err)
	}
}

// rules: a room is silenced.
func (d *day) rules() {
	t, ctx, chen := d.t, d.t.Context(), d.chen
	t.Helper()
	chen.must(chen.MarkRead(ctx, d.plain, d.zhou.says(d.plain, "先读到这里")))
	chen.until("all is read", func() bool { return chen.unread[d.plain].NotificationCount == 0 })
	mute := &mautrix.ReqPutPushRule{Actions: []*pushrules.PushAction{}, Conditions: []*pushrules.PushCondition{{Kind: pushrules.KindEventMatch, Key: "room_id", Pattern: string(d.plain)}}}
	chen.must(chen.PutPushRule(ctx, "global", pushrules.OverrideRule, string(d.plain), mute))
	chen.reads(d.zhou.says(d.plain, "没人理我"), "没人理我")
	mention := d.zhou.says(d.secret, "私下说") // what is heard after it proves that nothing was counted before
	chen.reads(mention, "私下说")
	chen.mu.Lock()
	if n := chen.unread[d.plain].NotificationCount; n != 0 {
		t.Errorf("%d unread in a room that is silenced", n)
	}
	chen.mu.Unlock()
	chen.must(chen.DeletePushRule(ctx, "global", pushrules.OverrideRule, string(d.plain)))
}

// upgrade: a room moves, and those who are in it follow.
func (d *day) upgrade() {
	t, ctx, zhou, chen := d.t, d.t.Context(), d.zhou, d.chen
	t.Helper()
	var r struct {
		Room id.RoomID `json:"replacement_room"`
	}
	_, err := zhou.MakeRequest(ctx, http.MethodPost, zhou.BuildClientURL("v3", "rooms", d.plain, "upgrade"), map[string]string{"new_version": "12"}, &r)
	zhou.must(err)
	var tomb event.TombstoneEventContent
	if err := chen.StateEvent(ctx, d.plain, event.StateTombstone, "", &tomb); err != nil || tomb.ReplacementRoom != r.Room {
		t.Errorf("the tombstone names %+v: %v", tomb, err)
	}
	chen.joins(r.Room)
	var create event.CreateEventContent
	if err := chen.StateEvent(ctx, r.Room, event.StateCreate, "", &create); err != nil || create.Predecessor == nil || create.Predecessor.RoomID != d.plain || create.RoomVersion != "12" {
		t.Errorf("the new room begins with %+v: %v", create, err)
	}
	chen.reads(zhou.says(r.Room, "搬家了"), "搬家了")
	_, err = chen.SendText(ctx, d.plain, "还在旧房间")
	refused(t, err, "M_FORBIDDEN")
}

// knock: li asks to be let in, is, and is not the second time.
func (d *day) knock() {
	t, ctx, zhou := d.t, d.t.Context(), d.zhou
	t.Helper()
	li := newHandset(t, d.s, "li", zhou.sliding)
	room := zhou.made(&mautrix.ReqCreateRoom{Name: "会议室", InitialState: []*event.Event{
		{Type: event.StateJoinRules, Content: event.Content{Parsed: &event.JoinRulesEventContent{JoinRule: event.JoinRuleKnock}}},
	}})
	zhouSees := func(as event.Membership) {
		t.Helper()
		zhou.until("li's "+string(as), func() bool {
			m, err := zhou.StateStore.GetMember(ctx, room, li.UserID)
			return err == nil && m.Membership == as
		})
	}
	_, err := li.KnockRoom(ctx, string(room), &mautrix.ReqKnockRoom{Reason: "开会"})
	li.must(err)
	li.isIn(room, event.MembershipKnock)
	zhouSees(event.MembershipKnock)
	_, err = zhou.InviteUser(ctx, room, &mautrix.ReqInviteUser{UserID: li.UserID})
	zhou.must(err)
	li.isIn(room, event.MembershipInvite)
	li.joins(room)
	li.reads(zhou.says(room, "请坐"), "请坐")
	_, err = zhou.KickUser(ctx, room, &mautrix.ReqKickUser{UserID: li.UserID, Reason: "散会"})
	zhou.must(err)
	li.isIn(room, event.MembershipLeave)
	_, err = li.KnockRoom(ctx, string(room), &mautrix.ReqKnockRoom{Reason: "再来"})
	li.must(err)
	zhouSees(event.MembershipKnock)
	_, err = zhou.KickUser(ctx, room, &mautrix.ReqKickUser{UserID: li.UserID, Reason: "不行"})
	zhou.must(err)
	zhouSees(event.MembershipLeave)
}

// space: rooms below a space, one of which lets in who is in the space.
func (d *day) space() {
	t, ctx, zhou, chen := d.t, d.t.Context(), d.zhou, d.chen
	t.Helper()
	space := zhou.made(&mautrix.ReqCreateRoom{Name: "研发中心", Preset: "public_chat", CreationContent: map[string]any{"type": event.RoomTypeSpace}})
	via := []string{string(d.s.Name)}
	_, err := zhou.SendStateEvent(ctx, space, event.StateSpaceChild, string(d.secret), &event.SpaceChildEventContent{Via: via, Suggested: true})
	zhou.must(err)
	inside := zhou.made(&mautrix.ReqCreateRoom{Name: "前端组", InitialState: []*event.Event{
		{Type: event.StateJoinRules, Content: event.Content{Parsed: &event.JoinRulesEventContent{
			JoinRule: event.JoinRuleRestricted, Allow: []event.JoinRuleAllow{{Type: event.JoinRuleAllowRoomMembership, RoomID: space}},
		}}},
	}})
	_, err = zhou.SendStateEvent(ctx, space, event.StateSpaceChild, string(inside), &event.SpaceChildEventContent{Via: via})
	zhou.must(err)
	_, err = chen.JoinRoomByID(ctx, inside)
	refused(t, err, "M_FORBIDDEN")
	chen.joins(space)
	tree, err := chen.Hierarchy(ctx, space, &mautrix.ReqHierarchy{Limit: 10})
	chen.must(err)
	var rooms []id.RoomID
	for _, r := range tree.Rooms {
		rooms = append(rooms, r.RoomID)
	}
	want := []id.RoomID{space, d.secret, inside}
	slices.Sort(rooms)
	slices.Sort(want)
	if !slices.Equal(rooms, want) {
		t.Errorf("the space holds %v", rooms)
	}
	chen.joins(inside)
}

// declined: an invitation is declined, and the room forgotten.
func (d *day) declined() {
	ctx, chen := d.t.Context(), d.chen
	d.t.Helper()
	room := d.zhou.made(&mautrix.ReqCreateRoom{Name: "不去", Invite: []id.UserID{chen.UserID}})
	chen.isIn(room, event.MembershipInvite)
	_, err := chen.LeaveRoom(ctx, room)
	chen.must(err)
	chen.isIn(room, event.MembershipLeave)
	_, err = chen.ForgetRoom(ctx, room)
	chen.must(err)
}

// picture: one with a thumbnail; nobody without a token sees it.
func (d *day) picture() {
	t, ctx := d.t, d.t.Context()
	t.Helper()
	png, err := base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
	d.zhou.must(err)
	up, err := d.zhou.UploadBytesWithName(ctx, png, "image/png", "点.png")
	d.zhou.must(err)
	r, err := d.chen.DownloadThumbnail(ctx, up.ContentURI, 32, 32)
	d.chen.must(err)
	r.Body.Close()
	stranger, err := mautrix.NewClient(d.s.URL, "", "")
	d.zhou.must(err)
	if _, err := stranger.DownloadBytes(context.Background(), up.ContentURI); err == nil {
		t.Error("a picture is given without a token")
	}
}
