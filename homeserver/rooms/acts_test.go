package rooms

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// act is what somebody does in a story.
type act struct {
	sender  matrix.UserID
	typ     string
	key     *string
	content map[string]any
	redacts matrix.EventID
}

// act chooses what a user of a server does next in a room of this state. It may
// not be allowed.
func (s *story) act(t *teller, now stateMap) act {
	a := act{sender: t.users[s.rnd.IntN(len(t.users))], content: map[string]any{"n": s.n}, key: ptr("")}
	switch s.rnd.IntN(20) {
	case 0, 1, 2:
		s.membership(&a, now)
	case 3, 4:
		s.moderation(&a, now)
	case 5, 6, 7, 8:
		s.levels(&a, now)
	case 9, 10:
		s.joinRules(&a)
	case 11:
		s.keptInvitation(&a)
	case 12:
		s.invitationByToken(&a, now)
	case 13:
		a.typ, a.key = "m.room.redaction", nil
		a.redacts = s.order[len(s.order)-1-s.rnd.IntN(min(20, len(s.order)-1))]
		if since11(s.version) {
			a.content["redacts"] = a.redacts
		}
	case 14:
		a.typ, a.key = "test.state", ptr(fmt.Sprint("k", s.rnd.IntN(3)))
	case 15:
		a.typ, a.content = "m.room.history_visibility", map[string]any{"history_visibility": "shared", "n": s.n}
	case 16, 17:
		a.typ = []string{"m.room.topic", "m.room.name"}[s.rnd.IntN(2)]
	case 18:
		a.typ, a.key = "test.own", ptr(string(a.sender))
	default:
		a.typ, a.key = "m.room.message", nil
	}
	return a
}

func since11(v gomatrixserverlib.RoomVersion) bool { return v == "11" || v == "12" }

// anybody is a user of any of the servers.
func (s *story) anybody() matrix.UserID {
	t := s.servers[s.rnd.IntN(len(s.servers))]
	return t.users[s.rnd.IntN(len(t.users))]
}

func (s *story) content(now stateMap, typ, key string) gjson.Result {
	e := s.events[now[state.Key{Type: typ, StateKey: key}]]
	if e == nil {
		return gjson.Result{}
	}
	return gjson.GetBytes(e.JSON, "content")
}

// membership: somebody comes, goes, knocks or tells his new name.
func (s *story) membership(a *act, now stateMap) {
	a.typ, a.key = spec.MRoomMember, ptr(string(a.sender))
	switch m := s.content(now, spec.MRoomMember, string(a.sender)).Get("membership").Str; {
	case m == "join" && s.rnd.IntN(3) > 0 && s.rnd.IntN(2) == 0:
		a.content["membership"] = "leave"
	case m != "join" && s.rnd.IntN(4) == 0:
		a.content["membership"] = "knock"
	default:
		a.content["membership"] = "join"
		if r := s.content(now, spec.MRoomJoinRules, "").Get("join_rule").Str; strings.Contains(r, "restricted") {
			a.content["join_authorised_via_users_server"] = s.anybody()
		}
	}
}

// moderation: somebody is invited, taken out, banned or no longer banned.
func (s *story) moderation(a *act, now stateMap) {
	target := s.anybody()
	a.typ, a.key = spec.MRoomMember, ptr(string(target))
	switch m := s.content(now, spec.MRoomMember, string(target)).Get("membership").Str; {
	case m == "join" || m == "ban":
		a.content["membership"] = []string{"leave", "ban"}[s.rnd.IntN(2)]
	default:
		a.content["membership"] = []string{"invite", "invite", "ban"}[s.rnd.IntN(3)]
	}
}

// levels: somebody gives or takes power, or asks for too much of it.
func (s *story) levels(a *act, now stateMap) {
	a.typ, a.content = spec.MRoomPowerLevels, map[string]any{}
	if c := s.content(now, spec.MRoomPowerLevels, ""); c.Exists() {
		if err := json.Unmarshal([]byte(c.Raw), &a.content); err != nil {
			s.err = err
		}
	}
	users, _ := a.content["users"].(map[string]any)
	if users == nil {
		users = map[string]any{}
		a.content["users"] = users
	}
	u := string(s.anybody())
	level := []int{0, 10, 40, 50, 50, 60, 100}[s.rnd.IntN(7)]
	switch s.rnd.IntN(8) {
	case 0:
		a.content[[]string{"ban", "kick", "invite", "redact", "state_default", "events_default", "users_default"}[s.rnd.IntN(7)]] = level / 2
	case 1:
		a.content["events"] = map[string]any{"m.room.topic": level, "test.state": s.rnd.IntN(60)}
	case 2:
		a.content["notifications"] = map[string]any{"room": level}
	case 3:
		delete(users, u)
	default:
		users[u] = level
	}
	a.content["n"] = s.n
}

func (s *story) joinRules(a *act) {
	a.typ = spec.MRoomJoinRules
	rule := []string{"public", "public", "invite", "knock", "restricted", "knock_restricted"}[s.rnd.IntN(6)]
	a.content["join_rule"] = rule
	if strings.Contains(rule, "restricted") {
		a.content["allow"] = []map[string]any{{"type": "m.room_membership", "room_id": "!other:s0.test"}}
	}
}

// keptInvitation waits for whoever proves an address.
func (s *story) keptInvitation(a *act) {
	s.tokens++
	a.typ, a.key = spec.MRoomThirdPartyInvite, ptr(fmt.Sprint("t", s.rnd.IntN(3)))
	public := base64.RawStdEncoding.EncodeToString(publicOf("id.test"))
	a.content = map[string]any{"display_name": "x", "public_key": public, "key_validity_url": "https://id.test/valid", "public_keys": []map[string]any{{"public_key": public}}, "n": s.n}
}

// invitationByToken is one that an identity server has vouched for, or not.
func (s *story) invitationByToken(a *act, now stateMap) {
	target := s.anybody()
	a.typ, a.key = spec.MRoomMember, ptr(string(target))
	token := fmt.Sprint("t", s.rnd.IntN(3))
	if e := s.events[now[state.Key{Type: spec.MRoomThirdPartyInvite, StateKey: token}]]; e != nil && s.rnd.IntN(4) > 0 {
		for _, t := range s.servers { // the one who made it
			if slices.Contains(t.users, e.Sender) && t.Server == a.sender.Server() {
				a.sender = e.Sender
			}
		}
	}
	signed, err := json.Marshal(map[string]any{"mxid": target, "token": token})
	if err != nil {
		s.err = err
		return
	}
	by := signerOf("id.test")
	if signed, err = gomatrixserverlib.SignJSON("id.test", "ed25519:1", by.Key, signed); err != nil {
		s.err = err
		return
	}
	a.content["membership"] = "invite"
	a.content["third_party_invite"] = map[string]any{"display_name": "x", "signed": json.RawMessage(signed)}
}
