package hstest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// operation is one endpoint of the specification: a row of its table, and what its
// OpenAPI file says of the answers.
type operation struct {
	id, method, path, auth string
	rateLimited            bool
	query                  []string // its parameters; "!" behind those that are needed
	responses              map[int]response
	request                *jsonschema.Schema // nil: not told
}

type response struct {
	types  []string // content types other than JSON
	schema *jsonschema.Schema
}

// apiSpec is an API of the specification.
type apiSpec struct {
	ops   []*operation // in the order of the table
	byID  map[string]*operation
	error *jsonschema.Schema
	edus  map[string]*jsonschema.Schema // by type
}

// quirks are places where the OpenAPI files of v1.19 contradict themselves or the
// text. Each is one replacement in the data.
var quirks = []quirk{
	{
		"getAuthMetadata: the actions are those that the specification defines; clients of today look for the names of before v1.18 as well",
		`"enum":["org.matrix.profile","org.matrix.devices_list","org.matrix.device_view","org.matrix.device_delete","org.matrix.account_deactivate","org.matrix.cross_signing_reset"]`,
		`"pattern":"^org\\.matrix\\."`,
	},
	{
		"getRoomStateWithKey: with format=event the answer is an object and a state event, which oneOf forbids",
		`{"oneOf":[{"type":"object"},{"$ref":"#/$defs/state_event"}]}`, `{"anyOf":[{"type":"object"},{"$ref":"#/$defs/state_event"}]}`,
	},
	{
		"getJoinedMembersByRoom: Complement and all servers have null where there is no name or picture",
		`{"type":"object","properties":{"display_name":{"type":"string"},"avatar_url":{"type":"string","format":"uri"}}}},"type":"object"}}}},"403":{}}}`,
		`{"type":"object","properties":{"display_name":{"type":["string","null"]},"avatar_url":{"type":["string","null"],"format":"uri"}}}},"type":"object"}}}},"403":{}}}`,
	},
}

// loadSpec is the client-server API.
func loadSpec(t testing.TB) *apiSpec { return readSpec(t, "client-server", "responses.json", quirks) }

// quirk is a replacement in the data of the specification.
type quirk struct{ why, old, new string }

// readSpec reads testdata/spec; see the NOTICE there.
func readSpec(t testing.TB, api, name string, quirks []quirk) *apiSpec {
	t.Helper()
	table, err := os.ReadFile("testdata/spec/endpoints.tsv")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("testdata/spec/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range quirks {
		if !bytes.Contains(data, []byte(q.old)) {
			t.Fatalf("the quirk is gone: %s", q.why)
		}
		data = bytes.ReplaceAll(data, []byte(q.old), []byte(q.new))
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	formats(c)
	if err := c.AddResource("spec.json", doc); err != nil {
		t.Fatal(err)
	}
	s := &apiSpec{byID: map[string]*operation{}, edus: map[string]*jsonschema.Schema{}, error: c.MustCompile("spec.json#/$defs/error")}
	for line := range strings.Lines(string(table)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if f[0] != api {
			continue
		}
		op := &operation{method: f[1], path: f[2], id: f[3], auth: f[4], rateLimited: f[5] == "yes", responses: map[int]response{}}
		s.ops = append(s.ops, op)
		s.byID[op.id] = op
	}
	var file struct {
		EDUs       map[string]json.RawMessage `json:"edus"`
		Operations []struct {
			ID        string          `json:"id"`
			Query     []string        `json:"query"`
			Request   json.RawMessage `json:"request"`
			Responses map[string]struct {
				Types  []string        `json:"types"`
				Schema json.RawMessage `json:"schema"`
			} `json:"responses"`
		} `json:"operations"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	for name := range file.EDUs {
		s.edus[name] = c.MustCompile("spec.json#/edus/" + name)
	}
	for i, o := range file.Operations {
		s.byID[o.ID].query = o.Query
		if o.Request != nil {
			s.byID[o.ID].request = c.MustCompile(fmt.Sprintf("spec.json#/operations/%d/request", i))
		}
		for code, r := range o.Responses {
			status, err := strconv.Atoi(code)
			if err != nil {
				t.Fatal(err)
			}
			e := response{types: r.Types}
			if r.Schema != nil {
				e.schema = c.MustCompile(fmt.Sprintf("spec.json#/operations/%d/responses/%s/schema", i, code))
			}
			s.byID[o.ID].responses[status] = e
		}
	}
	return s
}

// formats are those of the specification's string-formats.yaml.
func formats(c *jsonschema.Compiler) {
	check := func(name string, ok func(string) bool) {
		c.RegisterFormat(&jsonschema.Format{Name: name, Validate: func(v any) error {
			if s, is := v.(string); is && !ok(s) {
				return errors.New("is no " + name)
			}
			return nil
		}})
	}
	parses := func(err error) bool { return err == nil }
	check("mx-user-id", func(s string) bool { _, err := matrix.ParseUserID(s); return parses(err) })
	check("mx-room-id", func(s string) bool { _, err := matrix.ParseRoomID(s); return parses(err) })
	check("mx-room-alias", func(s string) bool { _, err := matrix.ParseRoomAlias(s); return parses(err) })
	check("mx-event-id", func(s string) bool { _, err := matrix.ParseEventID(s); return parses(err) })
	check("mx-server-name", matrix.ValidServerName)
	check("mx-mxc-uri", regexp.MustCompile(`^mxc://[^/]+/[A-Za-z0-9_-]+$`).MatchString)
	c.AssertFormat()
}

// url is the operation's path with its variables filled in.
func (o *operation) url(vars []string) (string, error) {
	path := o.path
	for _, v := range vars {
		from, to := strings.IndexByte(path, '{'), strings.IndexByte(path, '}')
		if from < 0 {
			return "", fmt.Errorf("%s has no variable for %q", o.id, v)
		}
		path = path[:from] + strings.ReplaceAll(hstest.Path(v)[len(hstest.V3)+1:], "%2F", "%2f") + path[to+1:]
	}
	if strings.Contains(path, "{") {
		return "", fmt.Errorf("%s needs more variables than %d", o.id, len(vars))
	}
	return path, nil
}

// check compares an answer with the specification; nil when it is as it should be.
func (s *apiSpec) check(o *operation, a hstest.Answer) error {
	r, listed := o.responses[a.Status]
	if a.Status < 400 {
		switch {
		case !listed:
			return fmt.Errorf("the status %d is not in the specification", a.Status)
		case len(r.types) > 0:
			return nil // a file
		case r.schema == nil:
			return nil // a redirect
		}
	}
	if strings.HasPrefix(o.id, "redirectTo") && strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
		return nil // people come here with a browser: they get a page
	}
	if t := a.Header.Get("Content-Type"); t != "application/json" {
		return fmt.Errorf("the content type is %q", t)
	}
	schema := r.schema
	if a.Status >= 400 {
		code := a.Code()
		challenge := a.Status == http.StatusUnauthorized && a.Get("flows").Exists()
		if code == "" && !challenge {
			return errors.New("there is no errcode")
		}
		if code != "" && !strings.HasPrefix(code, "M_") {
			return fmt.Errorf("the errcode is %q", code)
		}
		if schema == nil || a.Status == http.StatusUnauthorized && !challenge {
			schema = s.error
		}
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.Body))
	if err != nil {
		return fmt.Errorf("the body is no JSON: %w", err)
	}
	return schema.Validate(v)
}
