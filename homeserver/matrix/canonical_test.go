package matrix_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

func TestCanonicalJSON(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{}`, `{}`},
		{`{"one": 1, "two": "Two"}`, `{"one":1,"two":"Two"}`},
		{`{"b": "2", "a": "1"}`, `{"a":"1","b":"2"}`},
		{`{"本": 2, "日": 1}`, `{"日":1,"本":2}`},
		{`{"a": "\u65E5"}`, `{"a":"日"}`},
		{`{"a": null, "b": -0}`, `{"a":null,"b":0}`},
		{`{"q\"x":1,"\\":2,"\u0001":3,"\/":4}`, `{"\u0001":3,"/":4,"\\":2,"q\"x":1}`},
		{`{"a":1,"a":2}`, `{"a":2}`},
		{`[ [ ] , "\t" , true ]`, `[[],"\t",true]`},
	} {
		got, err := matrix.CanonicalJSON([]byte(c.in), true)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v; want %s", c.in, got, err, c.want)
		}
	}
	for _, bad := range []string{`{"a":1.5}`, `{"a":9007199254740992}`, `{"a":1e3}`, `{`, "{\"a\":\"\xff\"}"} {
		if got, err := matrix.CanonicalJSON([]byte(bad), true); err == nil {
			t.Errorf("%s was taken: %s", bad, got)
		}
	}
	if got, err := matrix.CanonicalJSON([]byte(`{"b":1.5,"a":1e2}`), false); err != nil || string(got) != `{"a":100,"b":1.5}` {
		t.Errorf("loose: %s, %v", got, err)
	}
}

func TestCanonicalObject(t *testing.T) {
	got, err := matrix.CanonicalObject([]byte(`{"z":1,"signatures":{},"a":{"signatures":2},"\u0073ignatures":3,"unsigned":4}`), true, "signatures", "unsigned")
	if err != nil || string(got) != `{"a":{"signatures":2},"z":1}` {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{`[]`, `1`, `{`, `{"a":0.5}`, "{\"a\":\"\xff\"}"} {
		if got, err := matrix.CanonicalObject([]byte(bad), true); err == nil {
			t.Errorf("%s was taken: %s", bad, got)
		}
	}
}

func FuzzCanonicalJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,{"b":"c\"d"}]}`, `"\ud800"`, `{"\u0000":""}`, `-0`, `[[[[]]]]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := matrix.CanonicalJSON(in, false)
		if err != nil {
			return
		}
		var a, b any
		if json.Unmarshal(in, &a) != nil {
			return // stricter than we are about lone surrogates and depth
		}
		if err := json.Unmarshal(out, &b); err != nil {
			t.Fatalf("%q became %q: %v", in, out, err)
		}
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%q became %q", in, out)
		}
		again, err := matrix.CanonicalJSON(out, false)
		if err != nil || string(again) != string(out) {
			t.Fatalf("not stable: %q, %q, %v", out, again, err)
		}
	})
}
