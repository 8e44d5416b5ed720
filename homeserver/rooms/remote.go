package rooms

import (
	"context"
	"encoding/json"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Remote reaches other servers for what a room needs of them. Events are PDUs as
// they came, unchecked: rooms checks formats, hashes, signatures and rules.
type Remote interface {
	// Verify checks the signatures of PDUs; one error for each, nil if good, a
	// *matrix.KeyError if it cannot be told now.
	Verify(ctx context.Context, version string, pdus []json.RawMessage) []error
	// HasKeys reports whether the keys of a server are at hand, or can be had, if ask
	// says to try.
	HasKeys(ctx context.Context, server matrix.ServerName, ask bool) (bool, error)

	MakeJoin(ctx context.Context, server matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (RemoteTemplate, error)
	SendJoin(ctx context.Context, server matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu json.RawMessage) (RemoteJoin, error)
	MakeLeave(ctx context.Context, server matrix.ServerName, room matrix.RoomID, user matrix.UserID) (RemoteTemplate, error)
	SendLeave(ctx context.Context, server matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu json.RawMessage) error
	MakeKnock(ctx context.Context, server matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (RemoteTemplate, error)
	SendKnock(ctx context.Context, server matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu json.RawMessage) (stripped []json.RawMessage, err error)
	// Invite hands an invitation to the server of the invited and returns it
	// with that server's signature.
	Invite(ctx context.Context, server matrix.ServerName, version string, room matrix.RoomID, id matrix.EventID, pdu json.RawMessage, stripped []json.RawMessage) (json.RawMessage, error)

	// ExchangeThirdParty asks for an invitation in place of one that was kept
	// for an address; event is what of it is known.
	ExchangeThirdParty(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event json.RawMessage) error

	MissingEvents(ctx context.Context, server matrix.ServerName, room matrix.RoomID, earliest, latest []matrix.EventID, limit int) ([]json.RawMessage, error)
	Event(ctx context.Context, server matrix.ServerName, id matrix.EventID) (json.RawMessage, error)
	State(ctx context.Context, server matrix.ServerName, room matrix.RoomID, at matrix.EventID) (RemoteState, error)
	// StateIDs is State by names.
	StateIDs(ctx context.Context, server matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, chain []matrix.EventID, err error)
	EventAuth(ctx context.Context, server matrix.ServerName, room matrix.RoomID, id matrix.EventID) ([]json.RawMessage, error)
	Backfill(ctx context.Context, server matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([]json.RawMessage, error)
	// Nearest asks for the event at or after, or at or before, a time in ms.
	Nearest(ctx context.Context, server matrix.ServerName, room matrix.RoomID, ts int64, forward bool) (id matrix.EventID, at int64, err error)
}

// RemoteTemplate is the answer to make_join, make_leave and make_knock.
type RemoteTemplate struct {
	Version string
	Event   json.RawMessage
}

// RemoteState is the state before an event, with the chain that authorises it.
type RemoteState struct {
	State     []json.RawMessage
	AuthChain []json.RawMessage
}

// RemoteJoin is the answer to send_join.
type RemoteJoin struct {
	RemoteState
	// Event is the join with the resident server's signature, where it added one.
	Event json.RawMessage
}

// JoinState is what a server gets that joins through this one.
type JoinState struct {
	Version   string
	Event     json.RawMessage
	State     []json.RawMessage
	AuthChain []json.RawMessage
	Servers   []matrix.ServerName
}
