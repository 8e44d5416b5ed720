package directory

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Publish lists a room in the caller's transaction.
func (d *Directory) Publish(tx *sqldb.Tx, room matrix.RoomID) error {
	d.list.publishing(room)
	_, err := tx.Exec(qPublish, "", string(room), matrix.Millis(d.opts.Now()))
	return err
}

// Published reports whether a room is in the server's own list.
func (d *Directory) Published(ctx context.Context, room matrix.RoomID) (bool, error) {
	var id matrix.RoomID
	err := d.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qIsPublished, "", string(room)).Scan(&id) })
	if errors.Is(err, sqldb.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading published rooms: %w", err)
	}
	return true, nil
}

// SetPublished lists a room or takes it off the list of a network.
func (d *Directory) SetPublished(ctx context.Context, network string, room matrix.RoomID, on bool) error {
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		var err error
		if on {
			_, err = tx.Exec(qPublish, network, string(room), matrix.Millis(d.opts.Now()))
		} else {
			_, err = tx.Exec(qUnpublish, network, string(room))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("storing published rooms: %w", err)
	}
	d.list.changed()
	return nil
}

func visibility(c *httpapi.Call, def string) (public bool, err error) {
	var body struct {
		Visibility *string `json:"visibility"`
	}
	if err := c.Body(&body); err != nil {
		return false, err
	}
	if body.Visibility == nil {
		if def == "" {
			return false, matrix.MissingParam("visibility is needed")
		}
		body.Visibility = &def
	}
	switch *body.Visibility {
	case "public":
		return true, nil
	case "private":
		return false, nil
	}
	return false, matrix.InvalidParam("visibility must be public or private")
}

func (d *Directory) getVisibility(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	if _, err := d.rooms.Version(c.Ctx(), room); err != nil {
		return nil, err
	}
	on, err := d.Published(c.Ctx(), room)
	if err != nil {
		return nil, err
	}
	v := "private"
	if on {
		v = "public"
	}
	return map[string]string{"visibility": v}, nil
}

func (d *Directory) putVisibility(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	public, err := visibility(c, "public")
	if err != nil {
		return nil, err
	}
	if _, err := d.rooms.Version(c.Ctx(), room); err != nil {
		return nil, err
	}
	if !c.Caller.Admin {
		if err := d.mayName(c.Ctx(), room, c.Caller.User); err != nil {
			return nil, err
		}
	}
	return nil, d.SetPublished(c.Ctx(), "", room, public)
}

func (d *Directory) putServiceVisibility(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	public, err := visibility(c, "")
	if err != nil {
		return nil, err
	}
	if _, err := d.rooms.Version(c.Ctx(), room); err != nil {
		return nil, err
	}
	return nil, d.SetPublished(c.Ctx(), c.Caller.AppService+"|"+c.Var("networkId"), room, public)
}

// Query is what a list of published rooms is asked for.
type Query struct {
	Limit  int    `json:"limit"`
	Since  string `json:"since"`
	Filter struct {
		Term  string    `json:"generic_search_term"`
		Types []*string `json:"room_types"`
	} `json:"filter"`
	AllNetworks bool   `json:"include_all_networks"`
	Network     string `json:"third_party_instance_id"`
}

// Entry is a published room.
type Entry struct {
	Room          matrix.RoomID `json:"room_id"`
	Name          string        `json:"name,omitempty"`
	Topic         string        `json:"topic,omitempty"`
	Alias         string        `json:"canonical_alias,omitempty"`
	Avatar        string        `json:"avatar_url,omitempty"`
	Members       int           `json:"num_joined_members"`
	WorldReadable bool          `json:"world_readable"`
	GuestCanJoin  bool          `json:"guest_can_join"`
	JoinRule      string        `json:"join_rule,omitempty"`
	Type          string        `json:"room_type,omitempty"`
}

// List is a page of published rooms.
type List struct {
	Chunk []Entry `json:"chunk"`
	Next  string  `json:"next_batch,omitempty"`
	Prev  string  `json:"prev_batch,omitempty"`
	Total int     `json:"total_room_count_estimate"`
}

// Bounds of a page.
const (
	defaultPage = 100
	largestPage = 500
)

// PublicRooms answers a query from the rooms of this server, the largest first.
func (d *Directory) PublicRooms(ctx context.Context, q Query) (*List, error) {
	offset := 0
	if q.Since != "" {
		n, err := strconv.Atoi(strings.TrimPrefix(q.Since, "p"))
		if err != nil || n < 0 || q.Since[0] != 'p' {
			return nil, matrix.InvalidParam("since is not a token of this endpoint")
		}
		offset = n
	}
	switch {
	case q.Limit < 0:
		return nil, matrix.InvalidParam("limit must not be negative")
	case q.Limit == 0:
		q.Limit = defaultPage
	}
	q.Limit = min(q.Limit, largestPage)
	chunk, total, err := d.page(ctx, q, offset)
	if err != nil {
		return nil, err
	}
	page := &List{Chunk: chunk, Total: total}
	if end := offset + len(chunk); len(chunk) > 0 && end < total {
		page.Next = "p" + strconv.Itoa(end)
	}
	if offset > 0 {
		page.Prev = "p" + strconv.Itoa(max(offset-q.Limit, 0))
	}
	return page, nil
}

// Describe reads what the list shows of a room; M_NOT_FOUND if it is not known here.
func (d *Directory) Describe(ctx context.Context, room matrix.RoomID) (Entry, error) {
	summary, err := d.rooms.Summary(ctx, room)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Room: room, Members: summary.Joined, JoinRule: "invite"}
	for _, f := range []struct {
		typ string
		set func(content []byte)
	}{
		{"m.room.name", func(c []byte) { e.Name = gjson.GetBytes(c, "name").String() }},
		{"m.room.topic", func(c []byte) { e.Topic = plainTopic(c) }},
		{canonicalAlias, func(c []byte) { e.Alias = gjson.GetBytes(c, "alias").String() }},
		{"m.room.avatar", func(c []byte) { e.Avatar = gjson.GetBytes(c, "url").String() }},
		{"m.room.history_visibility", func(c []byte) {
			e.WorldReadable = gjson.GetBytes(c, "history_visibility").String() == "world_readable"
		}},
		{"m.room.guest_access", func(c []byte) { e.GuestCanJoin = gjson.GetBytes(c, "guest_access").String() == "can_join" }},
		{"m.room.join_rules", func(c []byte) { e.JoinRule = cmp.Or(gjson.GetBytes(c, "join_rule").String(), e.JoinRule) }},
		{"m.room.create", func(c []byte) { e.Type = gjson.GetBytes(c, "type").String() }},
	} {
		ev, err := d.rooms.State(ctx, room, f.typ, "")
		if err != nil {
			return Entry{}, err
		}
		if ev != nil {
			f.set(ev.Content())
		}
	}
	return e, nil
}

// plainTopic is the text of a topic: its text/plain form, or the old field.
//
// Spec: client-server-api#mroomtopic
func plainTopic(content []byte) string {
	for _, part := range gjson.GetBytes(content, `m\.topic.m\.text`).Array() {
		if m := part.Get("mimetype"); !m.Exists() || m.String() == "text/plain" {
			return part.Get("body").String()
		}
	}
	return gjson.GetBytes(content, "topic").String()
}

func (d *Directory) getPublicRooms(c *httpapi.Call) (any, error) {
	limit, err := c.QueryInt("limit", 0, 0, largestPage)
	if err != nil {
		return nil, err
	}
	return d.publicRooms(c, Query{Limit: limit, Since: c.Query("since")})
}

func (d *Directory) postPublicRooms(c *httpapi.Call) (any, error) {
	var q Query
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	if q.AllNetworks && q.Network != "" {
		return nil, matrix.InvalidParam("third_party_instance_id does not go with include_all_networks")
	}
	return d.publicRooms(c, q)
}

func (d *Directory) publicRooms(c *httpapi.Call, q Query) (any, error) {
	if d.opts.RequireAuth && c.Caller == nil {
		return nil, matrix.MissingToken()
	}
	server := matrix.ServerName(c.Query("server"))
	if server == "" || server == d.opts.Server {
		return d.PublicRooms(c.Ctx(), q)
	}
	if !matrix.ValidServerName(string(server)) {
		return nil, matrix.InvalidParam("server is not a server name")
	}
	if c.Caller == nil { // or the server could be used to reach others
		return nil, matrix.MissingToken()
	}
	if d.opts.Remote == nil {
		return nil, matrix.NewError(http.StatusNotFound, "M_NOT_FOUND", "this server does not reach %s", server)
	}
	body, err := json.Marshal(remoteQuery(q))
	if err != nil {
		return nil, fmt.Errorf("encoding query: %w", err)
	}
	return d.opts.Remote.PublicRooms(c.Ctx(), server, body)
}

// remoteQuery leaves out what was not asked for.
func remoteQuery(q Query) map[string]any {
	m := map[string]any{}
	if q.Limit > 0 {
		m["limit"] = q.Limit
	}
	if q.Since != "" {
		m["since"] = q.Since
	}
	filter := map[string]any{}
	if q.Filter.Term != "" {
		filter["generic_search_term"] = q.Filter.Term
	}
	if q.Filter.Types != nil {
		filter["room_types"] = q.Filter.Types
	}
	if len(filter) > 0 {
		m["filter"] = filter
	}
	if q.AllNetworks {
		m["include_all_networks"] = true
	}
	if q.Network != "" {
		m["third_party_instance_id"] = q.Network
	}
	return m
}
