package push

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

type anyRoom struct{}

func (anyRoom) MemberCount() int                             { return 2 }
func (anyRoom) DisplayName(matrix.UserID) string             { return "Alice (*?\\E" }
func (anyRoom) MayNotify(matrix.UserID, string) bool         { return true }
func (anyRoom) Follows(*Subject, matrix.UserID) (bool, bool) { return true, false }

// FuzzCondition evaluates conditions that people wrote on events that others sent.
func FuzzCondition(f *testing.F) {
	const event = `{"type":"m.room.message","content":{"body":"hello Alice","a.b":{"c\\.d":[1,null,"x"]},"m.mentions":{"user_ids":["@alice:a.example"]}}}`
	for _, c := range []string{
		`{"kind":"event_match","key":"content.body","pattern":"al?c*"}`, `{"kind":"event_match","key":"content.a\\.b.c\\\\\\.d","pattern":""}`,
		`{"kind":"event_property_is","key":"content.n","value":1}`, `{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"@alice:a.example"}`,
		`{"kind":"room_member_count","is":">=2"}`, `{"kind":"room_member_count","is":"=="}`, `{"kind":"contains_display_name"}`, `{"kind":"sender_notification_permission","key":"room"}`,
		`{"kind":"thread_subscription","subscribed":true}`, `{"kind":1}`, `[]`,
	} {
		f.Add([]byte(c), []byte(event))
	}
	f.Fuzz(func(t *testing.T, raw, event []byte) {
		if len(raw) > 1<<16 || len(event) > 1<<16 {
			return
		}
		begin := time.Now()
		c := compileCondition(raw)
		key := ""
		holds := c(NewSubject("!a:a.example", "@bob:a.example", "m.room.message", &key, event), "@alice:a.example", anyRoom{})
		if again := c(NewSubject("!a:a.example", "@bob:a.example", "m.room.message", &key, event), "@alice:a.example", anyRoom{}); holds != again {
			t.Errorf("%q holds for %q once and not again", raw, event)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%q takes %s", raw, took)
		}
	})
}

// FuzzRule reads rules that people write.
func FuzzRule(f *testing.F) {
	for _, s := range []string{
		`{"actions":["notify",{"set_tweak":"sound","value":"default"}],"pattern":"al?c*"}`, `{"actions":["dont_notify"],"conditions":[{"kind":"event_match","key":"type","pattern":"m.*"}]}`,
		`{"actions":[],"conditions":[]}`, `{"actions":[{"set_tweak":3},null]}`, `{"actions":null,"conditions":[{"kind":null}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var b struct {
			Actions    *[]json.RawMessage `json:"actions"`
			Conditions []json.RawMessage  `json:"conditions"`
		}
		if httpapi.Decode(raw, &b) != nil {
			return
		}
		actions, err := checkActions(b.Actions)
		if err == nil {
			for _, a := range actions {
				if !json.Valid(a) {
					t.Errorf("an action of %s is %s", raw, a)
				}
			}
		}
		if checkConditions(b.Conditions) == nil {
			for _, c := range b.Conditions {
				compileCondition(c)
			}
		}
	})
}
