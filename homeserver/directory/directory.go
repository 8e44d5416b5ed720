// Package directory finds rooms and people: room aliases, the list of published
// rooms, and the search for users.
//
// Tables: room_aliases (local ones), published_rooms.
//
// Spec: client-server-api#room-aliases, client-server-api#published-room-directory,
// client-server-api#user-directory
//
// Invariants: an alias of this server points to one room; what the list shows of
// a room is the room's current state: the log says which rooms have changed.
package directory

import (
	"context"
	"embed"
	"encoding/json"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Remote asks other servers.
type Remote interface {
	// Alias resolves an alias of another server; M_NOT_FOUND if it has none.
	Alias(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error)
	// PublicRooms reads another server's list of published rooms; query is the
	// body of the request, the answer is passed on.
	PublicRooms(ctx context.Context, server matrix.ServerName, query json.RawMessage) (json.RawMessage, error)
}

// Options are what may be set.
type Options struct {
	Server matrix.ServerName
	// Remote is nil on a server that does not federate.
	Remote Remote
	// AllUsers lets the user directory find every local user; without it those
	// alone who share a room with the asker or are in a public room.
	AllUsers bool
	// RequireAuth shows the list of published rooms to those alone who are
	// logged in.
	RequireAuth bool
	// AskServices lets application services create the room of an alias in their
	// namespaces that does not exist yet; it reports whether one did. May be nil.
	AskServices func(ctx context.Context, alias matrix.RoomAlias) (bool, error)
	// Log tells which rooms have changed; without it all published rooms are read
	// for each request.
	Log *stream.Log
	Now matrix.Now
}

// Directory is the module.
type Directory struct {
	db       *sqldb.DB
	accounts *accounts.Accounts
	profiles *profiles.Profiles
	rooms    *rooms.Rooms
	hub      *hub.Hub
	opts     Options
	people   peopleCache
	list     *listing
}

//go:embed schema
var schema embed.FS

const (
	qAlias       = `SELECT room_id, creator FROM room_aliases WHERE alias = $1`
	qAliasesOf   = `SELECT alias FROM room_aliases WHERE room_id = $1 ORDER BY ts, alias`
	qSetAlias    = `INSERT INTO room_aliases (alias, room_id, creator, ts) VALUES ($1, $2, $3, $4) ON CONFLICT (alias) DO NOTHING`
	qDropAlias   = `DELETE FROM room_aliases WHERE alias = $1`
	qMoveAliases = `UPDATE room_aliases SET room_id = $2 WHERE room_id = $1`
	qPublish     = `INSERT INTO published_rooms (network, room_id, ts) VALUES ($1, $2, $3) ON CONFLICT (network, room_id) DO NOTHING`
	qUnpublish   = `DELETE FROM published_rooms WHERE network = $1 AND room_id = $2`
	qIsPublished = `SELECT room_id FROM published_rooms WHERE network = $1 AND room_id = $2`
)

// New prepares the module. Call it before the log runs.
func New(ctx context.Context, db *sqldb.DB, acc *accounts.Accounts, prof *profiles.Profiles, r *rooms.Rooms, h *hub.Hub, opts Options) (*Directory, error) {
	if err := db.Migrate(ctx, "directory", schema); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	d := &Directory{db: db, accounts: acc, profiles: prof, rooms: r, hub: h, opts: opts, list: newListing()}
	if opts.Log != nil {
		opts.Log.Subscribe(d.list.hear)
	}
	return d, nil
}
