package directory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const canonicalAlias = "m.room.canonical_alias"

// ClaimAlias makes an alias point to a room in the caller's transaction;
// M_ROOM_IN_USE when it is taken.
func (d *Directory) ClaimAlias(tx *sqldb.Tx, alias matrix.RoomAlias, room matrix.RoomID, creator matrix.UserID) error {
	n, err := tx.Exec(qSetAlias, string(alias), string(room), string(creator), matrix.Millis(d.opts.Now()))
	if err == nil && n == 0 {
		return matrix.NewError(http.StatusBadRequest, "M_ROOM_IN_USE", "room alias %s already exists", alias)
	}
	return err
}

// MoveAliases makes the aliases of a room point to the room that replaces it.
func (d *Directory) MoveAliases(tx *sqldb.Tx, from, to matrix.RoomID) error {
	_, err := tx.Exec(qMoveAliases, string(from), string(to))
	return err
}

// Local finds the room of an alias of this server.
func (d *Directory) Local(ctx context.Context, alias matrix.RoomAlias) (room matrix.RoomID, creator matrix.UserID, err error) {
	err = d.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qAlias, string(alias)).Scan(&room, &creator) })
	if errors.Is(err, sqldb.ErrNoRows) {
		return "", "", matrix.NotFound("Room alias %s not found.", alias)
	}
	if err != nil {
		return "", "", fmt.Errorf("reading alias: %w", err)
	}
	return room, creator, nil
}

// Resolve finds the room of any alias, and servers that know the room.
func (d *Directory) Resolve(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
	if alias.Server() != d.opts.Server {
		if d.opts.Remote == nil {
			return "", nil, matrix.NotFound("Room alias %s not found.", alias)
		}
		return d.opts.Remote.Alias(ctx, alias)
	}
	room, _, err := d.Local(ctx, alias)
	if matrix.IsCode(err, "M_NOT_FOUND") && d.opts.AskServices != nil {
		made, askErr := d.opts.AskServices(ctx, alias)
		if askErr != nil {
			return "", nil, askErr
		}
		if made {
			room, _, err = d.Local(ctx, alias)
		}
	}
	if err != nil {
		return "", nil, err
	}
	servers := []matrix.ServerName{d.opts.Server}
	for _, s := range d.hub.Servers(room) {
		if s != d.opts.Server {
			servers = append(servers, s)
		}
	}
	return room, servers, nil
}

// Aliases lists the aliases that this server has for a room.
func (d *Directory) Aliases(ctx context.Context, room matrix.RoomID) (list []matrix.RoomAlias, err error) {
	err = d.db.Read(ctx, func(tx *sqldb.Tx) error {
		list, err = sqldb.Select(tx, func(r *sqldb.Rows) (a matrix.RoomAlias, err error) {
			err = r.Scan(&a)
			return a, err
		}, qAliasesOf, string(room))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading aliases: %w", err)
	}
	return list, nil
}

func (d *Directory) getAlias(c *httpapi.Call) (any, error) {
	alias, err := matrix.ParseRoomAlias(c.Var("roomAlias"))
	if err != nil {
		return nil, matrix.InvalidParam("Room alias invalid")
	}
	room, servers, err := d.Resolve(c.Ctx(), alias)
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": room, "servers": servers}, nil
}

func (d *Directory) putAlias(c *httpapi.Call) (any, error) {
	alias, err := matrix.ParseRoomAlias(c.Var("roomAlias"))
	if err != nil {
		return nil, matrix.InvalidParam("Room alias invalid")
	}
	var body struct {
		Room *string `json:"room_id"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Room == nil {
		return nil, matrix.MissingParam("room_id is needed")
	}
	room, err := matrix.ParseRoomID(*body.Room)
	if err != nil {
		return nil, err
	}
	if alias.Server() != d.opts.Server {
		return nil, matrix.InvalidParam("aliases can be made on this server (%s) alone", d.opts.Server)
	}
	if err := d.namespace(c, alias); err != nil {
		return nil, err
	}
	if !c.Caller.Admin && c.Caller.AppService == "" && !d.hub.Joined(c.Caller.User, room) {
		return nil, matrix.Forbidden("you are not in room %s", room)
	}
	if _, err := d.rooms.Version(c.Ctx(), room); err != nil {
		return nil, err
	}
	err = d.db.Write(c.Ctx(), func(tx *sqldb.Tx) error { return d.ClaimAlias(tx, alias, room, c.Caller.User) })
	if matrix.IsCode(err, "M_ROOM_IN_USE") {
		return nil, matrix.NewError(http.StatusConflict, "M_UNKNOWN", "Room alias %s already exists.", alias)
	} else if err != nil {
		return nil, fmt.Errorf("storing alias: %w", err)
	}
	return nil, nil
}

// namespace guards the aliases that an application service has for itself.
func (d *Directory) namespace(c *httpapi.Call, alias matrix.RoomAlias) error {
	as := d.accounts.ExclusiveAlias(alias)
	if as != nil && as.ID != c.Caller.AppService {
		return matrix.NewError(http.StatusBadRequest, "M_EXCLUSIVE", "%s belongs to an application service", alias)
	}
	return nil
}

func (d *Directory) deleteAlias(c *httpapi.Call) (any, error) {
	alias, err := matrix.ParseRoomAlias(c.Var("roomAlias"))
	if err != nil {
		return nil, matrix.InvalidParam("Room alias invalid")
	}
	if alias.Server() != d.opts.Server {
		return nil, matrix.NotFound("Room alias %s not found.", alias)
	}
	room, creator, err := d.Local(c.Ctx(), alias)
	if err != nil {
		return nil, err
	}
	if err := d.namespace(c, alias); err != nil {
		return nil, err
	}
	user := c.Caller.User
	if creator != user && !c.Caller.Admin {
		if err := d.mayName(c.Ctx(), room, user); err != nil {
			return nil, err
		}
	}
	err = d.db.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qDropAlias, string(alias))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("removing alias: %w", err)
	}
	// The alias is gone, whether or not the user may tell the room.
	if err := d.tellRoom(c.Ctx(), room, user, alias); err != nil {
		var e *matrix.Error
		if !errors.As(err, &e) {
			return nil, err
		}
	}
	return nil, nil
}

// mayName says whether a user may set the canonical alias of a room.
func (d *Directory) mayName(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	if d.hub.Joined(user, room) {
		power, err := d.rooms.Power(ctx, room, user)
		if err != nil {
			return err
		}
		if power.May(canonicalAlias, true) {
			return nil
		}
	}
	return matrix.Forbidden("you may not change the directory entries of room %s", room)
}

// tellRoom takes a deleted alias out of the room's canonical alias event.
func (d *Directory) tellRoom(ctx context.Context, room matrix.RoomID, user matrix.UserID, alias matrix.RoomAlias) error {
	ev, err := d.rooms.State(ctx, room, canonicalAlias, "")
	if err != nil || ev == nil {
		return err
	}
	content := ev.Content()
	var c struct {
		Alias matrix.RoomAlias   `json:"alias"`
		Alt   []matrix.RoomAlias `json:"alt_aliases"`
	}
	if json.Unmarshal(content, &c) != nil || c.Alias != alias && !slices.Contains(c.Alt, alias) {
		return nil
	}
	if c.Alias == alias {
		if content, err = sjson.DeleteBytes(content, "alias"); err != nil {
			return fmt.Errorf("changing canonical alias: %w", err)
		}
	}
	if i := slices.Index(c.Alt, alias); i >= 0 {
		if content, err = sjson.SetBytes(content, "alt_aliases", slices.Delete(c.Alt, i, i+1)); err != nil {
			return fmt.Errorf("changing canonical alias: %w", err)
		}
	}
	key := ""
	_, err = d.rooms.Send(ctx, rooms.Draft{Room: room, Sender: user, Type: canonicalAlias, StateKey: &key, Content: content})
	return err
}

func (d *Directory) getAliases(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	if !c.Caller.Admin && !d.hub.Joined(c.Caller.User, room) {
		visible, err := d.rooms.State(c.Ctx(), room, "m.room.history_visibility", "")
		if err != nil && !matrix.IsCode(err, "M_NOT_FOUND") {
			return nil, err
		}
		if visible == nil || visible.ContentString("history_visibility") != "world_readable" {
			return nil, matrix.Forbidden("You are not a member of the room.")
		}
	}
	list, err := d.Aliases(c.Ctx(), room)
	if err != nil {
		return nil, err
	}
	if list == nil {
		list = []matrix.RoomAlias{}
	}
	return map[string]any{"aliases": list}, nil
}
