package profiles

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// How long, and of how many, the profiles of other servers are remembered.
const (
	remoteKept    = 5 * time.Minute
	remoteEntries = 5000
)

type remoteCache struct {
	mu      sync.Mutex
	entries map[matrix.UserID]remoteEntry
}

type remoteEntry struct {
	profile map[string]json.RawMessage
	until   time.Time
}

// ask gets a profile of another server. Whole profiles are remembered; a single
// field is asked for alone, since the far side may show no more.
func (p *Profiles) ask(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error) {
	now := p.opts.Now()
	p.remote.mu.Lock()
	e, ok := p.remote.entries[user]
	p.remote.mu.Unlock()
	if ok && now.Before(e.until) {
		return e.profile, nil
	}
	profile, err := p.opts.Remote.Profile(ctx, user, field)
	if err != nil {
		return nil, err
	}
	if field == "" {
		p.remote.mu.Lock()
		if len(p.remote.entries) >= remoteEntries {
			clear(p.remote.entries)
		}
		p.remote.entries[user] = remoteEntry{profile, now.Add(remoteKept)}
		p.remote.mu.Unlock()
	}
	return profile, nil
}
