// Package api holds the OpenAPI descriptions of Carillon's own APIs, so that the binary can serve them. The Matrix
// APIs are described by the Matrix specification.
package api

import _ "embed"

// CarillonV1 describes /_carillon/v1, in YAML.
//
//go:embed carillon-v1.yaml
var CarillonV1 []byte
