package interop_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
)

// person is somebody with a client, on either server, and all that their syncs have shown.
type person struct {
	*mautrix.Client
	t     *testing.T
	since string
	// onDendrite says on which server.
	onDendrite bool
	seen       []json.RawMessage // whole answers, oldest first
}

func newPerson(t *testing.T, c *mautrix.Client) *person { return &person{Client: c, t: t} }

// until syncs until an answer satisfies ok, older answers included.
func (p *person) until(what string, ok func(sync gjson.Result) bool) {
	p.t.Helper()
	for _, raw := range p.seen {
		if ok(gjson.ParseBytes(raw)) {
			return
		}
	}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		u := p.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "sync"}, map[string]string{"since": p.since, "timeout": "1000"})
		raw, err := p.MakeRequest(p.t.Context(), "GET", u, nil, nil)
		if err != nil {
			p.t.Fatalf("%s syncs: %v", p.UserID, err)
		}
		p.since = gjson.GetBytes(raw, "next_batch").Str
		p.seen = append(p.seen, raw)
		if ok(gjson.ParseBytes(raw)) {
			return
		}
	}
	p.t.Fatalf("%s waits for %s in vain", p.UserID, what)
}

// in lists something of a room in a sync.
func in(sync gjson.Result, kind string, room id.RoomID, path string) []gjson.Result {
	return sync.Get("rooms." + kind + "." + gjson.Escape(string(room)) + "." + path).Array()
}

// hears waits until an event that fits has arrived in the timeline or the state of a room.
func (p *person) hears(room id.RoomID, what string, fits func(e gjson.Result) bool) {
	p.t.Helper()
	p.until(what, func(sync gjson.Result) bool {
		for _, kind := range []string{"join", "leave"} {
			for _, path := range []string{"timeline.events", "state.events"} {
				if slices.ContainsFunc(in(sync, kind, room, path), fits) {
					return true
				}
			}
		}
		return false
	})
}

func (p *person) hearsText(room id.RoomID, text string) {
	p.t.Helper()
	p.hears(room, fmt.Sprintf("%q", text), func(e gjson.Result) bool { return e.Get("content.body").Str == text })
}

func (p *person) seesMember(room id.RoomID, who id.UserID, membership string) {
	p.t.Helper()
	p.hears(room, fmt.Sprintf("%s of %s", membership, who), func(e gjson.Result) bool {
		return e.Get("type").Str == "m.room.member" && e.Get("state_key").Str == string(who) && e.Get("content.membership").Str == membership
	})
}

func (p *person) seesInvite(room id.RoomID) {
	p.t.Helper()
	p.until("an invitation", func(sync gjson.Result) bool { return len(in(sync, "invite", room, "invite_state.events")) > 0 })
}

func (p *person) seesEphemeral(room id.RoomID, what string, fits func(e gjson.Result) bool) {
	p.t.Helper()
	p.until(what, func(sync gjson.Result) bool {
		return slices.ContainsFunc(in(sync, "join", room, "ephemeral.events"), fits)
	})
}

func (p *person) say(room id.RoomID, text string) id.EventID {
	p.t.Helper()
	r, err := p.SendText(p.t.Context(), room, text)
	if err != nil {
		p.t.Fatalf("%s says %q: %v", p.UserID, text, err)
	}
	return r.EventID
}

func (p *person) must(what string, err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("%s: %s: %v", p.UserID, what, err)
	}
}

// world is one server of each kind.
type world struct {
	carillon *hstest.Server
	dendrite *dendrite
}

func newWorld(t *testing.T) *world {
	t.Helper()
	authority := httpapitest.NewAuthority(t)
	d := startDendrite(t, authority)
	return &world{hstest.Among(t, authority), d}
}

// people are somebody on Carillon and somebody on Dendrite.
func (w *world) people(t *testing.T) (ours, theirs *person) {
	t.Helper()
	x := token()
	return newPerson(t, w.carillon.User("ours"+x).Client), w.dendrite.person(t, "theirs"+x)
}

// TestDendrite plays the same day in rooms of several versions, made on either side.
func TestDendrite(t *testing.T) {
	w := newWorld(t)
	for _, ver := range []string{"", "10", "11", "12"} {
		for _, maker := range []string{"carillon", "dendrite"} {
			name := "version " + ver
			if ver == "" {
				name = "default version"
			}
			t.Run(name+" made by "+maker, func(t *testing.T) {
				ours, theirs := w.people(t)
				host, guest := ours, theirs
				if maker == "dendrite" {
					host, guest = theirs, ours
				}
				day(t, host, guest, ver)
			})
		}
	}
}

// day is a life of a private room: invitation, talk, leaving, and being sent away.
func day(t *testing.T, host, guest *person, ver string) {
	ctx := t.Context()
	r, err := host.CreateRoom(ctx, &mautrix.ReqCreateRoom{Preset: "private_chat", Name: "A room", RoomVersion: id.RoomVersion(ver)})
	host.must("makes a room", err)
	room := r.RoomID
	host.say(room, "before anybody came")
	_, err = host.InviteUser(ctx, room, &mautrix.ReqInviteUser{UserID: guest.UserID})
	host.must("invites", err)
	guest.seesInvite(room)
	_, err = guest.JoinRoom(ctx, string(room), nil)
	guest.must("joins", err)
	host.seesMember(room, guest.UserID, "join")
	guest.hears(room, "the name of the room", func(e gjson.Result) bool { return e.Get("content.name").Str == "A room" })

	talk(t, host, guest, room)
	files(t, host, guest, room)
	files(t, guest, host, room)

	_, err = guest.LeaveRoom(ctx, room)
	guest.must("leaves", err)
	host.seesMember(room, guest.UserID, "leave")
	host.seen, guest.seen = nil, nil
	_, err = host.InviteUser(ctx, room, &mautrix.ReqInviteUser{UserID: guest.UserID})
	host.must("invites again", err)
	guest.seesInvite(room)
	_, err = guest.JoinRoom(ctx, string(room), nil)
	guest.must("joins again", err)
	host.seesMember(room, guest.UserID, "join")
	guest.say(room, "back again")
	host.hearsText(room, "back again")
	host.seen, guest.seen = nil, nil
	_, err = host.KickUser(ctx, room, &mautrix.ReqKickUser{UserID: guest.UserID, Reason: "it is late"})
	host.must("sends away", err)
	guest.seesMember(room, guest.UserID, "leave")
}

// talk is messages both ways and what belongs to them.
func talk(t *testing.T, host, guest *person, room id.RoomID) {
	ctx := t.Context()
	first := host.say(room, "hello from here")
	guest.hearsText(room, "hello from here")
	second := guest.say(room, "hello from there")
	host.hearsText(room, "hello from there")

	guest.must("reads", guest.MarkRead(ctx, room, first))
	host.seesEphemeral(room, "a receipt", func(e gjson.Result) bool {
		return e.Get("type").Str == "m.receipt" && e.Get("content."+gjson.Escape(string(first))+`.m\.read.`+gjson.Escape(string(guest.UserID))).Exists()
	})
	host.must("reads", host.MarkRead(ctx, room, second))
	guest.seesEphemeral(room, "a receipt", func(e gjson.Result) bool {
		return e.Get("type").Str == "m.receipt" && e.Get("content."+gjson.Escape(string(second))+`.m\.read.`+gjson.Escape(string(host.UserID))).Exists()
	})
	for _, pair := range [][2]*person{{host, guest}, {guest, host}} {
		from, to := pair[0], pair[1]
		_, err := from.UserTyping(ctx, room, true, 20*time.Second)
		from.must("types", err)
		to.seesEphemeral(room, "who types", func(e gjson.Result) bool {
			return e.Get("type").Str == "m.typing" && slices.ContainsFunc(e.Get("content.user_ids").Array(), func(u gjson.Result) bool { return u.Str == string(from.UserID) })
		})
		if version(from, room) >= 11 && to.onDendrite {
			continue // since version 11 a redaction says in its content what it redacts, where Dendrite does not look
		}
		wrong := from.say(room, "said in error by "+string(from.UserID))
		to.hearsText(room, "said in error by "+string(from.UserID))
		_, err = from.RedactEvent(ctx, room, wrong)
		from.must("takes back", err)
		to.hears(room, "a redaction", func(e gjson.Result) bool {
			return e.Get("type").Str == "m.room.redaction" && (e.Get("redacts").Str == string(wrong) || e.Get("content.redacts").Str == string(wrong))
		})
		gone := func() bool {
			e, err := to.GetEvent(ctx, room, wrong)
			to.must("looks at what was taken back", err)
			return e.Content.Raw["body"] == nil
		}
		for end := time.Now().Add(patience); !gone(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s still sees what was taken back", to.UserID)
			}
		}
	}
	_, err := host.SendReaction(ctx, room, second, "👍")
	host.must("reacts", err)
	guest.hears(room, "a reaction", func(e gjson.Result) bool { return e.Get(`content.m\.relates_to.key`).Str == "👍" })
	_, err = host.SendStateEvent(ctx, room, event.StateTopic, "", map[string]string{"topic": "weather"})
	host.must("sets the topic", err)
	guest.hears(room, "the topic", func(e gjson.Result) bool { return e.Get("content.topic").Str == "weather" })
	if version(host, room) < 12 || guest.onDendrite { // Dendrite takes no room ID of version 12 when it is asked for history
		older(t, guest, room)
	}
	direct(t, host, guest)
	direct(t, guest, host)
}

// version is the version of a room.
func version(p *person, room id.RoomID) int64 {
	p.t.Helper()
	raw, err := p.MakeRequest(p.t.Context(), "GET", p.BuildClientURL("v3", "rooms", room, "state", "m.room.create"), nil, nil)
	p.must("asks for the version of the room", err)
	return gjson.GetBytes(raw, "room_version").Int()
}

// older reads a room back to what was said before the guest came.
func older(t *testing.T, guest *person, room id.RoomID) {
	from := ""
	for range 20 {
		r, err := guest.Messages(t.Context(), room, from, "", mautrix.DirectionBackward, nil, 50)
		guest.must("reads back", err)
		for _, e := range r.Chunk {
			if body, _ := e.Content.Raw["body"].(string); body == "before anybody came" {
				return
			}
		}
		if r.End == "" {
			break
		}
		from = r.End
	}
	t.Errorf("%s does not find what was said earlier", guest.UserID)
}

// direct is a message from device to device, and the other's devices as they are seen.
func direct(t *testing.T, from, to *person) {
	word := token()
	_, err := from.SendToDevice(t.Context(), event.Type{Type: "test.direct", Class: event.ToDeviceEventType}, &mautrix.ReqSendToDevice{
		Messages: map[id.UserID]map[id.DeviceID]*event.Content{to.UserID: {to.DeviceID: {Raw: map[string]any{"word": word}}}},
	})
	from.must("sends to a device", err)
	to.until("a message to the device", func(sync gjson.Result) bool {
		return slices.ContainsFunc(sync.Get("to_device.events").Array(), func(e gjson.Result) bool {
			return e.Get("content.word").Str == word && e.Get("sender").Str == string(from.UserID)
		})
	})
}

// files is a file that one uploads and the other downloads.
func files(t *testing.T, from, to *person, room id.RoomID) {
	ctx := t.Context()
	data := bytes.Repeat([]byte(token()), 20_000)
	up, err := from.UploadBytesWithName(ctx, data, "application/octet-stream", "plan.bin")
	from.must("uploads", err)
	_, err = from.SendMessageEvent(ctx, room, event.EventMessage, map[string]any{"msgtype": "m.file", "body": "plan of " + string(from.UserID), "url": up.ContentURI.CUString()})
	from.must("sends a file", err)
	to.hearsText(room, "plan of "+string(from.UserID))
	got, err := to.DownloadBytes(ctx, up.ContentURI)
	to.must("downloads", err)
	if !bytes.Equal(got, data) {
		t.Errorf("%s got %d bytes of %d", to.UserID, len(got), len(data))
	}
}

// TestOpenRooms: rooms are found by alias and in the list of the other server, and their people by name.
func TestOpenRooms(t *testing.T) {
	w := newWorld(t)
	ours, theirs := w.people(t)
	for _, pair := range [][2]*person{{ours, theirs}, {theirs, ours}} {
		host, guest := pair[0], pair[1]
		ctx := t.Context()
		alias := "hall" + token()
		r, err := host.CreateRoom(ctx, &mautrix.ReqCreateRoom{Preset: "public_chat", Visibility: "public", RoomAliasName: alias, Name: "Hall"})
		host.must("makes a hall", err)
		server := host.UserID.Homeserver()
		list, err := guest.PublicRooms(ctx, &mautrix.ReqPublicRooms{Server: server})
		guest.must("asks for the rooms of "+server, err)
		if !slices.ContainsFunc(list.Chunk, func(c *mautrix.PublicRoomInfo) bool { return c.RoomID == r.RoomID }) {
			t.Errorf("%s does not find the hall in the list of %s", guest.UserID, server)
		}
		host.must("takes a name", host.SetDisplayName(ctx, "The host"))
		_, err = guest.JoinRoom(ctx, "#"+alias+":"+server, nil)
		guest.must("joins by alias", err)
		host.seesMember(r.RoomID, guest.UserID, "join")
		p, err := guest.GetProfile(ctx, host.UserID)
		guest.must("asks for a profile", err)
		if p.DisplayName != "The host" {
			t.Errorf("%s sees the name %q", guest.UserID, p.DisplayName)
		}
		q, err := guest.QueryKeys(ctx, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{host.UserID: mautrix.DeviceIDList{}}})
		guest.must("asks for devices", err)
		if len(q.Failures) > 0 {
			t.Errorf("%s asks for devices: %v", guest.UserID, q.Failures)
		}
	}
}

// TestAway: what is said while the other server does not run arrives when it is back.
func TestAway(t *testing.T) {
	w := newWorld(t)
	ours, theirs := w.people(t)
	ctx := context.WithoutCancel(t.Context())
	r, err := theirs.CreateRoom(ctx, &mautrix.ReqCreateRoom{Preset: "public_chat"})
	theirs.must("makes a room", err)
	_, err = ours.JoinRoom(ctx, string(r.RoomID), &mautrix.ReqJoinRoom{Via: []string{w.dendrite.name}})
	ours.must("joins", err)
	w.carillon.Cut()
	for i := range 60 {
		theirs.say(r.RoomID, fmt.Sprint("while you were away ", i))
	}
	w.carillon.Heal()
	ours.say(r.RoomID, "I am back") // by which Dendrite hears of it
	theirs.hearsText(r.RoomID, "I am back")
	for i := range 60 {
		ours.hearsText(r.RoomID, fmt.Sprint("while you were away ", i))
	}
}
