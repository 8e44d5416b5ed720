package search

import (
	"context"

	"github.com/carillon-chat/carillon/homeserver/events"
)

// Absorb indexes events at once, for benchmarks that put them into the database by
// themselves.
func (s *Search) Absorb(ctx context.Context, list []*events.Event) error {
	return s.absorb(ctx, list, true, s.done)
}
