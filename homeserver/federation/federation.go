// Package federation speaks with other servers: it answers their requests, takes their transactions, and sends
// what happens here to those that are concerned.
//
// It owns the tables fed_queue, fed_destinations and fed_position and implements the server-server specification
// but for keys (serverkeys) and discovery (fedclient). What a foreign event does to a room is decided in rooms.
//
// Invariants: a request is answered only after its signature is proved; what waits for a server is stored in the
// transaction that moves the place in the log, so a restart neither loses nor doubles it; a transaction keeps its
// ID and its rows however often it is tried; a server that fails holds up nobody else.
//
// Spec: server-server-api
package federation

import "embed"

//go:embed schema/*.sql
var schemaFS embed.FS
