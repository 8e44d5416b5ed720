package hstest_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// signer is the identity of a device, or a cross-signing key.
type signer struct {
	id   string // key ID without algorithm
	priv ed25519.PrivateKey
}

func newSigner(t testing.TB, name string) signer {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if name == "" {
		name = base64.RawStdEncoding.EncodeToString(pub)
	}
	return signer{name, priv}
}

func (s signer) public() string {
	return base64.RawStdEncoding.EncodeToString(s.priv.Public().(ed25519.PublicKey))
}

// sign adds a signature to an object.
func (s signer) sign(t testing.TB, user id.UserID, obj map[string]any) map[string]any {
	t.Helper()
	bare := map[string]any{}
	for k, v := range obj {
		if k != "signatures" && k != "unsigned" {
			bare[k] = v
		}
	}
	raw, err := json.Marshal(bare)
	if err != nil {
		t.Fatal(err)
	}
	canonical, err := matrix.CanonicalJSON(raw, false)
	if err != nil {
		t.Fatal(err)
	}
	sigs, _ := obj["signatures"].(map[string]any)
	if sigs == nil {
		sigs = map[string]any{}
		obj["signatures"] = sigs
	}
	mine, _ := sigs[string(user)].(map[string]any)
	if mine == nil {
		mine = map[string]any{}
		sigs[string(user)] = mine
	}
	mine["ed25519:"+s.id] = base64.RawStdEncoding.EncodeToString(ed25519.Sign(s.priv, canonical))
	return obj
}

// uploadKeys uploads the keys of a user's device with n one-time keys.
func uploadKeys(t testing.TB, u *hstest.User, n int) signer {
	t.Helper()
	s := newSigner(t, string(u.DeviceID))
	keys := s.sign(t, u.UserID, map[string]any{
		"user_id": u.UserID, "device_id": u.DeviceID, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"},
		"keys": map[string]any{"ed25519:" + s.id: s.public(), "curve25519:" + s.id: base64.RawStdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))},
	})
	once := map[string]any{}
	for i := range n {
		once[fmt.Sprintf("signed_curve25519:%s%d", s.id, i)] = s.sign(t, u.UserID, map[string]any{"key": fmt.Sprintf("one-time key %d", i)})
	}
	fallback := map[string]any{"signed_curve25519:fb": s.sign(t, u.UserID, map[string]any{"key": "the fallback key", "fallback": true})}
	r := u.OK("POST", hstest.Path("keys", "upload"), map[string]any{"device_keys": keys, "one_time_keys": once, "fallback_keys": fallback})
	if got := r.Get("one_time_key_counts.signed_curve25519").Int(); got != int64(n) {
		t.Fatalf("%d one-time keys are counted, %d were uploaded", got, n)
	}
	return s
}

func queryKeys(u *hstest.User, of *hstest.User) gjson.Result {
	return u.OK("POST", hstest.Path("keys", "query"), map[string]any{"device_keys": map[string]any{string(of.UserID): []string{}}})
}

func deviceKey(u, of *hstest.User) string {
	r := queryKeys(u, of).Get("device_keys." + gjson.Escape(string(of.UserID)) + "." + gjson.Escape(string(of.DeviceID)))
	return r.Get("keys." + gjson.Escape("ed25519:"+string(of.DeviceID))).Str
}

func claimKey(u, of *hstest.User) string {
	r := u.OK("POST", hstest.Path("keys", "claim"), map[string]any{
		"one_time_keys": map[string]any{string(of.UserID): map[string]any{string(of.DeviceID): "signed_curve25519"}},
	})
	key := ""
	r.Get("one_time_keys." + gjson.Escape(string(of.UserID)) + "." + gjson.Escape(string(of.DeviceID))).ForEach(func(_, v gjson.Result) bool {
		key = v.Get("key").Str
		return true
	})
	return key
}

// toDevice waits for a to-device message.
func toDevice(u *hstest.User, typ string) (content map[string]any) {
	u.SyncUntil("a to-device message", func(r *mautrix.RespSync) bool {
		for _, e := range r.ToDevice.Events {
			if e.Type.Type == typ {
				content = e.Content.Raw
			}
		}
		return content != nil
	})
	return content
}

// encryption plays what two clients do before they talk in secret.
func encryption(t *testing.T, alice, bob *hstest.User, room id.RoomID) {
	t.Helper()
	bobs := uploadKeys(t, bob, 2)
	uploadKeys(t, alice, 1)
	alice.SyncUntil("bob in device_lists.changed", func(r *mautrix.RespSync) bool { return slices.Contains(r.DeviceLists.Changed, bob.UserID) })
	if got := deviceKey(alice, bob); got != bobs.public() {
		t.Fatalf("alice is told that bob's key is %q, it is %q", got, bobs.public())
	}
	seen := map[string]bool{}
	for range 2 {
		seen[claimKey(alice, bob)] = true
	}
	if len(seen) != 2 || seen[""] || seen["the fallback key"] {
		t.Errorf("the claimed one-time keys are %v", seen)
	}
	if k := claimKey(alice, bob); k != "the fallback key" {
		t.Errorf("when no one-time key is left, %q is given", k)
	}
	bob.SyncUntil("no more one-time keys", func(r *mautrix.RespSync) bool { return r.DeviceOTKCount.SignedCurve25519 == 0 })
	if r := bob.RawSync(bob.Since()); r.Get("device_unused_fallback_key_types.#").Int() != 0 {
		t.Errorf("the used fallback key is called unused: %s", r.Raw)
	}
	for i, typ := range []string{"m.room.encrypted", "m.room.encrypted"} {
		alice.OK("PUT", hstest.Path("sendToDevice", typ, fmt.Sprint("td", i)), map[string]any{
			"messages": map[string]any{string(bob.UserID): map[string]any{string(bob.DeviceID): map[string]any{"n": i}}},
		})
		// Again: it is not delivered twice.
		alice.OK("PUT", hstest.Path("sendToDevice", typ, fmt.Sprint("td", i)), map[string]any{
			"messages": map[string]any{string(bob.UserID): map[string]any{string(bob.DeviceID): map[string]any{"n": "twice"}}},
		})
		if c := toDevice(bob, typ); c["n"] != float64(i) {
			t.Errorf("to-device message %d has the content %v", i, c)
		}
	}

	// Bob signs in on another device, and out.
	phone := bob.Login("PHONE")
	uploadKeys(t, phone, 0)
	alice.SyncUntil("bob's new device", func(r *mautrix.RespSync) bool {
		return slices.Contains(r.DeviceLists.Changed, bob.UserID) && deviceKey(alice, phone) != ""
	})
	if _, err := phone.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	alice.SyncUntil("bob's device to go", func(*mautrix.RespSync) bool { return deviceKey(alice, phone) == "" })

	// They part: alice is told to forget bob's devices.
	if _, err := bob.LeaveRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	alice.SyncUntil("bob in device_lists.left", func(r *mautrix.RespSync) bool { return slices.Contains(r.DeviceLists.Left, bob.UserID) })
}

func TestEncryption(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	alice.Sync(0)
	bob.Sync(0)
	encryption(t, alice, bob, room)
}

func TestFederatedEncryption(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	join(bob, room, a)
	a.Eventually("bob is in", func() bool { return membership(alice, room, bob.UserID) == "join" })
	alice.Sync(0)
	bob.Sync(0)
	encryption(t, alice, bob, room)
}

// crossSign uploads cross-signing keys; the first upload needs no password.
func crossSign(t *testing.T, u *hstest.User) (master, self signer) {
	t.Helper()
	body, master, self := crossKeys(t, u)
	u.OK("POST", hstest.Path("keys", "device_signing", "upload"), body)
	return master, self
}

// crossKeys makes cross-signing keys, in the form of their upload.
func crossKeys(t testing.TB, u *hstest.User) (body map[string]any, master, self signer) {
	t.Helper()
	master, self = newSigner(t, ""), newSigner(t, "")
	user := newSigner(t, "")
	key := func(s signer, usage string) map[string]any {
		return map[string]any{"user_id": u.UserID, "usage": []string{usage}, "keys": map[string]any{"ed25519:" + s.id: s.public()}}
	}
	return map[string]any{
		"master_key":       key(master, "master"),
		"self_signing_key": master.sign(t, u.UserID, key(self, "self_signing")),
		"user_signing_key": master.sign(t, u.UserID, key(user, "user_signing")),
	}, master, self
}

func crossSigning(t *testing.T, alice, bob *hstest.User) {
	t.Helper()
	device := uploadKeys(t, bob, 0)
	master, self := crossSign(t, bob)
	alice.SyncUntil("bob's keys", func(r *mautrix.RespSync) bool {
		return queryKeys(alice, bob).Get("master_keys." + gjson.Escape(string(bob.UserID)) + ".keys." + gjson.Escape("ed25519:"+master.id)).Exists()
	})
	r := queryKeys(alice, bob)
	if r.Get("user_signing_keys." + gjson.Escape(string(bob.UserID))).Exists() {
		t.Error("alice is shown bob's user-signing key")
	}
	if !queryKeys(bob, bob).Get("user_signing_keys." + gjson.Escape(string(bob.UserID))).Exists() {
		t.Error("bob is not shown his own user-signing key")
	}
	// Bob signs his device with his self-signing key; alice sees the signature.
	var keys map[string]any
	if err := json.Unmarshal([]byte(r.Get("device_keys."+gjson.Escape(string(bob.UserID))+"."+gjson.Escape(string(bob.DeviceID))).Raw), &keys); err != nil {
		t.Fatal(err)
	}
	delete(keys, "signatures")
	delete(keys, "unsigned")
	answer := bob.OK("POST", hstest.Path("keys", "signatures", "upload"), map[string]any{
		string(bob.UserID): map[string]any{string(bob.DeviceID): self.sign(t, bob.UserID, keys)},
	})
	if len(answer.Get("failures").Map()) != 0 {
		t.Fatalf("the signature is refused: %s", answer.Raw)
	}
	alice.SyncUntil("the signature", func(*mautrix.RespSync) bool {
		r := queryKeys(alice, bob).Get("device_keys." + gjson.Escape(string(bob.UserID)) + "." + gjson.Escape(string(bob.DeviceID)) + ".signatures." + gjson.Escape(string(bob.UserID)))
		return r.Get(gjson.Escape("ed25519:"+self.id)).Exists() && r.Get(gjson.Escape("ed25519:"+device.id)).Exists()
	})
}

func TestCrossSigning(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	alice.Room(nil, bob)
	crossSigning(t, alice, bob)
	// A second set needs the password.
	other := newSigner(t, "")
	a := bob.Do("POST", hstest.Path("keys", "device_signing", "upload"), map[string]any{"master_key": map[string]any{
		"user_id": bob.UserID, "usage": []string{"master"}, "keys": map[string]any{"ed25519:" + other.id: other.public()},
	}})
	if a.Status != 401 || a.Get("session").Str == "" {
		t.Errorf("replacing the master key: %d %s", a.Status, a.Body)
	}
}

func TestFederatedCrossSigning(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	join(bob, alice.Room(nil), a)
	crossSigning(t, alice, bob)
}

// TestDevicesOfWhoComesBack changes a user's devices while nobody here shares a
// room with him.
func TestDevicesOfWhoComesBack(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	join(bob, room, a)
	first := uploadKeys(t, bob, 0)
	a.Eventually("bob's first device", func() bool { return deviceKey(alice, bob) == first.public() })
	if _, err := bob.LeaveRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	a.Eventually("bob leaves", func() bool { return membership(alice, room, bob.UserID) == "leave" })
	pad := bob.Login("PAD")
	second := uploadKeys(t, pad, 0)
	since := alice.RawSync("").Get("next_batch").Str
	join(bob, room, a)
	a.Eventually("alice is told", func() bool {
		return strings.Contains(alice.RawSync(since).Get("device_lists.changed").Raw, string(bob.UserID))
	})
	a.Eventually("bob's second device", func() bool { return deviceKey(alice, pad) == second.public() })
}

func TestManyToDeviceMessages(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	phone := bob.Login("PHONE")
	const n = 250
	for i := range n {
		alice.OK("PUT", hstest.Path("sendToDevice", "im.carillon.count", fmt.Sprint("c", i)), map[string]any{
			"messages": map[string]any{string(bob.UserID): map[string]any{"*": map[string]any{"n": i}}},
		})
	}
	s.Stop()
	s.Start()
	since := ""
	var got []int64
	for len(got) < n {
		r := phone.RawSync(since)
		// The same token gives the same messages: the answer may have been lost.
		if again := phone.RawSync(since); again.Get("to_device.events").Raw != r.Get("to_device.events").Raw {
			t.Fatal("asked again, /sync gives other messages")
		}
		list := r.Get("to_device.events.#.content.n").Array()
		if len(list) == 0 {
			break
		}
		for _, v := range list {
			got = append(got, v.Int())
		}
		since = r.Get("next_batch").Str
	}
	if len(got) != n || !slices.IsSorted(got) || got[n-1] != n-1 {
		t.Errorf("the phone gets %d messages: %v", len(got), got)
	}
	if r := phone.RawSync(since); r.Get("to_device").Exists() {
		t.Errorf("more: %s", r.Raw)
	}
	if n := bob.RawSync("").Get("to_device.events.#").Int(); n != 100 {
		t.Errorf("the other device gets %d at first", n)
	}
}
