package schemas_test

import (
	"testing"

	"github.com/carillon-chat/carillon/appservice/schemas"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

func TestValidate(t *testing.T) {
	s, err := schemas.Load()
	if err != nil {
		t.Fatal(err)
	}
	const who = `{"user_id":"@a:c","person_id":"1","name":"张"}`
	for _, c := range []struct {
		typ, content string
		code         string
	}{
		{"im.carillon.ding.confirm", `{"ding_id":"d"}`, ""},
		{"im.carillon.ding.confirm", `{"ding_id":""}`, "M_BAD_JSON"},
		{"im.carillon.ding.confirm", `{}`, "M_BAD_JSON"},
		{"im.carillon.ding.confirm", `[]`, "M_BAD_JSON"},
		{"im.carillon.ding.confirm", `{`, "M_NOT_JSON"},
		{"im.carillon.ding.confirm", `{"ding_id":"d","via":"telepathy"}`, "M_BAD_JSON"},
		{"im.carillon.ding", `{"ding_id":"d","kind":"text","need":"confirm","body":"x","sent_at":1,"expires_at":2,"sender":` + who + `,"receiver":` + who + `}`, ""},
		{"im.carillon.ding", `{"ding_id":"d","kind":"text","need":"confirm","body":"x","sent_at":1,"expires_at":2,"sender":` + who + `}`, "M_BAD_JSON"},
		{"im.carillon.ding", `{"ding_id":"d","kind":"text","need":"confirm","body":"x","sent_at":1.5,"expires_at":2,"sender":` + who + `,"total":1}`, "M_BAD_JSON"},
		{"im.carillon.ding.request", `{"receivers":{"everybody":true},"body":"x"}`, ""},
		{"im.carillon.ding.request", `{"receivers":{},"body":"x"}`, "M_BAD_JSON"},
		{"im.carillon.ding.request", `{"receivers":{"persons":["1"]},"boby":"x"}`, "M_BAD_JSON"},
		{"im.carillon.ding.request", `{"receivers":{"persons":[1]}}`, "M_BAD_JSON"},
		{"im.carillon.ding.request", `{"receivers":{"unread_of":{"room_id":"!r","event_id":"e"}}}`, "M_BAD_JSON"},
	} {
		err := s.Validate(c.typ, []byte(c.content))
		if c.code == "" && err != nil || c.code != "" && !matrix.IsCode(err, c.code) {
			t.Errorf("%s %s: %v, want %s", c.typ, c.content, err, c.code)
		}
	}
	if err := s.Validate("im.carillon.none", []byte(`{}`)); err == nil {
		t.Error("a type without schema")
	}
	for _, typ := range s.Types() {
		if len(s.JSON(typ)) == 0 {
			t.Errorf("%s has no text", typ)
		}
	}
	if s.JSON("../schemas.go") != nil {
		t.Error("read another file")
	}
}
