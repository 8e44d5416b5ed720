package homeserver

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/carillon-chat/carillon/homeserver/metrics"
)

// Metrics shows figures for monitoring at /metrics, to those who have the token; an empty token lets everybody in.
// Without Options.Metrics there is nothing there.
func (s *Server) Metrics(token string) http.Handler {
	if s.figures == nil {
		return http.NotFoundHandler()
	}
	return metrics.Handler(s.figures, token)
}

// measure makes the registry, if figures are wanted, and gives what counts requests.
func (s *Server) measure() func(method, route string, status int, took time.Duration) {
	if !s.opts.Metrics {
		return nil
	}
	s.figures = metrics.New(s.opts.Version)
	metrics.Database(s.figures, s.db, s.log)
	return metrics.Requests(s.figures)
}

// registerer is where parts hang their figures; nil where nobody reads them.
func (s *Server) registerer() prometheus.Registerer {
	if s.figures == nil {
		return nil
	}
	return s.figures
}
