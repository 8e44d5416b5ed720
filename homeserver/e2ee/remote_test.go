package e2ee_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

func TestRemoteQueryAndClaim(t *testing.T) {
	s := start(t)
	dev := newSigner()
	carols := newCast(carol)
	s.far.answer = &e2ee.Answer{
		DeviceKeys: map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{
			carol: {"FAR": mustJSON(deviceKeys(carol, "FAR", dev)), "LIE": mustJSON(deviceKeys(carol, "FAR", dev))},
			alice: {"A1": mustJSON(deviceKeys(alice, "A1", dev))}, // not theirs to speak of
		},
		Master:      map[matrix.UserID]json.RawMessage{carol: mustJSON(carols.keys["master_key"]), alice: mustJSON(crossKey(alice, "master", dev))},
		SelfSigning: map[matrix.UserID]json.RawMessage{carol: json.RawMessage(`"nonsense"`)},
	}
	check := func(got m, failed bool) {
		t.Helper()
		if at(got, "device_keys", string(carol), "FAR") == nil || at(got, "device_keys", string(carol), "LIE") != nil ||
			at(got, "device_keys", string(alice), "A1") != nil || at(got, "master_keys", string(carol)) == nil ||
			at(got, "master_keys", string(alice)) != nil || at(got, "self_signing_keys", string(carol)) != nil ||
			(at(got, "failures", "far.example.org") != nil) != failed {
			t.Errorf("query: %v", got)
		}
	}
	check(s.query(a1, alice, carol), false)

	// A local signature on a remote master key is merged.
	alices := newCast(alice)
	s.want(200, "", a1, "POST", signing, alices.keys)
	user := "ed25519:" + alices.user.public
	s.want(200, `{"failures":{}}`, a1, "POST", "/keys/signatures/upload", m{string(carol): m{carols.master.public: alices.user.only(carols.keys["master_key"].(m), alice, user)}})
	if got := s.query(a1, carol); at(got, "master_keys", string(carol), "signatures", string(alice), user) == nil {
		t.Errorf("signature: %v", got)
	}
	if got := s.query(b1, carol); at(got, "master_keys", string(carol), "signatures", string(alice)) != nil {
		t.Errorf("another's signature: %v", got)
	}

	claim := m{"one_time_keys": m{string(carol): m{"FAR": "signed_curve25519"}}}
	got := decode(t, s.want(200, "", a1, "POST", "/keys/claim", claim))
	if at(got, "one_time_keys", string(carol), "FAR", "signed_curve25519:1", "key") != "far" || at(got, "one_time_keys", string(carol), "UNASKED") != nil || at(got, "one_time_keys", "@x:other") != nil {
		t.Errorf("claim: %v", got)
	}

	s.far.down = true
	check(s.query(b1, carol), true) // from the copy
	got = decode(t, s.want(200, "", a1, "POST", "/keys/claim", claim))
	if at(got, "failures", "far.example.org", "errcode") == nil || at(got, "one_time_keys", string(carol)) != nil {
		t.Errorf("claim from a server that is down: %v", got)
	}
	if got := s.query(b1, "@unknown:far.example.org"); at(got, "device_keys", "@unknown:far.example.org") != nil {
		t.Errorf("unknown user: %v", got)
	}
}

func TestInboundUpdates(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	dev := newSigner()
	mark := s.log.Head()
	update := func(content m) error { return s.service.DeviceListUpdate(ctx, "far.example.org", mustJSON(content)) }
	if err := update(m{"user_id": string(carol), "device_id": "FAR", "stream_id": 5, "keys": deviceKeys(carol, "FAR", dev)}); err != nil {
		t.Fatal(err)
	}
	if got := s.listChanges(alice, mark); !slices.Equal(got, []matrix.UserID{carol}) {
		t.Errorf("told of %v", got)
	}
	s.far.down = true
	if got := s.query(a1, carol); at(got, "device_keys", string(carol), "FAR") == nil {
		t.Errorf("the copy has %v", got)
	}
	mark = s.log.Head()
	if err := update(m{"user_id": string(carol), "device_id": "FAR", "stream_id": 5}); err != nil {
		t.Fatal(err)
	}
	if got := s.listChanges(alice, mark); len(got) != 0 {
		t.Errorf("the same update again told of %v", got)
	}
	if err := update(m{"user_id": string(carol), "device_id": "FAR", "stream_id": 6, "prev_id": []int{5}, "deleted": true}); err != nil {
		t.Fatal(err)
	}
	if got := s.query(a1, carol); at(got, "device_keys", string(carol), "FAR") != nil {
		t.Errorf("after deletion the copy has %v", got)
	}
	if err := s.service.SigningKeyUpdate(ctx, "far.example.org", mustJSON(m{"user_id": string(carol), "master_key": crossKey(carol, "master", dev)})); err != nil {
		t.Fatal(err)
	}
	if got := s.query(a1, carol); at(got, "master_keys", string(carol)) == nil {
		t.Errorf("the copy has %v", got)
	}

	for _, u := range []struct {
		update m
		told   bool
	}{
		{m{"user_id": string(carol), "device_id": "DUMB", "stream_id": 7, "prev_id": []int{6}}, false}, // no keys, and none before
		{m{"user_id": string(carol), "device_id": "DUMB", "stream_id": 9, "prev_id": []int{8}}, true},  // something was missed
		{m{"user_id": string(carol), "device_id": "FAR", "stream_id": 10, "prev_id": []int{9}, "keys": deviceKeys(carol, "FAR", dev)}, true},
		{m{"user_id": string(carol), "device_id": "FAR", "stream_id": 11, "prev_id": []int{10}}, true}, // had keys
	} {
		mark = s.log.Head()
		if err := update(u.update); err != nil || len(s.listChanges(alice, mark)) > 0 != u.told {
			t.Errorf("%v: told of %v, %v", u.update, s.listChanges(alice, mark), err)
		}
	}

	mark = s.log.Head()
	if err := update(m{"user_id": "@stranger:far.example.org", "device_id": "X", "stream_id": 1}); err != nil || len(s.listChanges(alice, mark)) != 0 {
		t.Errorf("a user nobody knows: %v, %v", err, s.listChanges(alice, mark))
	}
	for _, bad := range []m{
		{"user_id": string(alice), "device_id": "X", "stream_id": 1},
		{"user_id": "@carol:evil.example.org", "device_id": "X", "stream_id": 1},
		{"user_id": "nobody", "device_id": "X", "stream_id": 1},
		{"user_id": string(carol), "stream_id": 1},
		{"user_id": 7},
	} {
		if err := update(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	if err := s.service.SigningKeyUpdate(ctx, "evil.example.org", mustJSON(m{"user_id": string(carol)})); err == nil {
		t.Error("a server spoke for another's user")
	}
}

// Who meets other servers is introduced by a device with keys, else by any; one EDU does, as its predecessor is unknown
// to them.
func TestIntroductions(t *testing.T) {
	s := start(t)
	s.uploadDevice(a1, alice, "A1")
	for user, device := range map[matrix.UserID]string{alice: "A1", bob: "B2"} {
		raw, err := s.service.Introduction(t.Context(), user)
		if err != nil {
			t.Fatal(err)
		}
		got := decode(t, string(raw))
		if prev, _ := got["prev_id"].([]any); at(got, "user_id") != string(user) || at(got, "device_id") != device || at(got, "device_display_name") != "Name of "+device ||
			(at(got, "keys") != nil) != (user == alice) || len(prev) == 1 != (user == alice) || len(prev) == 1 && prev[0] == got["stream_id"] {
			t.Errorf("%s is introduced by %s", user, raw)
		}
	}
	if raw, err := s.service.Introduction(t.Context(), "@nobody:example.org"); raw != nil || err != nil {
		t.Errorf("nobody is introduced by %s, %v", raw, err)
	}
}

func TestForOtherServers(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	before := s.log.Head()
	alices := newCast(alice)
	_, keys := s.uploadDevice(a1, alice, "A1")
	s.uploadDevice(a2, alice, "A2")
	s.want(200, "", a1, "POST", signing, alices.keys)
	self := "ed25519:" + alices.self.public
	s.want(200, "", a1, "POST", "/keys/signatures/upload", m{string(alice): m{"A1": alices.self.only(keys, alice, self)}})
	if err := s.devices.Delete(ctx, alice, []matrix.DeviceID{"A2"}); err != nil {
		t.Fatal(err)
	}

	answer, err := s.service.QueryLocal(ctx, e2ee.Query{alice: nil, carol: nil, "@nobody:example.org": nil})
	if err != nil {
		t.Fatal(err)
	}
	got := decode(t, string(mustJSON(answer)))
	if at(got, "device_keys", string(alice), "A1", "signatures", string(alice), self) == nil || at(got, "device_keys", string(carol)) != nil ||
		at(got, "master_keys", string(alice)) == nil || at(got, "user_signing_keys") != nil {
		t.Errorf("query: %v", got)
	}
	list, err := s.service.UserDevices(ctx, alice)
	if err != nil {
		t.Fatal(err)
	}
	got = decode(t, string(mustJSON(list)))
	if devices, _ := got["devices"].([]any); len(devices) != 1 || at(devices[0], "device_id") != "A1" || at(devices[0], "keys", "user_id") != string(alice) || at(got, "master_key") == nil || at(got, "self_signing_key") == nil {
		t.Errorf("devices: %v", got)
	}
	if _, err := s.service.UserDevices(ctx, carol); !matrix.IsCode(err, "M_INVALID_PARAM") {
		t.Errorf("devices of a remote user: %v", err)
	}

	updates, err := s.service.ListUpdates(ctx, before, s.log.Head())
	if err != nil || len(updates) != 5 {
		t.Fatalf("%d updates, %v", len(updates), err)
	}
	var last any
	for i, u := range updates {
		c := decode(t, string(u.Content))
		if i == 2 {
			if u.Type != "m.signing_key_update" || at(c, "master_key") == nil || at(c, "self_signing_key") == nil {
				t.Errorf("update %d: %s %v", i, u.Type, c)
			}
			continue
		}
		prev, _ := c["prev_id"].([]any)
		if u.Type != "m.device_list_update" || (i == 0) != (len(prev) == 0) || i > 0 && prev[0] != last {
			t.Errorf("update %d: %s %v after %v", i, u.Type, c, last)
		}
		last = c["stream_id"] // an update tells the state of today: A2 is gone already in its first
		if (i == 1 || i == 4) != (c["deleted"] == true) || i == 3 && at(c, "keys", "signatures", string(alice), self) == nil {
			t.Errorf("update %d: %v", i, c)
		}
	}
	if got["stream_id"] != last {
		t.Errorf("stream_id %v, the last update %v", got["stream_id"], last)
	}
}
