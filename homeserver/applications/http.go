package applications

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Routes are the endpoints of application services in the client-server API.
func (a *Applications) Routes() []httpapi.Route {
	return append(a.thirdPartyRoutes(), httpapi.Route{
		Method: http.MethodPost, Path: "/_matrix/client/v1/appservice/{appserviceId}/ping", Auth: httpapi.AuthAppService, Handler: a.servePing,
	})
}

// servePing calls a service back at its own wish. Spec: post_matrixclientv1appserviceappserviceidping
func (a *Applications) servePing(c *httpapi.Call) (any, error) {
	id := c.Var("appserviceId")
	if c.Caller.AppService != id {
		return nil, matrix.Forbidden("the access token is not of application service %q", id)
	}
	var body struct {
		TransactionID *string `json:"transaction_id,omitempty"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	s := a.byID(id)
	if s == nil || s.http == nil {
		return nil, matrix.NewError(http.StatusBadRequest, "M_URL_NOT_SET", "the registration of %q has no URL", id)
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.Ctx(), queryTimeout)
	defer cancel()
	start := a.opts.Now()
	status, answer, err := s.request(ctx, http.MethodPost, "/_matrix/app/v1", []string{"ping"}, nil, raw)
	took := a.opts.Now().Sub(start)
	var ne net.Error
	switch {
	case err != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()):
		return nil, matrix.NewError(http.StatusGatewayTimeout, "M_CONNECTION_TIMEOUT", "the application service did not answer in time")
	case err != nil:
		return nil, matrix.NewError(http.StatusBadGateway, "M_CONNECTION_FAILED", "the application service cannot be reached")
	case status < 200 || status >= 300:
		return nil, matrix.NewError(http.StatusBadGateway, "M_BAD_STATUS", "the application service answered with status %d", status).
			With("status", status).With("body", string(answer[:min(len(answer), 64<<10)]))
	}
	a.Kick(id)
	return map[string]any{"duration_ms": took.Milliseconds()}, nil
}
