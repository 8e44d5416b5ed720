// Package moderation is for those who look after rooms: replacing a room by one of
// another version, with the settings of its people, and reports of what should
// not be, for the server's administrators.
//
// Tables: reports, upgrades_carried.
//
// Spec: client-server-api#room-upgrades, client-server-api#reporting-content
//
// Invariants: a room is tombstoned only when its replacement stands; a person's
// settings move to a room only if the old room names it as its replacement; who
// reports the same thing again has one report.
package moderation

import (
	"context"
	"embed"
	"fmt"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

// Parts is what the module works with.
type Parts struct {
	DB        *sqldb.DB
	Log       *stream.Log
	Events    *events.Store
	Hub       *hub.Hub
	Rooms     *rooms.Rooms
	Accounts  *accounts.Accounts
	Data      *accountdata.Data
	Push      *push.Push
	Directory *directory.Directory
	Now       matrix.Now
}

// Moderation is the module.
type Moderation struct {
	Parts
	upgrading gate.Keyed[matrix.RoomID]

	mu      sync.Mutex
	heard   stream.Pos // all up to here is in due or done
	due     map[move]struct{}
	bell    chan struct{} // one token: there is something due
	carried stream.Pos    // as stored at the start
	unsaved bool          // more has been done since it was stored; of Run alone
}

// New prepares the module. Call it before the log runs.
func New(ctx context.Context, p Parts) (*Moderation, error) {
	if err := p.DB.Migrate(ctx, "moderation", schema); err != nil {
		return nil, err
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	m := &Moderation{Parts: p, heard: p.Log.Head(), due: map[move]struct{}{}, bell: make(chan struct{}, 1)}
	if err := m.loadCarried(ctx); err != nil {
		return nil, fmt.Errorf("reading how far upgrades are carried: %w", err)
	}
	p.Log.Subscribe(m.hear)
	return m, nil
}
