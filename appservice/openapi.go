package appservice

import (
	"fmt"
	"net/http"

	"github.com/goccy/go-yaml"

	"github.com/carillon-chat/carillon/docs/api"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

// openAPI is the description of /_carillon/v1 as JSON.
func openAPI() ([]byte, error) {
	b, err := yaml.YAMLToJSON(api.CarillonV1)
	if err != nil {
		return nil, fmt.Errorf("reading the API's description: %w", err)
	}
	return b, nil
}

func openAPIRoute(spec []byte) httpapi.Route {
	return httpapi.Route{Method: http.MethodGet, Path: apiV1 + "/openapi.json", Handler: func(*httpapi.Call) (any, error) {
		return httpapi.Raw(spec), nil
	}}
}
