package clients_test

import (
	"bytes"
	"crypto/rand"
	"slices"
	"testing"
	"time"

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

func TestMautrixDay(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	s.User("zhou")
	s.User("chen")
	ctx := t.Context()
	zhou, chen := newHandset(t, s, "zhou"), newHandset(t, s, "chen")
	recovery, _, err := zhou.mach.GenerateAndUploadCrossSigningKeysWithPassword(ctx, "password of zhou", "")
	zhou.must(err)
	zhou.must(zhou.mach.SignOwnDevice(ctx, zhou.mach.OwnIdentity()))
	zhou.must(zhou.mach.SignOwnMasterKey(ctx))
	room := secretRoom(zhou, chen)

	first := zhou.says(room, "你好")
	chen.reads(first, "你好")
	zhou.reads(chen.says(room, "收到"), "收到")

	// A second device of zhou's; both compare emoji.
	phone := newHandset(t, s, "zhou")
	if _, err := phone.mach.FetchKeys(ctx, []id.UserID{zhou.UserID}, true); err != nil {
		t.Fatal(err)
	}
	zhou.comparesEmoji(phone)
	chen.until("the phone is known and signed", func() bool {
		d, err := chen.mach.GetOrFetchDevice(ctx, phone.UserID, phone.DeviceID)
		if err != nil || d == nil {
			return false
		}
		trust, err := chen.mach.ResolveTrustContext(ctx, d)
		return err == nil && trust >= id.TrustStateCrossSignedTOFU
	})
	all := chen.says(room, "两台都看见了吗")
	zhou.reads(all, "两台都看见了吗")
	phone.reads(all, "两台都看见了吗")

	relations(zhou, chen, room)
	encryptedFile(zhou, chen, room)

	// A backup, and a device that has nothing but the recovery key.
	key := zhou.backsUp(room, zhou.session(room, first))
	fresh := newHandset(t, s, "zhou")
	fresh.must(fresh.mach.VerifyWithRecoveryKey(ctx, recovery))
	_, err = fresh.mach.DownloadAndStoreLatestKeyBackup(ctx, key)
	fresh.must(err)
	d, err := fresh.mach.DecryptMegolmEvent(ctx, fresh.sealed(room, first))
	if err != nil || d.Content.AsMessage().Body != "你好" {
		t.Errorf("from the backup: %v", err)
	}

	// The phone logs out: chen hears of it, and encrypts anew.
	before := chen.session(room, chen.says(room, "手机在吗"))
	_, err = phone.Logout(ctx)
	phone.must(err)
	chen.until("the phone is gone", func() bool {
		devices, err := chen.mach.CryptoStore.GetDevices(ctx, zhou.UserID)
		return err == nil && devices[phone.DeviceID] == nil && len(devices) > 0
	})
	last := chen.says(room, "手机没了")
	zhou.reads(last, "手机没了")
	if chen.session(room, last) == before {
		t.Error("the session is the same as with the phone")
	}
}

// relations: an edit, a reaction, a thread and a poll's vote, in an encrypted room.
func relations(zhou, chen *handset, room id.RoomID) {
	t, ctx := zhou.t, zhou.t.Context()
	t.Helper()
	root := zhou.says(room, "三点开会")
	chen.reads(root, "三点开会")
	edit := &event.MessageEventContent{MsgType: event.MsgText, Body: "四点开会"}
	edit.SetEdit(root)
	chen.reads(zhou.sends(room, event.EventMessage, edit), "* 四点开会")
	if _, err := chen.SendReaction(ctx, room, root, "✅"); err != nil {
		t.Error(err)
	}
	reply := &event.MessageEventContent{MsgType: event.MsgText, Body: "在话题里", RelatesTo: (&event.RelatesTo{}).SetThread(root, root)}
	inThread := chen.sends(room, event.EventMessage, reply)
	zhou.reads(inThread, "在话题里")
	for kind, want := range map[event.RelationType]int{event.RelReplace: 1, event.RelThread: 1, event.RelAnnotation: 1} {
		r, err := zhou.GetRelations(ctx, room, root, &mautrix.ReqGetRelations{RelationType: kind})
		if err != nil || len(r.Chunk) != want {
			t.Errorf("%s: %v %v", kind, r, err)
		}
	}
	if err := zhou.SendReceipt(ctx, room, inThread, event.ReceiptTypeRead, &mautrix.ReqSendReceipt{ThreadID: string(root)}); err != nil {
		t.Error(err)
	}
	if err := zhou.SendReceipt(ctx, room, root, event.ReceiptTypeReadPrivate, &mautrix.ReqSendReceipt{ThreadID: "main"}); err != nil {
		t.Error(err)
	}
	if _, err := zhou.UserTyping(ctx, room, true, time.Second); err != nil {
		t.Error(err)
	}
}

// encryptedFile: what is uploaded encrypted comes back and opens.
func encryptedFile(zhou, chen *handset, room id.RoomID) {
	t, ctx := zhou.t, zhou.t.Context()
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
