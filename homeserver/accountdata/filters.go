package accountdata

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// filterCache holds compiled filters. Filters never change, so entries are never
// wrong; when it is full it starts anew.
type filterCache struct {
	mu     sync.RWMutex
	byID   map[filterKey]*Filter
	inline map[string]*Filter // by definition
}

type filterKey struct {
	user matrix.UserID
	id   string
}

const (
	maxCachedFilters = 20_000
	maxCachedInline  = 1_000
)

func (c *filterCache) init() {
	c.byID, c.inline = map[filterKey]*Filter{}, map[string]*Filter{}
}

// cached looks a key up, or compiles and keeps.
func cached[K comparable](c *filterCache, m map[K]*Filter, size int, key K, compile func() (*Filter, error)) (*Filter, error) {
	c.mu.RLock()
	f, ok := m[key]
	c.mu.RUnlock()
	if ok {
		return f, nil
	}
	f, err := compile()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(m) >= size {
		clear(m)
	}
	m[key] = f
	return f, nil
}

// Filter returns a user's stored filter, or M_NOT_FOUND.
func (d *Data) Filter(ctx context.Context, user matrix.UserID, id string) (*Filter, error) {
	return cached(&d.filters, d.filters.byID, maxCachedFilters, filterKey{user, id}, func() (*Filter, error) {
		definition, err := d.FilterDefinition(ctx, user, id)
		if err != nil {
			return nil, err
		}
		f, err := ParseFilter(definition)
		if err != nil {
			return nil, fmt.Errorf("stored filter: %w", err)
		}
		return f, nil
	})
}

// ResolveFilter is for the filter parameter of /sync, which holds an ID or a filter: empty is nil, no filter.
func (d *Data) ResolveFilter(ctx context.Context, user matrix.UserID, param string) (*Filter, error) {
	switch {
	case param == "":
		return nil, nil //nolint:nilnil // a nil filter wants everything
	case param[0] == '{':
		if len(param) > 4096 { // not worth keeping
			return ParseFilter([]byte(param))
		}
		return cached(&d.filters, d.filters.inline, maxCachedInline, param, func() (*Filter, error) { return ParseFilter([]byte(param)) })
	}
	f, err := d.Filter(ctx, user, param)
	if matrix.IsCode(err, "M_NOT_FOUND") {
		return nil, matrix.InvalidParam("no such filter")
	}
	return f, err
}

// FilterDefinition returns a stored filter as the client gave it, or M_NOT_FOUND.
func (d *Data) FilterDefinition(ctx context.Context, user matrix.UserID, id string) (json.RawMessage, error) {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return nil, matrix.NotFound("no such filter")
	}
	var definition string
	err = d.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qFilter, string(user), n).Scan(&definition)
	})
	switch {
	case errors.Is(err, sqldb.ErrNoRows):
		return nil, matrix.NotFound("no such filter")
	case err != nil:
		return nil, fmt.Errorf("reading filter: %w", err)
	}
	return json.RawMessage(definition), nil
}

// DefineFilter stores a filter and returns its ID. The same definition gets the same ID.
func (d *Data) DefineFilter(ctx context.Context, user matrix.UserID, definition json.RawMessage) (string, error) {
	if _, err := ParseFilter(definition); err != nil {
		return "", err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, definition); err != nil {
		return "", matrix.NotJSON("the filter is not valid JSON")
	}
	sum := sha256.Sum256(compact.Bytes())
	hash := hex.EncodeToString(sum[:])
	unlock, err := d.defining.LockContext(ctx, user)
	if err != nil {
		return "", err
	}
	defer unlock()
	var id int64
	err = d.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qSame, string(user), hash).Scan(&id) })
	if errors.Is(err, sqldb.ErrNoRows) {
		err = d.db.Write(ctx, func(tx *sqldb.Tx) error {
			if err := tx.QueryRow(qNext, string(user)).Scan(&id); err != nil {
				return err
			}
			_, err := tx.Exec(qDefine, string(user), id, hash, compact.String())
			return err
		})
	}
	if err != nil {
		return "", fmt.Errorf("storing filter: %w", err)
	}
	return strconv.FormatInt(id, 10), nil
}
