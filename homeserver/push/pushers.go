package push

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qPushers = `SELECT id, user_id, app_id, pushkey, pushkey_ts, kind, app_display_name, device_display_name,
profile_tag, lang, data, device_id, token_id, last_pos, failing_since, mail_due, mail_sent FROM pushers`
	qSetPusher = `INSERT INTO pushers (user_id, app_id, pushkey, pushkey_ts, kind, app_display_name, device_display_name,
profile_tag, lang, data, device_id, token_id, last_pos, failing_since)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 0, 0)
ON CONFLICT (app_id, pushkey, user_id) DO UPDATE SET pushkey_ts = excluded.pushkey_ts, kind = excluded.kind,
app_display_name = excluded.app_display_name, device_display_name = excluded.device_display_name,
profile_tag = excluded.profile_tag, lang = excluded.lang, data = excluded.data, device_id = excluded.device_id,
token_id = excluded.token_id, last_pos = 0, failing_since = 0 RETURNING id`
	qDropPusher   = `DELETE FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_id = $3`
	qDropOthers   = `DELETE FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_id <> $3`
	qDropOfDevice = `DELETE FROM pushers WHERE user_id = $1 AND device_id = $2`
	qDropOfUser   = `DELETE FROM pushers WHERE user_id = $1`
	qPusherState  = `UPDATE pushers SET last_pos = $2, failing_since = $3 WHERE id = $1`
	qPosition     = `SELECT pos FROM push_position WHERE id = 1`
	qSavePosition = `INSERT INTO push_position (id, pos) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET pos = excluded.pos`
)

// Limits of the specification, and one of ours.
const (
	maxPushkey = 512
	maxAppID   = 64
	maxPushers = 50 // of one user
)

// pusher is where a user's notifications are sent.
type pusher struct {
	ID         int64
	User       matrix.UserID
	AppID      string
	Pushkey    string
	TS         int64 // ms
	Kind       string
	AppName    string
	DeviceName string
	Profile    string
	Lang       string
	Data       json.RawMessage
	Device     matrix.DeviceID
	TokenID    int64
	LastPos    stream.Pos // while failing: everything up to here is delivered
	Failing    int64      // since when, ms; 0 while all is well

	mailDue, mailSent int64 // as they were read; see mailbox
}

// pusherSet is all pushers in memory, and their senders.
type pusherSet struct {
	mu     sync.RWMutex
	byUser map[matrix.UserID][]*sender
	bell   chan struct{} // capacity one: the log has moved; full is as good
}

func (s *pusherSet) ring() {
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

func (s *pusherSet) empty() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.byUser) == 0
}

func (p *Push) loadPushers(ctx context.Context) error {
	p.pushers.byUser = make(map[matrix.UserID][]*sender)
	p.pushers.bell = make(chan struct{}, 1)
	p.mail.boxes, p.mail.bell = make(map[int64]*mailbox), make(chan struct{}, 1)
	var list []*pusher
	err := p.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, scanPusher, qPushers)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading pushers: %w", err)
	}
	for _, x := range list {
		s := newSender(p, x)
		p.pushers.byUser[x.User] = append(p.pushers.byUser[x.User], s)
		if x.Kind == "email" {
			p.mail.boxes[x.ID] = &mailbox{s: s, due: x.mailDue, sent: x.mailSent, told: x.LastPos}
		}
	}
	return nil
}

func scanPusher(r *sqldb.Rows) (*pusher, error) {
	x := &pusher{}
	var data string
	err := r.Scan(&x.ID, &x.User, &x.AppID, &x.Pushkey, &x.TS, &x.Kind, &x.AppName, &x.DeviceName,
		&x.Profile, &x.Lang, &data, &x.Device, &x.TokenID, &x.LastPos, &x.Failing, &x.mailDue, &x.mailSent)
	x.Data = json.RawMessage(data)
	return x, err
}

type pusherJSON struct {
	Pushkey    string          `json:"pushkey"`
	Kind       string          `json:"kind"`
	AppID      string          `json:"app_id"`
	AppName    string          `json:"app_display_name"`
	DeviceName string          `json:"device_display_name"`
	Profile    string          `json:"profile_tag,omitempty"`
	Lang       string          `json:"lang"`
	Data       json.RawMessage `json:"data"`
}

func (p *Push) getPushers(c *httpapi.Call) (any, error) {
	p.pushers.mu.RLock()
	defer p.pushers.mu.RUnlock()
	list := []pusherJSON{}
	for _, s := range p.pushers.byUser[c.Caller.User] {
		x := s.pusher
		list = append(list, pusherJSON{x.Pushkey, x.Kind, x.AppID, x.AppName, x.DeviceName, x.Profile, x.Lang, x.Data})
	}
	slices.SortFunc(list, func(a, b pusherJSON) int { return cmp.Compare(a.AppID+a.Pushkey, b.AppID+b.Pushkey) })
	return map[string]any{"pushers": list}, nil
}

// setPusherBody is the body of POST /pushers/set.
type setPusherBody struct {
	Pushkey    *string         `json:"pushkey"`
	Kind       json.RawMessage `json:"kind"`
	AppID      *string         `json:"app_id"`
	AppName    *string         `json:"app_display_name"`
	DeviceName *string         `json:"device_display_name"`
	Profile    string          `json:"profile_tag"`
	Lang       *string         `json:"lang"`
	Data       json.RawMessage `json:"data"`
	Append     bool            `json:"append"`
}

func (p *Push) setPusher(c *httpapi.Call) (any, error) {
	var b setPusherBody
	if err := c.Body(&b); err != nil {
		return nil, err
	}
	if err := missing("kind", b.Kind == nil, "app_id", b.AppID == nil, "pushkey", b.Pushkey == nil); err != nil {
		return nil, err
	}
	user := c.Caller.User
	if string(b.Kind) == "null" {
		if *b.AppID == mailApp {
			*b.Pushkey = strings.ToLower(strings.TrimSpace(*b.Pushkey))
		}
		return nil, p.dropPusher(c.Ctx(), user, *b.AppID, *b.Pushkey)
	}
	x, err := p.checkPusher(&b)
	if err == nil && x.Kind == "email" {
		err = p.checkMail(c.Ctx(), user, x)
	}
	if err != nil {
		return nil, err
	}
	x.User, x.Device, x.TokenID = user, c.Caller.Device, c.Caller.TokenID
	return nil, p.addPusher(c.Ctx(), x, b.Append)
}

func missing(args ...any) error {
	var names []string
	for i := 0; i < len(args); i += 2 {
		if args[i+1].(bool) {
			names = append(names, args[i].(string))
		}
	}
	if names == nil {
		return nil
	}
	return matrix.MissingParam("Missing parameters: %s", strings.Join(names, ", "))
}

func (p *Push) checkPusher(b *setPusherBody) (*pusher, error) {
	var kind string
	if json.Unmarshal(b.Kind, &kind) != nil {
		return nil, matrix.BadJSON("kind must be a string or null")
	}
	err := missing("app_display_name", b.AppName == nil, "device_display_name", b.DeviceName == nil,
		"lang", b.Lang == nil, "data", b.Data == nil)
	if err != nil {
		return nil, err
	}
	switch {
	case len(*b.Pushkey) == 0 || len(*b.Pushkey) > maxPushkey:
		return nil, matrix.InvalidParam("pushkey has 1 to %d bytes", maxPushkey)
	case len(*b.AppID) == 0 || len(*b.AppID) > maxAppID:
		return nil, matrix.InvalidParam("app_id has 1 to %d characters", maxAppID)
	case kind == "email" && p.opts.Email == nil:
		return nil, matrix.InvalidParam("this server does not send notifications by e-mail")
	case kind != "http" && kind != "email":
		return nil, matrix.InvalidParam("kind %q is not known", kind)
	}
	var data struct {
		URL    *string `json:"url"`
		Format *string `json:"format"`
	}
	if json.Unmarshal(b.Data, &data) != nil || !strings.HasPrefix(strings.TrimSpace(string(b.Data)), "{") {
		return nil, matrix.InvalidParam("data must be an object")
	}
	x := &pusher{
		AppID: *b.AppID, Pushkey: *b.Pushkey, TS: matrix.Millis(p.opts.Now()), Kind: kind,
		AppName: *b.AppName, DeviceName: *b.DeviceName, Profile: b.Profile, Lang: *b.Lang, Data: b.Data,
	}
	if kind == "email" {
		return x, nil
	}
	if data.URL == nil {
		return nil, matrix.MissingParam("data.url is needed")
	}
	u, err := url.Parse(*data.URL)
	if err != nil || u.Host == "" || u.Path != "/_matrix/push/v1/notify" ||
		u.Scheme != "https" && (u.Scheme != "http" || !p.opts.AllowInsecure) {
		return nil, matrix.InvalidParam("data.url must be an https: URL with the path /_matrix/push/v1/notify")
	}
	return x, nil
}

// checkMail refuses e-mails to addresses that the user has not proven.
func (p *Push) checkMail(ctx context.Context, user matrix.UserID, x *pusher) error {
	x.Pushkey = strings.ToLower(strings.TrimSpace(x.Pushkey))
	own, err := p.opts.Email.Owns(ctx, user, x.Pushkey)
	if err == nil && !own {
		err = matrix.InvalidParam("pushkey must be an e-mail address of your account")
	}
	return err
}

func (p *Push) addPusher(ctx context.Context, x *pusher, keepOthers bool) error {
	unlock, err := p.locks.LockContext(ctx, x.User)
	if err != nil {
		return err
	}
	defer unlock()
	p.pushers.mu.RLock()
	n := len(p.pushers.byUser[x.User])
	p.pushers.mu.RUnlock()
	if n >= maxPushers {
		return matrix.InvalidParam("a user has at most %d pushers", maxPushers)
	}
	err = p.db.Write(ctx, func(tx *sqldb.Tx) error {
		if !keepOthers {
			if _, err := tx.Exec(qDropOthers, x.AppID, x.Pushkey, string(x.User)); err != nil {
				return err
			}
		}
		return tx.QueryRow(qSetPusher, string(x.User), x.AppID, x.Pushkey, x.TS, x.Kind, x.AppName, x.DeviceName,
			x.Profile, x.Lang, string(x.Data), string(x.Device), x.TokenID).Scan(&x.ID)
	})
	if err != nil {
		return fmt.Errorf("storing pusher: %w", err)
	}
	p.forget(func(o *pusher) bool {
		return o.AppID == x.AppID && o.Pushkey == x.Pushkey && (o.User == x.User || !keepOthers)
	})
	s := newSender(p, x)
	if x.Kind == "email" {
		p.addMail(ctx, s)
	}
	p.pushers.mu.Lock()
	p.pushers.byUser[x.User] = append(slices.Clone(p.pushers.byUser[x.User]), s)
	p.pushers.mu.Unlock()
	return nil
}

func (p *Push) dropPusher(ctx context.Context, user matrix.UserID, app, key string) error {
	err := p.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qDropPusher, app, key, string(user))
		return err
	})
	if err != nil {
		return fmt.Errorf("removing pusher: %w", err)
	}
	p.forget(func(o *pusher) bool { return o.User == user && o.AppID == app && o.Pushkey == key })
	return nil
}

// DeleteDevice removes the pushers that a device has set, when its session ends.
func (p *Push) DeleteDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID) error {
	p.pushers.mu.RLock()
	any := slices.ContainsFunc(p.pushers.byUser[user], func(s *sender) bool { return s.pusher.Device == device })
	p.pushers.mu.RUnlock()
	if !any {
		return nil
	}
	err := p.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qDropOfDevice, string(user), string(device))
		return err
	})
	if err != nil {
		return fmt.Errorf("removing pushers: %w", err)
	}
	p.forget(func(o *pusher) bool { return o.User == user && o.Device == device })
	return nil
}

// DeleteUser removes all pushers of a user whose account is closed.
func (p *Push) DeleteUser(ctx context.Context, user matrix.UserID) error {
	err := p.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qDropOfUser, string(user))
		return err
	})
	if err != nil {
		return fmt.Errorf("removing pushers: %w", err)
	}
	p.forget(func(o *pusher) bool { return o.User == user })
	return nil
}

// forget stops pushers and drops them from memory.
func (p *Push) forget(which func(*pusher) bool) {
	p.pushers.mu.Lock()
	defer p.pushers.mu.Unlock()
	for user, list := range maps.Clone(p.pushers.byUser) {
		kept := make([]*sender, 0, len(list))
		for _, s := range list {
			if which(s.pusher) {
				s.stop()
				p.dropMail(s.pusher.ID)
			} else {
				kept = append(kept, s)
			}
		}
		switch {
		case len(kept) == 0:
			delete(p.pushers.byUser, user)
		case len(kept) < len(list):
			p.pushers.byUser[user] = kept
		}
	}
}
