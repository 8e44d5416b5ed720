package ding

import (
	"encoding/json"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/sites"
)

// FuzzAbroad reads DINGs that another site may send: only those of its own people, for people of this one, are taken.
func FuzzAbroad(f *testing.F) {
	f.Add([]byte(`{"ding_id":"1a20dbe51e938c99119b92e","kind":"text","body":"来","sender":{"user_id":"@a:b.example","person_id":"1"},` +
		`"fired_at":1000,"expires_at":90000,"to":[{"person_id":"2","user_id":"@c:a.example"}]}`))
	f.Add([]byte(`{"ding_id":"ab/d/1","kind":"text","sender":{"user_id":"@a:a.example"}}`))
	from := sites.Site{Name: "b", ServerName: "b.example"}
	f.Fuzz(func(t *testing.T, body []byte) {
		var m abroad
		if json.Unmarshal(body, &m) != nil || m.check(from, "a.example") != nil {
			return
		}
		if id.UserID(m.Sender.User).Homeserver() != "b.example" || strings.Contains(m.Ding, "/") || m.Expires <= m.FiredAt {
			t.Errorf("taken: %+v", m)
		}
		for _, r := range m.To {
			if id.UserID(r.User).Homeserver() != "a.example" {
				t.Errorf("a receiver of another site: %+v", r)
			}
		}
	})
}
