package rooms

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// besieged is a room with an observer in it and servers that mean no good.
type besieged struct {
	*story
	t  *testing.T
	a  *archive
	o  *observer
	me *teller // one of them
	by matrix.UserID
}

func besiege(t *testing.T, version string) *besieged {
	t.Helper()
	a := newArchive()
	o := observe(t, 0, a)
	s, err := newStory(roomVersion(version), 1, []matrix.UserID{o.user})
	if err == nil {
		a.add(s)
		err = o.begin(t.Context(), s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &besieged{s, t, a, o, s.servers[3], s.servers[3].users[0]}
}

// raw is an event with some of its fields changed, well hashed and signed.
func (b *besieged) raw(e *events.Event, fields map[string]any) json.RawMessage {
	b.t.Helper()
	raw := []byte(e.JSON)
	var err error
	for _, f := range []string{"hashes", "signatures"} {
		if raw, err = sjson.DeleteBytes(raw, f); err != nil {
			b.t.Fatal(err)
		}
	}
	for k, v := range fields {
		if raw, err = sjson.SetBytes(raw, k, v); err != nil {
			b.t.Fatal(err)
		}
	}
	if raw, err = matrix.CanonicalJSON(raw, false); err != nil {
		b.t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	if raw, err = sjson.SetBytes(raw, "hashes.sha256", base64.RawStdEncoding.EncodeToString(sum[:])); err != nil {
		b.t.Fatal(err)
	}
	if raw, err = matrix.CanonicalJSON(raw, false); err != nil {
		b.t.Fatal(err)
	}
	signed, err := (&events.Event{JSON: raw, Version: b.version, ID: e.ID}).Sign(b.me.Signer)
	if err != nil {
		b.t.Fatal(err)
	}
	return signed.JSON
}

func (b *besieged) message() *events.Event {
	b.t.Helper()
	e := b.make(b.me, b.by, "m.room.message", nil, map[string]any{"body": "x"}, b.me.tips, nil, "")
	if b.err != nil {
		b.t.Fatal(b.err)
	}
	return e
}

// refused checks that an event is refused for a reason, and changes nothing.
func (b *besieged) refused(raw json.RawMessage, code, reason string) {
	b.t.Helper()
	before, tips, err := b.o.now(b.t.Context(), b.room)
	if err != nil {
		b.t.Fatal(err)
	}
	begin := time.Now()
	_, err = b.o.Receive(context.Background(), b.me.Server, raw)
	if !matrix.IsCode(err, code) || !strings.Contains(fmt.Sprint(err), reason) {
		b.t.Errorf("%v, want %s with %q", err, code, reason)
	}
	if took := time.Since(begin); took > 20*time.Second {
		b.t.Errorf("it takes %s", took)
	}
	after, now, err := b.o.now(b.t.Context(), b.room)
	if err != nil {
		b.t.Fatal(err)
	}
	sameStates(b.t, "after it", b.story, after, before)
	if !slices.Equal(tips, now) {
		b.t.Errorf("built on %v, before on %v", now, tips)
	}
}

var someVersions = []string{"1", "6", "11", "12"}

func eachVersion(t *testing.T, fn func(t *testing.T, b *besieged)) {
	for _, v := range someVersions {
		t.Run(v, func(t *testing.T) { fn(t, besiege(t, v)) })
	}
}

func TestForgedSignatures(t *testing.T) {
	eachVersion(t, func(t *testing.T, b *besieged) {
		e := b.message()
		sig := "signatures." + strings.ReplaceAll(string(b.me.Server), ".", `\.`)
		bare, err := sjson.DeleteBytes(e.JSON, sig)
		if err != nil {
			t.Fatal(err)
		}
		b.refused(bare, "M_FORBIDDEN", "bad signature")
		other, err := sjson.SetBytes(e.JSON, sig, map[string]string{"ed25519:1": base64.RawStdEncoding.EncodeToString(make([]byte, 64))})
		if err != nil {
			t.Fatal(err)
		}
		b.refused(other, "M_FORBIDDEN", "bad signature")
		// In somebody else's name, with one's own signature.
		b.refused(b.raw(e, map[string]any{"sender": string(b.servers[1].users[0])}), "M_FORBIDDEN", "bad signature")
		// What nobody has signed is no different where it comes as missing.
		b.a.lie = lies{missing: []json.RawMessage{bare}}
		next := b.make(b.me, b.by, "m.room.message", nil, map[string]any{"body": "y"}, []matrix.EventID{b.me.tips[0]}, nil, "")
		b.refused(b.raw(next, map[string]any{"prev_events": b.refs(e.ID), "depth": 30}), "M_FORBIDDEN", "cannot be had")
	})
}

// refs are references in the form of the version.
func (b *besieged) refs(ids ...matrix.EventID) any {
	if b.version != "1" && b.version != "2" {
		return append([]matrix.EventID{}, ids...)
	}
	out := []any{}
	for _, id := range ids {
		out = append(out, []any{id, map[string]string{"sha256": ""}})
	}
	return out
}

// A wrong hash means that an event has been redacted: what it says is not believed.
func TestWrongHashes(t *testing.T) {
	eachVersion(t, func(t *testing.T, b *besieged) {
		e := b.message()
		changed := bytes.Replace(e.JSON, []byte(`"body":"x"`), []byte(`"body":"put into his mouth"`), 1)
		id, err := b.o.Receive(t.Context(), b.me.Server, changed)
		if err != nil || id != e.ID {
			t.Fatalf("%s, %v", id, err)
		}
		got, err := b.o.known(t.Context(), id)
		if err != nil || string(got.Content()) != "{}" {
			t.Errorf("%s, %v", got.JSON, err)
		}
	})
}

func TestDepths(t *testing.T) {
	eachVersion(t, func(t *testing.T, b *besieged) {
		e := b.message()
		for _, depth := range []any{"1", 1.5, json.RawMessage("1e400"), []int{1}} {
			raw, err := sjson.SetBytes(e.JSON, "depth", depth)
			if err != nil {
				t.Fatal(err)
			}
			b.refused(raw, "M_BAD_JSON", "malformed")
		}
		// The largest of all, and what this server makes of a room that has come so far.
		largest := b.raw(e, map[string]any{"depth": int64(maxDepth)})
		id, err := b.o.Receive(t.Context(), b.me.Server, largest)
		if err != nil {
			t.Fatal(err)
		}
		own, err := b.o.Send(t.Context(), Draft{Room: b.room, Sender: b.o.user, Type: "m.room.message", Content: json.RawMessage(`{"body":"mine"}`)})
		if err != nil {
			t.Fatal(err)
		}
		got, err := b.o.known(t.Context(), own)
		if err != nil || got.Depth != maxDepth || !slices.Contains(got.PrevEvents(), id) {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, err := events.Parse(got.JSON, got.Version); err != nil {
			t.Errorf("others do not read it: %v", err)
		}
		least := b.raw(b.message(), map[string]any{"depth": -5})
		if _, err := b.o.Receive(t.Context(), b.me.Server, least); err != nil && !matrix.IsCode(err, "M_BAD_JSON") && !matrix.IsCode(err, "M_FORBIDDEN") {
			t.Error(err)
		}
	})
}

func TestSizes(t *testing.T) {
	eachVersion(t, func(t *testing.T, b *besieged) {
		e := b.message()
		b.refused(b.raw(e, map[string]any{"content": map[string]string{"body": strings.Repeat("x", 66_000)}}), "M_TOO_LARGE", "65536")
		b.refused(b.raw(e, map[string]any{"type": strings.Repeat("x", 256)}), "M_BAD_JSON", "too long")
		b.refused(b.raw(e, map[string]any{"state_key": strings.Repeat("x", 256)}), "M_BAD_JSON", "too long")
		b.refused(b.raw(e, map[string]any{"sender": "@" + strings.Repeat("x", 255) + ":" + string(b.me.Server)}), "M_BAD_JSON", "")
		var many []matrix.EventID
		for i := range maxPrev + 1 {
			many = append(many, matrix.EventID(fmt.Sprintf("$%d", i)))
		}
		b.refused(b.raw(e, map[string]any{"prev_events": b.refs(many...)}), "M_FORBIDDEN", "at most 20")
		b.refused(b.raw(e, map[string]any{"auth_events": b.refs(many...)}), "M_FORBIDDEN", "at most")
		b.refused(b.raw(e, map[string]any{"prev_events": b.refs()}), "M_FORBIDDEN", "built on nothing")
	})
}

// TestAuthChainBombs: what authorises an event is authorised by ever more of it, or by
// so much that nobody can want to look at it.
func TestAuthChainBombs(t *testing.T) {
	b := besiege(t, "1")
	e := b.message()
	bomb := b.raw(e, map[string]any{"auth_events": b.refs("$none:s3.test")})
	b.a.lie = lies{eventAuth: slices.Repeat([]json.RawMessage{json.RawMessage(`{}`)}, maxChain+1)}
	b.refused(bomb, "M_FORBIDDEN", "too many")
	b.a.lie = lies{eventAuth: slices.Repeat([]json.RawMessage{e.JSON}, 5000)}
	b.refused(bomb, "M_FORBIDDEN", "cannot be had")
	// No chain is given, and each event that is asked for names ten others.
	asked := b.a.asked["event"]
	b.a.lie = lies{noChain: true, endless: func(id matrix.EventID) json.RawMessage {
		var more []matrix.EventID
		for i := range 10 {
			more = append(more, matrix.EventID(fmt.Sprintf("$%d.%s", i, id[1:])))
		}
		return b.raw(e, map[string]any{"event_id": id, "auth_events": b.refs(more...)})
	}}
	b.refused(bomb, "M_FORBIDDEN", "cannot be had")
	if n := b.a.asked["event"] - asked; n > maxOneByOne {
		t.Errorf("%d events were asked for", n)
	}
	// A chain that is very long, each event of which authorises the next.
	var long []json.RawMessage
	for i := range 3000 {
		long = append(long, b.raw(e, map[string]any{"event_id": fmt.Sprintf("$l%d:s3.test", i), "auth_events": b.refs(matrix.EventID(fmt.Sprintf("$l%d:s3.test", i+1)))}))
	}
	b.a.lie = lies{eventAuth: long}
	b.refused(b.raw(e, map[string]any{"auth_events": b.refs("$l0:s3.test")}), "M_FORBIDDEN", "cannot be had")
}

// TestLoops: where servers choose the IDs of events, what is built on each other in a
// circle can be made.
func TestLoops(t *testing.T) {
	for _, v := range []string{"1", "2"} {
		b := besiege(t, v)
		e := b.message()
		loop := func(id, prev, auth matrix.EventID) json.RawMessage {
			fields := map[string]any{"event_id": id, "prev_events": b.refs(prev), "depth": 50}
			if auth != "" {
				fields["auth_events"] = b.refs(auth)
			}
			return b.raw(e, fields)
		}
		const x, y matrix.EventID = "$x:s3.test", "$y:s3.test"
		b.refused(loop(x, x, ""), "M_FORBIDDEN", "cannot be had") // on itself
		b.refused(loop(x, b.me.tips[0], x), "M_FORBIDDEN", "")    // by itself
		one, two := loop(x, y, ""), loop(y, x, "")
		b.a.lie = lies{missing: []json.RawMessage{two, one}, events: map[matrix.EventID]json.RawMessage{x: one, y: two}, states: []matrix.EventID{}}
		b.refused(one, "M_FORBIDDEN", "cannot be had")
		one, two = loop(x, b.me.tips[0], y), loop(y, b.me.tips[0], x)
		b.a.lie = lies{eventAuth: []json.RawMessage{one, two}, events: map[matrix.EventID]json.RawMessage{x: one, y: two}}
		b.refused(one, "M_FORBIDDEN", "")
	}
}

// TestOtherRooms: events of one room have nothing to say in another.
func TestOtherRooms(t *testing.T) {
	eachVersion(t, func(t *testing.T, b *besieged) {
		other, err := newStory(b.version, 2, []matrix.UserID{b.o.user})
		if err == nil {
			b.a.add(other)
			err = b.o.begin(t.Context(), other)
		}
		if err != nil {
			t.Fatal(err)
		}
		there := other.tell(other.servers[3], b.by, "m.room.message", nil, map[string]any{"body": "there"})
		if _, err := b.o.hears(t.Context(), there); err != nil {
			t.Fatal(err)
		}
		e := b.message()
		b.refused(b.raw(e, map[string]any{"prev_events": b.refs(there.ID)}), "M_FORBIDDEN", "another room")
		b.refused(b.raw(e, map[string]any{"prev_events": b.refs(e.PrevEvents()[0], there.ID)}), "M_FORBIDDEN", "another room")
		_, err = b.o.Receive(t.Context(), b.me.Server, b.raw(e, map[string]any{"auth_events": b.refs(slices.DeleteFunc(there.AuthEvents(), func(id matrix.EventID) bool {
			return b.version == "12" && id == events.CreateID(other.room)
		})...)}))
		if !matrix.IsCode(err, "M_FORBIDDEN") || !strings.Contains(err.Error(), "another room") {
			t.Errorf("authorised by another room: %v", err)
		}
		// In the name of a room that its sender is not in.
		b.refused(b.raw(e, map[string]any{"room_id": "!nowhere:s3.test"}), "M_NOT_FOUND", "not in")
	})
}

// TestAuthEvents that are missing, too many, or have no say in the event.
func TestAuthEvents(t *testing.T) {
	eachVersion(t, func(t *testing.T, b *besieged) {
		e := b.message()
		named := slices.DeleteFunc(e.AuthEvents(), func(id matrix.EventID) bool { return b.version == "12" && id == events.CreateID(b.room) })
		b.refused(b.raw(e, map[string]any{"auth_events": b.refs(append(slices.Clone(named), "$none:s3.test")...)}), "M_FORBIDDEN", "cannot be had")
		judged := func(why string, ids ...matrix.EventID) {
			t.Helper()
			b.n++
			fields := map[string]any{"auth_events": b.refs(ids...), "origin_server_ts": 1_700_000_100_000 + int64(b.n)}
			if b.version == "1" {
				fields["event_id"] = fmt.Sprintf("$j%d:s3.test", b.n)
			}
			id, err := b.o.Receive(t.Context(), b.me.Server, b.raw(e, fields))
			if !matrix.IsCode(err, "M_FORBIDDEN") {
				t.Errorf("%s: %v", why, err)
			}
			if got, err := b.o.known(t.Context(), id); err != nil || got == nil || !got.Rejected() {
				t.Errorf("%s: it is not rejected (%v)", why, err)
			}
		}
		judged("none")
		judged("an event that has no say", append(slices.Clone(named), b.order[3])...)
		judged("the same event twice", append(slices.Clone(named), named[len(named)-1])...)
		judged("another's membership", append(slices.Clone(named), b.after(b.me.tips[0])[memberKey(b.servers[1].users[0])])...)
		if b.version == "12" {
			judged("the create event, which the room's ID names", append(slices.Clone(named), events.CreateID(b.room))...)
		}
	})
}

// TestStatesThatLie: behind a gap a server is asked for the state. It may leave out and
// make up what it likes: nothing that fails the checks comes in, and of what is known
// here it has no say.
func TestStatesThatLie(t *testing.T) {
	eachVersion(t, func(t *testing.T, b *besieged) {
		ctx := t.Context()
		first := b.servers[0]
		name := b.tell(first, first.users[0], "m.room.name", ptr(""), map[string]any{"name": "mine"})
		if _, err := b.o.hears(ctx, name); err != nil {
			t.Fatal(err)
		}
		// Nobody gave the malicious user the power to do this.
		levels := b.make(b.me, b.by, spec.MRoomPowerLevels, ptr(""), map[string]any{"users": map[string]int{string(b.by): 100}}, b.me.tips, nil, "")
		b.add(levels)
		ban := b.make(b.me, b.by, spec.MRoomMember, ptr(string(first.users[0])), map[string]any{"membership": "ban"}, b.me.tips, nil, "")
		b.add(ban)
		gone := b.make(b.me, b.by, "m.room.message", nil, map[string]any{"body": "never shown"}, b.me.tips, nil, "") // nobody will have it
		next := b.raw(b.message(), map[string]any{"prev_events": b.refs(gone.ID), "depth": 40})
		now, _, err := b.o.now(ctx, b.room)
		if err != nil {
			t.Fatal(err)
		}
		all := func(more ...matrix.EventID) (ids []matrix.EventID) {
			for _, id := range now {
				ids = append(ids, id)
			}
			return append(ids, more...)
		}
		last := b.raw(b.message(), map[string]any{"prev_events": b.refs(b.idOf(next)), "depth": 41})
		for _, l := range []lies{
			{states: all(levels.ID, ban.ID)},
			{states: []matrix.EventID{}},
			{states: all("$made:up", "$up:made"), chain: []matrix.EventID{"$x:y"}},
			{states: slices.Repeat([]matrix.EventID{"$x:y"}, maxChain+1)},
		} {
			l.missing = []json.RawMessage{next}
			b.a.lie = l
			_, err := b.o.Receive(ctx, b.me.Server, last)
			if err != nil && !matrix.IsCode(err, "M_FORBIDDEN") {
				t.Errorf("%v", err)
			}
			after, _, err := b.o.now(ctx, b.room)
			if err != nil {
				t.Fatal(err)
			}
			sameStates(t, "after the lie", b.story, after, now)
		}
	})
}

func (b *besieged) idOf(raw json.RawMessage) matrix.EventID {
	b.t.Helper()
	e, err := events.Parse(raw, b.version)
	if err != nil {
		b.t.Fatal(err)
	}
	return e.ID
}
