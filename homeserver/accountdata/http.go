package accountdata

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// maxContent is the largest value that a client may store, in bytes.
const maxContent = 512 << 10

// maxType is the longest type of account data, in bytes, and the longest tag.
const maxType = 255

// Reader gives the value of a type that is not stored here, such as push rules that a user has never changed.
// It returns M_NOT_FOUND when there is none.
type Reader func(ctx context.Context, user matrix.UserID) (json.RawMessage, error)

// Routes are the endpoints. readers are asked for global values that are not stored; it may be nil.
func (d *Data) Routes(readers map[string]Reader) []httpapi.Route {
	h := handlers{d, readers}
	const (
		v3       = "/_matrix/client/v3"
		unstable = "/_matrix/client/unstable/org.matrix.msc3391"

		user = v3 + "/user/{userId}"
		room = user + "/rooms/{roomId}"
	)
	return []httpapi.Route{
		{Method: http.MethodPut, Path: user + "/account_data/{type}", Auth: httpapi.AuthUser, MaxBody: maxContent, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: h.put},
		{Method: http.MethodGet, Path: user + "/account_data/{type}", Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Handler: h.get},
		{Method: http.MethodPut, Path: room + "/account_data/{type}", Auth: httpapi.AuthUser, MaxBody: maxContent, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: h.putRoom},
		{Method: http.MethodGet, Path: room + "/account_data/{type}", Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Handler: h.getRoom},
		{Method: http.MethodDelete, Path: unstable + user[len(v3):] + "/account_data/{type}", Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: h.delete},
		{Method: http.MethodDelete, Path: unstable + room[len(v3):] + "/account_data/{type}", Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: h.deleteRoom},
		{Method: http.MethodGet, Path: room + "/tags", Auth: httpapi.AuthUser, AllowSuspended: true, Handler: h.tags},
		{Method: http.MethodPut, Path: room + "/tags/{tag}", Auth: httpapi.AuthUser, MaxBody: 64 << 10, RateLimit: true, AllowSuspended: true, Handler: h.putTag},
		{Method: http.MethodDelete, Path: room + "/tags/{tag}", Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, Handler: h.deleteTag},
		{Method: http.MethodPost, Path: user + "/filter", Auth: httpapi.AuthUser, MaxBody: 256 << 10, AllowSuspended: true, AllowGuest: true, Handler: h.defineFilter},
		{Method: http.MethodGet, Path: user + "/filter/{filterId}", Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Handler: h.filter},
	}
}

type handlers struct {
	d       *Data
	readers map[string]Reader
}

// own returns the user of the path, who must be the caller.
func own(c *httpapi.Call) (matrix.UserID, error) {
	user := matrix.UserID(c.Var("userId"))
	if user != c.Caller.User {
		return "", matrix.Forbidden("this belongs to another user")
	}
	return user, nil
}

func ownInRoom(c *httpapi.Call) (matrix.UserID, matrix.RoomID, error) {
	user, err := own(c)
	if err != nil {
		return "", "", err
	}
	room, err := c.RoomVar("roomId")
	if err == nil && !utf8.ValidString(string(room)) {
		err = matrix.InvalidParam("the room ID is not valid UTF-8")
	}
	return user, room, err
}

// typeVar is the type of the path, in a form that every database can hold.
func typeVar(c *httpapi.Call) (string, error) {
	typ := c.Var("type")
	if !utf8.ValidString(typ) || strings.IndexByte(typ, 0) >= 0 {
		return "", matrix.InvalidParam("the type is not valid text")
	}
	return typ, nil
}

// settable checks a type that a client wants to write.
//
// Spec: client-server-api#client-config
func settable(typ string) error {
	switch {
	case typ == TypeFullyRead || typ == TypePushRules:
		return matrix.NewError(http.StatusMethodNotAllowed, "M_BAD_JSON", "cannot set %s through this API", typ)
	case len(typ) > maxType:
		return matrix.InvalidParam("the type is longer than %d bytes", maxType)
	}
	return nil
}

func (h handlers) put(c *httpapi.Call) (any, error) {
	user, err := own(c)
	if err != nil {
		return nil, err
	}
	return h.store(c, user, "")
}

func (h handlers) putRoom(c *httpapi.Call) (any, error) {
	user, room, err := ownInRoom(c)
	if err != nil {
		return nil, err
	}
	return h.store(c, user, room)
}

func (h handlers) store(c *httpapi.Call, user matrix.UserID, room matrix.RoomID) (any, error) {
	typ, err := typeVar(c)
	if err != nil {
		return nil, err
	}
	if err := settable(typ); err != nil {
		return nil, err
	}
	content, err := c.RawBody()
	if err != nil {
		return nil, err
	}
	return nil, h.d.Put(c.Ctx(), user, room, typ, content)
}

func (h handlers) delete(c *httpapi.Call) (any, error) {
	user, err := own(c)
	if err != nil {
		return nil, err
	}
	return h.drop(c, user, "")
}

func (h handlers) deleteRoom(c *httpapi.Call) (any, error) {
	user, room, err := ownInRoom(c)
	if err != nil {
		return nil, err
	}
	return h.drop(c, user, room)
}

func (h handlers) drop(c *httpapi.Call, user matrix.UserID, room matrix.RoomID) (any, error) {
	typ, err := typeVar(c)
	if err != nil {
		return nil, err
	}
	if err := settable(typ); err != nil {
		return nil, err
	}
	return nil, h.d.Delete(c.Ctx(), user, room, typ)
}

func (h handlers) get(c *httpapi.Call) (any, error) {
	user, err := own(c)
	if err != nil {
		return nil, err
	}
	typ, err := typeVar(c)
	if err != nil {
		return nil, err
	}
	content, err := h.d.Get(c.Ctx(), user, "", typ)
	if read := h.readers[typ]; read != nil && matrix.IsCode(err, "M_NOT_FOUND") {
		return read(c.Ctx(), user)
	}
	return content, err
}

func (h handlers) getRoom(c *httpapi.Call) (any, error) {
	user, room, err := ownInRoom(c)
	if err != nil {
		return nil, err
	}
	typ, err := typeVar(c)
	if err != nil {
		return nil, err
	}
	return h.d.Get(c.Ctx(), user, room, typ)
}

// tagContent is the content of m.tag.
type tagContent struct {
	Tags map[string]json.RawMessage `json:"tags"`
}

// parseTags is lenient: clients can write m.tag as account data, too.
func parseTags(content []byte) tagContent {
	var t tagContent
	if json.Unmarshal(content, &t) != nil || t.Tags == nil {
		return tagContent{Tags: map[string]json.RawMessage{}}
	}
	return t
}

func (h handlers) tags(c *httpapi.Call) (any, error) {
	user, room, err := ownInRoom(c)
	if err != nil {
		return nil, err
	}
	content, err := h.d.Get(c.Ctx(), user, room, TypeTag)
	if err != nil && !matrix.IsCode(err, "M_NOT_FOUND") {
		return nil, err
	}
	return parseTags(content), nil
}

func (h handlers) putTag(c *httpapi.Call) (any, error) {
	user, room, err := ownInRoom(c)
	if err != nil {
		return nil, err
	}
	tag := c.Var("tag")
	if len(tag) > maxType {
		return nil, matrix.InvalidParam("the tag is longer than %d bytes", maxType)
	}
	body, err := c.RawBody()
	if err != nil {
		return nil, err
	}
	var order struct {
		Order *float64 `json:"order"`
	}
	if err := httpapi.Decode(body, &order); err != nil {
		return nil, err
	}
	if order.Order != nil && (*order.Order < 0 || *order.Order > 1) {
		return nil, matrix.InvalidParam("order must be between 0 and 1")
	}
	return nil, h.d.changeTags(c.Ctx(), user, room, func(tags map[string]json.RawMessage) { tags[tag] = body })
}

func (h handlers) deleteTag(c *httpapi.Call) (any, error) {
	user, room, err := ownInRoom(c)
	if err != nil {
		return nil, err
	}
	tag := c.Var("tag")
	content, err := h.d.Get(c.Ctx(), user, room, TypeTag)
	if err != nil && !matrix.IsCode(err, "M_NOT_FOUND") {
		return nil, err
	}
	if _, ok := parseTags(content).Tags[tag]; !ok {
		return nil, nil // nothing to tell anybody
	}
	return nil, h.d.changeTags(c.Ctx(), user, room, func(tags map[string]json.RawMessage) { delete(tags, tag) })
}

// changeTags changes the tags of a room; changes at the same time add up.
func (d *Data) changeTags(ctx context.Context, user matrix.UserID, room matrix.RoomID, change func(tags map[string]json.RawMessage)) error {
	return d.Update(ctx, user, room, TypeTag, func(old json.RawMessage) (json.RawMessage, error) {
		content := parseTags(old)
		change(content.Tags)
		return json.Marshal(content)
	})
}

func (h handlers) defineFilter(c *httpapi.Call) (any, error) {
	user, err := own(c)
	if err != nil {
		return nil, err
	}
	definition, err := c.RawBody()
	if err != nil {
		return nil, err
	}
	id, err := h.d.DefineFilter(c.Ctx(), user, definition)
	if err != nil {
		return nil, err
	}
	return struct {
		ID string `json:"filter_id"`
	}{id}, nil
}

func (h handlers) filter(c *httpapi.Call) (any, error) {
	user, err := own(c)
	if err != nil {
		return nil, err
	}
	return h.d.FilterDefinition(c.Ctx(), user, c.Var("filterId"))
}
