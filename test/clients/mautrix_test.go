package clients_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/crypto/verificationhelper"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// handset is a device of a person: a mautrix client with goolm, everything in memory.
type handset struct {
	*mautrix.Client
	mach *crypto.OlmMachine
	t    *testing.T

	sliding bool

	mu      sync.Mutex
	heard   map[id.EventID]*event.Event // decrypted, or sent in the clear
	gone    map[id.EventID]bool         // redacted
	typing  map[id.RoomID][]id.UserID
	read    map[id.RoomID]map[id.UserID]id.EventID // public receipts
	unread  map[id.RoomID]mautrix.UnreadNotificationCounts
	within  map[id.RoomID]event.Membership // where the person stands
	said    map[string]json.RawMessage     // account data of all rooms, by type
	emoji   map[id.VerificationTransactionID][]rune
	asked   []id.VerificationTransactionID
	ready   []id.VerificationTransactionID
	done    []id.VerificationTransactionID
	settled map[id.VerificationTransactionID]bool // what comes of them is not of interest any more
	trouble error
	verify  *verificationhelper.VerificationHelper
}

// newHandset logs a person in on a new device and syncs until the test is over.
func newHandset(t *testing.T, s *hstest.Server, name string, sliding bool) *handset {
	t.Helper()
	c, err := mautrix.NewClient(s.URL, "", "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Login(t.Context(), &mautrix.ReqLogin{
		Type: mautrix.AuthTypePassword, Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: name},
		Password: "password of " + name, StoreCredentials: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	states := mautrix.NewMemoryStateStore()
	c.StateStore = states
	h := &handset{
		Client: c, t: t, sliding: sliding, heard: map[id.EventID]*event.Event{}, emoji: map[id.VerificationTransactionID][]rune{},
		gone: map[id.EventID]bool{}, typing: map[id.RoomID][]id.UserID{}, read: map[id.RoomID]map[id.UserID]id.EventID{},
		settled: map[id.VerificationTransactionID]bool{}, unread: map[id.RoomID]mautrix.UnreadNotificationCounts{}, within: map[id.RoomID]event.Membership{}, said: map[string]json.RawMessage{},
	}
	h.mach = crypto.NewOlmMachine(c, nil, crypto.NewMemoryStore(nil), states.(crypto.StateStore))
	h.must(h.mach.Load(t.Context()))
	h.must(h.mach.ShareKeys(t.Context(), -1))
	c.Crypto = h
	sync := c.Syncer.(*mautrix.DefaultSyncer)
	sync.OnEvent(c.StateStoreSyncHandler)
	sync.OnSync(h.mach.ProcessSyncResponse)
	sync.OnSync(h.note)
	sync.OnEventType(event.StateMember, h.mach.HandleMemberEvent)
	sync.OnEventType(event.EventEncrypted, h.hear)
	sync.OnEventType(event.EventMessage, h.hearPlain)
	sync.OnEventType(event.EventRedaction, h.hearRedaction)
	sync.OnEventType(event.EphemeralEventTyping, h.hearTyping)
	sync.OnEventType(event.EphemeralEventReceipt, h.hearReceipts)
	h.verify = verificationhelper.NewVerificationHelper(c, h.mach, nil, h, false, false, true)
	h.must(h.verify.Init(t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		run := c.SyncWithContext
		if sliding {
			run = h.slide
		}
		if err := run(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, mautrix.MUnknownToken) {
			t.Errorf("%s stops to sync: %v", name, err)
		}
	}()
	t.Cleanup(func() { cancel(); <-over })
	return h
}

func (h *handset) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// hear decrypts, and tries again while the key may still come.
func (h *handset) hear(ctx context.Context, e *event.Event) {
	if e.Unsigned.RedactedBecause != nil { // there is nothing in it any more
		return
	}
	d, err := h.mach.DecryptMegolmEvent(ctx, e)
	if errors.Is(err, crypto.ErrNoSessionFound) {
		go func() {
			m := e.Content.AsEncrypted()
			if h.mach.WaitForSession(ctx, e.RoomID, m.SenderKey, m.SessionID, 20*time.Second) {
				h.hear(ctx, e)
			}
		}()
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.trouble = err
		return
	}
	h.heard[e.ID] = d
}

func (h *handset) hearPlain(_ context.Context, e *event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard[e.ID] = e
}

func (h *handset) hearRedaction(_ context.Context, e *event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone[e.Redacts] = true
	h.gone[e.Content.AsRedaction().Redacts] = true
}

func (h *handset) hearTyping(_ context.Context, e *event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.typing[e.RoomID] = e.Content.AsTyping().UserIDs
}

func (h *handset) hearReceipts(_ context.Context, e *event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ev, list := range *e.Content.AsReceipt() {
		for user := range list[event.ReceiptTypeRead] {
			if h.read[e.RoomID] == nil {
				h.read[e.RoomID] = map[id.UserID]id.EventID{}
			}
			h.read[e.RoomID][user] = ev
		}
	}
}

// note keeps what an answer says beside events.
func (h *handset) note(_ context.Context, r *mautrix.RespSync, _ string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for room, x := range r.Rooms.Join {
		h.within[room] = event.MembershipJoin
		if x.UnreadNotifications != nil {
			h.unread[room] = *x.UnreadNotifications
		}
	}
	for room := range r.Rooms.Invite {
		h.within[room] = event.MembershipInvite
	}
	for room := range r.Rooms.Knock {
		h.within[room] = event.MembershipKnock
	}
	for room := range r.Rooms.Leave {
		h.within[room] = event.MembershipLeave
	}
	for _, e := range r.AccountData.Events {
		h.said[e.Type.Type] = e.Content.VeryRaw
	}
	return true
}

// What mautrix.CryptoHelper asks for.

func (h *handset) Init(context.Context) error { return nil }

func (h *handset) Encrypt(ctx context.Context, room id.RoomID, kind event.Type, content any) (*event.EncryptedEventContent, error) {
	out, err := h.mach.EncryptMegolmEvent(ctx, room, kind, content)
	if err == nil || !errors.Is(err, crypto.ErrSessionExpired) && !errors.Is(err, crypto.ErrNoGroupSession) && !errors.Is(err, crypto.ErrSessionNotShared) {
		return out, err
	}
	users, err := h.StateStore.GetRoomJoinedOrInvitedMembers(ctx, room)
	if err != nil {
		return nil, err
	}
	if err := h.mach.ShareGroupSession(ctx, room, users); err != nil {
		return nil, err
	}
	return h.mach.EncryptMegolmEvent(ctx, room, kind, content)
}

func (h *handset) Decrypt(ctx context.Context, e *event.Event) (*event.Event, error) {
	return h.mach.DecryptMegolmEvent(ctx, e)
}

func (h *handset) WaitForSession(ctx context.Context, room id.RoomID, key id.SenderKey, session id.SessionID, d time.Duration) bool {
	return h.mach.WaitForSession(ctx, room, key, session, d)
}

func (h *handset) RequestSession(context.Context, id.RoomID, id.SenderKey, id.SessionID, id.UserID, id.DeviceID) {
}

// What verificationhelper asks for.

func (h *handset) VerificationRequested(_ context.Context, t id.VerificationTransactionID, _ id.UserID, _ id.DeviceID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, t)
}

func (h *handset) VerificationReady(_ context.Context, t id.VerificationTransactionID, _ id.DeviceID, _, _ bool, _ *verificationhelper.QRCode) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready = append(h.ready, t)
}

func (h *handset) VerificationCancelled(_ context.Context, t id.VerificationTransactionID, code event.VerificationCancelCode, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.settled[t] {
		return
	}
	h.trouble = errors.New(string(code) + " " + reason)
}

func (h *handset) VerificationDone(_ context.Context, t id.VerificationTransactionID, _ event.VerificationMethod) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = append(h.done, t)
}

func (h *handset) ShowSAS(_ context.Context, t id.VerificationTransactionID, emoji []rune, _ []string, _ []int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.emoji[t] = emoji
}

// until waits for something of the device's.
func (h *handset) until(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		h.mu.Lock()
		yes, trouble := ok(), h.trouble
		h.mu.Unlock()
		if yes {
			return
		}
		if trouble != nil || time.Now().After(end) {
			h.t.Fatalf("%s of %s: %s did not come about: %v", h.DeviceID, h.UserID, what, trouble)
		}
	}
}

// reads waits until the device has decrypted a message.
func (h *handset) reads(e id.EventID, text string) *event.Event {
	h.t.Helper()
	h.until(text, func() bool { return h.heard[e] != nil })
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.heard[e]
	if d.Content.AsMessage().Body != text {
		h.t.Errorf("%s reads %q, not %q", h.UserID, d.Content.AsMessage().Body, text)
	}
	return d
}

func (h *handset) says(room id.RoomID, text string) id.EventID {
	h.t.Helper()
	return h.sends(room, event.EventMessage, &event.MessageEventContent{MsgType: event.MsgText, Body: text})
}

func (h *handset) sends(room id.RoomID, kind event.Type, content any) id.EventID {
	h.t.Helper()
	r, err := h.SendMessageEvent(h.t.Context(), room, kind, content)
	h.must(err)
	return r.EventID
}

// sealed is an event as the server has it.
func (h *handset) sealed(room id.RoomID, e id.EventID) *event.Event {
	h.t.Helper()
	out, err := h.GetEvent(h.t.Context(), room, e)
	h.must(err)
	if out.Content.Parsed == nil {
		h.must(out.Content.ParseRaw(out.Type))
	}
	return out
}

// session is what an event was encrypted with.
func (h *handset) session(room id.RoomID, e id.EventID) id.SessionID {
	h.t.Helper()
	return h.sealed(room, e).Content.AsEncrypted().SessionID
}

// comparesEmoji verifies another device, of the same person or of another, which
// asks for it.
func (h *handset) comparesEmoji(other *handset) {
	h.t.Helper()
	ctx := h.t.Context()
	txn, err := other.verify.StartVerification(ctx, h.UserID)
	h.must(err)
	h.until("the request", func() bool { return slices.Contains(h.asked, txn) })
	h.must(h.verify.AcceptVerification(ctx, txn))
	other.until("the acceptance", func() bool { return slices.Contains(other.ready, txn) })
	h.must(other.verify.StartSAS(ctx, txn))
	h.until("the emoji", func() bool { return len(h.emoji[txn]) == 7 })
	other.until("the emoji", func() bool { return slices.Equal(other.emoji[txn], h.emoji[txn]) })
	if h.UserID != other.UserID {
		h.settle(txn)
		other.settle(txn)
	}
	h.must(other.verify.ConfirmSAS(ctx, txn))
	err = h.verify.ConfirmSAS(ctx, txn)
	if h.UserID != other.UserID && err != nil {
		// Whoever confirms last compares the other's key with its own (sas.go of
		// mautrix-go 0.29.0) and gives up, so it signs here what was compared.
		theirs, err := h.mach.GetCrossSigningPublicKeys(ctx, other.UserID)
		h.must(err)
		h.must(h.mach.SignUser(ctx, other.UserID, theirs.MasterKey))
		return
	}
	h.must(err)
	for _, d := range []*handset{h, other} {
		d.until("the end", func() bool { return slices.Contains(d.done, txn) })
	}
}

func (h *handset) settle(t id.VerificationTransactionID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settled[t] = true
}

// backsUp makes a backup and puts a session into it.
func (h *handset) backsUp(room id.RoomID, session id.SessionID) *backup.MegolmBackupKey {
	h.t.Helper()
	ctx := h.t.Context()
	key, err := backup.NewMegolmBackupKey()
	h.must(err)
	auth := backup.MegolmAuthData{
		PublicKey:  id.Ed25519(base64.RawStdEncoding.EncodeToString(key.PublicKey().Bytes())),
		Signatures: signatures.Signatures{},
	}
	v, err := h.CreateKeyBackupVersion(ctx, &mautrix.ReqRoomKeysVersionCreate[backup.MegolmAuthData]{Algorithm: id.KeyBackupAlgorithmMegolmBackupV1, AuthData: auth})
	h.must(err)
	group, err := h.mach.CryptoStore.GetGroupSession(ctx, room, session)
	h.must(err)
	exported, err := group.Internal.Export(group.Internal.FirstKnownIndex())
	h.must(err)
	sealed, err := backup.EncryptSessionData(key, backup.MegolmSessionData{
		Algorithm: id.AlgorithmMegolmV1, SenderKey: group.SenderKey, SessionKey: string(exported),
		ForwardingKeyChain: []string{}, SenderClaimedKeys: backup.SenderClaimedKeys{Ed25519: group.SigningKey},
	})
	h.must(err)
	data, err := json.Marshal(sealed)
	h.must(err)
	_, err = h.PutKeysInBackupForRoomAndSession(ctx, v.Version, room, session, &mautrix.ReqKeyBackupData{FirstMessageIndex: int(group.Internal.FirstKnownIndex()), SessionData: data})
	h.must(err)
	return key
}
