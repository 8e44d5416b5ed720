package clients_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/attachment"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// secretRoom is an encrypted room of two people, known as such to their devices.
func secretRoom(from, to *handset) id.RoomID {
	from.t.Helper()
	ctx := from.t.Context()
	r, err := from.CreateRoom(ctx, &mautrix.ReqCreateRoom{
		Preset: "trusted_private_chat", Invite: []id.UserID{to.UserID}, IsDirect: true,
		InitialState: []*event.Event{{Type: event.StateEncryption, Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}}}},
	})
	from.must(err)
	_, err = to.JoinRoomByID(ctx, r.RoomID)
	to.must(err)
	for _, h := range []*handset{from, to} {
		h.until("the room", func() bool {
			yes, _ := h.StateStore.IsEncrypted(ctx, r.RoomID)
			members, _ := h.StateStore.GetRoomJoinedOrInvitedMembers(ctx, r.RoomID)
			return yes && len(members) == 2
		})
	}
	return r.RoomID
}

// day is a day of people with mautrix-go; the same as that of day.mjs.
type day struct {
	t          *testing.T
	s          *hstest.Server
	zhou, chen *handset // each with the first device
	secret     id.RoomID
	plain      id.RoomID
}

// The same day over /sync and over sliding sync.
func TestMautrixDay(t *testing.T) {
	for name, sliding := range map[string]bool{"sync": false, "sliding sync": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &day{t: t, s: hstest.New(t)}
			for _, u := range []string{"zhou", "chen", "li"} {
				d.s.User(u)
			}
			d.zhou, d.chen = newHandset(t, d.s, "zhou", sliding), newHandset(t, d.s, "chen", sliding)
			recovery := d.identities()
			d.secret = secretRoom(d.zhou, d.chen)
			first := d.zhou.says(d.secret, "你好")
			d.chen.reads(first, "你好")
			d.zhou.reads(d.chen.says(d.secret, "收到"), "收到")
			phone := d.phone()
			d.relations()
			d.polls()
			d.encryptedFile()
			d.picture()
			d.removed()
			d.open()
			d.receipts()
			d.search()
			d.past()
			d.people()
			d.rules()
			d.backup(recovery, first)
			d.loggedOut(phone)
			d.upgrade()
			d.knock()
			d.space()
			d.declined()
		})
	}
}

// identities: both set up cross-signing, and each verifies the other by emoji. It
// gives zhou's recovery key. (In a room mautrix-go cannot follow a verification
// beyond its first message, so the devices talk to each other directly.)
func (d *day) identities() string {
	d.t.Helper()
	ctx := d.t.Context()
	var keys []string
	for i, h := range []*handset{d.zhou, d.chen} {
		recovery, _, err := h.mach.GenerateAndUploadCrossSigningKeysWithPassword(ctx, "password of "+[]string{"zhou", "chen"}[i], "")
		h.must(err)
		h.must(h.mach.SignOwnDevice(ctx, h.mach.OwnIdentity()))
		h.must(h.mach.SignOwnMasterKey(ctx))
		keys = append(keys, recovery)
	}
	for _, h := range []*handset{d.zhou, d.chen} {
		_, err := h.mach.FetchKeys(ctx, []id.UserID{d.zhou.UserID, d.chen.UserID}, true)
		h.must(err)
	}
	d.zhou.comparesEmoji(d.chen)
	for _, pair := range [][2]*handset{{d.zhou, d.chen}, {d.chen, d.zhou}} {
		h, other := pair[0], pair[1]
		h.until("the other is verified", func() bool {
			_, err := h.mach.FetchKeys(ctx, []id.UserID{other.UserID}, true)
			if err != nil {
				return false
			}
			trusted, err := h.mach.IsUserTrusted(ctx, other.UserID)
			return err == nil && trusted
		})
	}
	return keys[0]
}

// phone is a second device of zhou's; both compare emoji, and chen trusts it.
func (d *day) phone() *handset {
	d.t.Helper()
	ctx := d.t.Context()
	phone := newHandset(d.t, d.s, "zhou", d.zhou.sliding)
	_, err := phone.mach.FetchKeys(ctx, []id.UserID{d.zhou.UserID}, true)
	phone.must(err)
	d.zhou.comparesEmoji(phone)
	d.chen.until("the phone is known and signed", func() bool {
		device, err := d.chen.mach.GetOrFetchDevice(ctx, phone.UserID, phone.DeviceID)
		if err != nil || device == nil {
			return false
		}
		trust, err := d.chen.mach.ResolveTrustContext(ctx, device)
		return err == nil && trust >= id.TrustStateCrossSignedVerified
	})
	all := d.chen.says(d.secret, "两台都看见了吗")
	d.zhou.reads(all, "两台都看见了吗")
	phone.reads(all, "两台都看见了吗")
	return phone
}

// backup: a device that has nothing but the recovery key reads the past.
func (d *day) backup(recovery string, first id.EventID) {
	t, ctx := d.t, d.t.Context()
	t.Helper()
	key := d.zhou.backsUp(d.secret, d.zhou.session(d.secret, first))
	fresh := newHandset(t, d.s, "zhou", d.zhou.sliding)
	fresh.must(fresh.mach.VerifyWithRecoveryKey(ctx, recovery))
	_, err := fresh.mach.DownloadAndStoreLatestKeyBackup(ctx, key)
	fresh.must(err)
	e, err := fresh.mach.DecryptMegolmEvent(ctx, fresh.sealed(d.secret, first))
	if err != nil || e.Content.AsMessage().Body != "你好" {
		t.Errorf("from the backup: %v", err)
	}
	fresh.must(fresh.SetDeviceInfo(ctx, fresh.DeviceID, &mautrix.ReqDeviceInfo{DisplayName: "换机"}))
	if got, err := d.zhou.GetDeviceInfo(ctx, fresh.DeviceID); err != nil || got.DisplayName != "换机" {
		t.Errorf("the new device: %+v %v", got, err)
	}
	_, err = fresh.Logout(ctx)
	fresh.must(err)
}

// loggedOut: the phone logs out; chen hears of it, and encrypts anew.
func (d *day) loggedOut(phone *handset) {
	t, ctx := d.t, d.t.Context()
	t.Helper()
	before := d.chen.session(d.secret, d.chen.says(d.secret, "手机在吗"))
	_, err := phone.Logout(ctx)
	phone.must(err)
	d.chen.until("the phone is gone", func() bool {
		devices, err := d.chen.mach.CryptoStore.GetDevices(ctx, d.zhou.UserID)
		return err == nil && devices[phone.DeviceID] == nil && len(devices) > 0
	})
	last := d.chen.says(d.secret, "手机没了")
	d.zhou.reads(last, "手机没了")
	if d.chen.session(d.secret, last) == before {
		t.Error("the session is the same as with the phone")
	}
}

// relations: an edit, reactions of which one is taken back, a thread, in an
// encrypted room.
func (d *day) relations() {
	t, ctx, zhou, chen, room := d.t, d.t.Context(), d.zhou, d.chen, d.secret
	t.Helper()
	root := zhou.says(room, "三点开会")
	chen.reads(root, "三点开会")
	edit := &event.MessageEventContent{MsgType: event.MsgText, Body: "四点开会"}
	edit.SetEdit(root)
	chen.reads(zhou.sends(room, event.EventMessage, edit), "* 四点开会")
	yes, err := chen.SendReaction(ctx, room, root, "✅")
	chen.must(err)
	no, err := chen.SendReaction(ctx, room, root, "❌")
	chen.must(err)
	if _, err := chen.SendReaction(ctx, room, root, "✅"); err == nil {
		t.Error("the same reaction twice is taken")
	}
	_, err = chen.RedactEvent(ctx, room, no.EventID, mautrix.ReqRedact{Reason: "手滑"})
	chen.must(err)
	zhou.until("the reaction is gone", func() bool { return zhou.gone[no.EventID] })
	for i, text := range []string{"我先说", "我补充"} {
		reply := &event.MessageEventContent{MsgType: event.MsgText, Body: text, RelatesTo: (&event.RelatesTo{}).SetThread(root, root)}
		from, to := []*handset{chen, zhou}[i], []*handset{zhou, chen}[i]
		to.reads(from.sends(room, event.EventMessage, reply), text)
	}
	for kind, want := range map[event.RelationType]int{event.RelReplace: 1, event.RelThread: 2, event.RelAnnotation: 1} {
		r, err := zhou.GetRelations(ctx, room, root, &mautrix.ReqGetRelations{RelationType: kind})
		if err != nil || len(r.Chunk) != want {
			t.Errorf("%s: %v %v", kind, r, err)
		} else if kind == event.RelAnnotation && r.Chunk[0].ID != yes.EventID {
			t.Errorf("the reaction that is left is %s", r.Chunk[0].ID)
		}
	}
	var e json.RawMessage
	_, err = chen.MakeRequest(ctx, http.MethodGet, chen.BuildClientURL("v3", "rooms", room, "event", root), nil, &e)
	chen.must(err)
	if th := gjson.GetBytes(e, `unsigned.m\.relations.m\.thread`); th.Get("count").Int() != 2 || !th.Get("current_user_participated").Bool() {
		t.Errorf("the thread is told of as %s", th.Raw)
	}
}

// polls: as clients send them, and as the specification has them.
func (d *day) polls() {
	t, ctx, room := d.t, d.t.Context(), d.secret
	t.Helper()
	for _, p := range []struct {
		start, response, end string
		question, vote       map[string]any
	}{
		{
			"org.matrix.msc3381.poll.start", "org.matrix.msc3381.poll.response", "org.matrix.msc3381.poll.end",
			map[string]any{"org.matrix.msc3381.poll.start": map[string]any{
				"kind": "org.matrix.msc3381.poll.disclosed", "max_selections": 1, "question": map[string]any{"org.matrix.msc1767.text": "午饭？"},
				"answers": []map[string]any{{"id": "a", "org.matrix.msc1767.text": "面"}, {"id": "b", "org.matrix.msc1767.text": "饭"}},
			}},
			map[string]any{"org.matrix.msc3381.poll.response": map[string]any{"answers": []string{"b"}}},
		},
		{
			"m.poll.start", "m.poll.response", "m.poll.end",
			map[string]any{"m.text": []map[string]string{{"body": "午饭？"}}, "m.poll": map[string]any{
				"kind": "m.disclosed", "max_selections": 1, "question": map[string]any{"m.text": []map[string]string{{"body": "午饭？"}}},
				"answers": []map[string]any{{"m.id": "a", "m.text": []map[string]string{{"body": "面"}}}, {"m.id": "b", "m.text": []map[string]string{{"body": "饭"}}}},
			}},
			map[string]any{"m.selections": []string{"b"}},
		},
	} {
		poll := d.zhou.sends(room, event.NewEventType(p.start), p.question)
		d.chen.until("the poll", func() bool { return d.chen.heard[poll] != nil && d.chen.heard[poll].Type.Type == p.start })
		ref := map[string]any{"rel_type": "m.reference", "event_id": poll}
		p.vote["m.relates_to"] = ref
		vote := d.chen.sends(room, event.NewEventType(p.response), p.vote)
		d.zhou.until("the vote", func() bool { return d.zhou.heard[vote] != nil && d.zhou.heard[vote].Type.Type == p.response })
		end := d.zhou.sends(room, event.NewEventType(p.end), map[string]any{"m.relates_to": ref, p.end: map[string]any{}, "m.text": []map[string]string{{"body": "完"}}})
		d.chen.until("the end", func() bool { return d.chen.heard[end] != nil })
		r, err := d.zhou.GetRelations(ctx, room, poll, &mautrix.ReqGetRelations{RelationType: event.RelReference})
		if err != nil || len(r.Chunk) != 2 {
			t.Errorf("%s: %v %v", p.start, r, err)
		}
	}
}

// encryptedFile: what is uploaded encrypted comes back and opens.
func (d *day) encryptedFile() {
	t, ctx, zhou, chen, room := d.t, d.t.Context(), d.zhou, d.chen, d.secret
	t.Helper()
	secret := make([]byte, 200_000)
	rand.Read(secret)
	file := attachment.NewEncryptedFile()
	data := slices.Clone(secret)
	file.EncryptInPlace(data)
	up, err := zhou.UploadBytes(ctx, data, "application/octet-stream")
	zhou.must(err)
	sent := zhou.sends(room, event.EventMessage, &event.MessageEventContent{
		MsgType: event.MsgFile, Body: "报表.xlsx", File: &event.EncryptedFileInfo{EncryptedFile: *file, URL: up.ContentURI.CUString()},
	})
	got := chen.reads(sent, "报表.xlsx").Content.AsMessage().File
	data, err = chen.DownloadBytes(ctx, got.URL.ParseOrIgnore())
	chen.must(err)
	if err := got.DecryptInPlace(data); err != nil || !bytes.Equal(data, secret) {
		t.Errorf("the file does not come back: %v", err)
	}
}
