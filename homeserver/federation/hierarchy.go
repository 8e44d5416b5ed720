package federation

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/spaces"
)

var _ spaces.Remote = (*Remote)(nil)

// Hierarchy asks a server for a room and its children.
//
// Spec: get_matrixfederationv1hierarchyroomid
func (r *Remote) Hierarchy(ctx context.Context, server matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (*spaces.Answer, error) {
	out := &spaces.Answer{}
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodGet, Server: server, Path: path("v1", "hierarchy", string(room)),
		Query: url.Values{"suggested_only": {strconv.FormatBool(suggestedOnly)}}, MaxBody: 8 << 20,
	}, out)
	return out, err
}
