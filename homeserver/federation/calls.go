package federation

import (
	"context"
	"errors"
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// CallToken asks a server for a token for its LiveKit server; out takes the answer.
// A refusal stays the M_UNAUTHORIZED that clients know; it is not about their own token.
// Spec: MSC4195
func (r *Remote) CallToken(ctx context.Context, server matrix.ServerName, body, out any) error {
	err := r.client.JSON(ctx, fedclient.Request{
		Method: http.MethodPost, Server: server, Path: path("v1", "rtc", "livekit", "get_token"), Body: body, MaxBody: 64 << 10,
	}, out)
	if said := (*fedclient.Error)(nil); errors.As(err, &said) && said.Status == http.StatusUnauthorized {
		return matrix.NewError(http.StatusUnauthorized, "M_UNAUTHORIZED", "%s gives no token for this room", server)
	}
	return err
}
