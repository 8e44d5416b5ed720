package sites

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// roomType is that of the sites' room, so that clients do not take it for a conversation.
const roomType = "im.carillon.sites"

// aliasName is the local part of the room's alias, in the namespace of the service.
func (s *Sites) aliasName() string { return s.head.Bot.Localpart() + "_sites" }

// roomAlias is where the sites' room is found.
func (s *Sites) roomAlias() string { return "#" + s.aliasName() + ":" + s.head.ServerName }

func (s *Sites) setRoom(room id.RoomID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room = room
}

// Room is the room in which the services speak; "" until it is found.
func (s *Sites) Room() id.RoomID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room
}

// keepRoom makes sure of the room: the head office makes it and brings the bots in, the others find it and join.
func (e *engine) keepRoom(ctx context.Context, now time.Time) {
	// Joining may wait for another server, which must not hold up everything for long.
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := e.enter(ctx)
	missing := 0
	if err == nil && e.own.Head {
		missing, err = e.gather(ctx)
	}
	if err == nil && !e.joined {
		err = e.publishKey(ctx)
	}
	if err == nil {
		if !e.joined {
			e.joined, e.beatAt = true, now
			e.say(0)
			log.WithField("room", e.room).Info("the room of the sites is there")
		}
	}
	if err == nil && missing == 0 {
		e.roomTry, e.roomAt = 0, now.Add(checkRoom)
		if e.moved.Load() {
			e.roomAt = now.Add(lookAgainAfter)
		}
		return
	}
	wait := min(lookForRoom<<min(e.roomTry, 8), time.Minute)
	e.roomTry++
	e.roomAt = now.Add(wait)
	if err != nil && ctx.Err() == nil {
		log.WithError(err).WithField("again_in", wait).Warn("the room of the sites is not there yet")
	}
}

// enter finds the room, or makes it, and joins.
func (e *engine) enter(ctx context.Context) error {
	if err := e.follows(ctx); err != nil {
		return err
	}
	if e.room != "" && e.joined {
		return nil
	}
	room := e.room
	if room == "" {
		var err error
		if room, err = e.find(ctx); err != nil {
			return err
		}
	}
	path := mxclient.Path("/_matrix/client/v3/join", string(room))
	via := url.Values{"via": {e.head.ServerName}, "server_name": {e.head.ServerName}}
	if err := e.mx.Do(ctx, mxclient.Request{Method: http.MethodPost, Path: path, Query: via}, nil); err != nil {
		if mxclient.IsPermanent(err) {
			e.room = "" // another may have taken its place
		}
		return fmt.Errorf("joining the sites' room: %w", err)
	}
	if err := e.genuine(ctx, room); err != nil {
		return err
	}
	err := e.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSetRoom, string(room), e.roomAlias())
		return err
	})
	if err != nil {
		return fmt.Errorf("keeping the sites' room: %w", err)
	}
	e.room, e.alias = room, e.roomAlias()
	e.setRoom(room)
	return nil
}

// lookAgainAfter is how long the alias is not resolved again: the head office's bot invites to many rooms.
const lookAgainAfter = 5 * time.Second

// follows leaves the room for another one if the head office has made one and invites there.
func (e *engine) follows(ctx context.Context) error {
	now := time.Now()
	if e.own.Head || e.room == "" || !e.moved.Load() || now.Sub(e.resolved) < lookAgainAfter {
		return nil
	}
	e.moved.Store(false)
	e.resolved = now
	room, err := e.mx.ResolveAlias(ctx, e.roomAlias())
	if err != nil {
		e.moved.Store(true)
		return fmt.Errorf("finding the sites' room: %w", err)
	}
	if room != e.room {
		e.room, e.joined = "", false
	}
	return nil
}

// find resolves the alias. The head office makes the room that is not there.
func (e *engine) find(ctx context.Context) (id.RoomID, error) {
	room, err := e.mx.ResolveAlias(ctx, e.roomAlias())
	switch {
	case err == nil:
		return room, nil
	case !e.own.Head || !mxclient.IsCode(err, "M_NOT_FOUND"):
		return "", fmt.Errorf("finding the sites' room: %w", err)
	}
	var bots []id.UserID
	for _, site := range e.Others() {
		bots = append(bots, site.Bot)
	}
	room, err = e.mx.CreateRoom(ctx, "", map[string]any{
		"room_version": "12", "preset": "private_chat", "room_alias_name": e.aliasName(), "name": "Carillon: sites",
		"creation_content": map[string]any{"type": roomType, "additional_creators": bots},
		"initial_state": []map[string]any{
			// With "joined", what is set while a bot is about to join could reach its server empty, keys too.
			{"type": "m.room.history_visibility", "content": map[string]string{"history_visibility": "shared"}},
			{"type": "m.room.guest_access", "content": map[string]string{"guest_access": "forbidden"}},
		},
		"power_level_content_override": map[string]any{
			"invite": 100, "events": map[string]int{EventKey: 0, EventMessage: 0, "m.room.name": 100, "m.room.topic": 100},
		},
	}, true)
	if err != nil {
		return "", fmt.Errorf("making the sites' room: %w", err)
	}
	return room, nil
}

// genuine makes sure that the room is the one that the head office's bot has made.
func (e *engine) genuine(ctx context.Context, room id.RoomID) error {
	events, err := e.mx.StateAll(ctx, "", room)
	if err != nil {
		return fmt.Errorf("looking at the sites' room: %w", err)
	}
	for _, ev := range events {
		if ev.Type == "m.room.create" && ev.Sender == string(e.head.Bot) {
			return nil
		}
	}
	e.room = ""
	return errors.New("the sites' room was not made by the head office's bot")
}

// gather invites the bots that are not in the room, and removes who is no bot of a site. It answers how many had to be
// invited.
func (e *engine) gather(ctx context.Context) (missing int, err error) {
	events, err := e.mx.StateAll(ctx, "", e.room)
	if err != nil {
		return 0, fmt.Errorf("looking at the sites' room: %w", err)
	}
	present := map[id.UserID]string{}
	for _, ev := range events {
		if m := ev.Membership(); m != "" {
			present[id.UserID(*ev.StateKey)] = m
		}
	}
	for _, site := range e.Others() {
		if m := present[site.Bot]; m == "join" || m == "invite" {
			continue
		}
		missing++
		e.invite(site)
	}
	for user, m := range present {
		if (m == "join" || m == "invite" || m == "knock") && !e.IsBot(user) {
			if err := e.mx.Kick(ctx, "", e.room, user, ""); err != nil {
				return 0, e.abandon(ctx, user, err)
			}
		}
	}
	return missing, nil
}

// invite invites a site's bot aside: its homeserver may not run yet, and the others must not wait for it.
func (e *engine) invite(site Site) {
	e.mu.Lock()
	busy := e.inviting[site.Name]
	e.inviting[site.Name] = true
	e.mu.Unlock()
	if busy {
		return
	}
	room := e.room
	e.aside.Go(func() {
		ctx, cancel := context.WithTimeout(e.life, time.Minute)
		defer cancel()
		err := e.mx.Invite(ctx, "", room, site.Bot)
		if err != nil && e.life.Err() == nil {
			log.WithField("site", site.Name).WithError(err).Info("the bot of a site could not be invited yet")
		}
		e.mu.Lock()
		delete(e.inviting, site.Name)
		e.mu.Unlock()
	})
}

// abandon leaves a room in which somebody is who cannot be removed: the bot of a site that is one no longer, and had
// made the room with the others. The next attempt makes another room.
func (e *engine) abandon(ctx context.Context, user id.UserID, why error) error {
	if !mxclient.IsPermanent(why) {
		return fmt.Errorf("removing a user from the sites' room: %w", why)
	}
	path := mxclient.Path("/_matrix/client/v3/directory/room", e.roomAlias())
	err := e.mx.Do(ctx, mxclient.Request{Method: http.MethodDelete, Path: path}, nil)
	if err != nil && !mxclient.IsCode(err, "M_NOT_FOUND") {
		return fmt.Errorf("taking the alias from the sites' room: %w", err)
	}
	e.room, e.joined = "", false
	e.setRoom("")
	return fmt.Errorf("%s is no bot of a site and cannot be removed from the sites' room: another one is made", user)
}

// keyContent is the content of a site's key.
type keyContent struct {
	Site string `json:"site"`
	Key  string `json:"key"`
}

// publishKey shows the key of this service in the room: the homeserver lets none but its bot write there.
func (e *engine) publishKey(ctx context.Context) error {
	var now keyContent
	mine := keyContent{e.own.Name, e.public}
	err := e.mx.State(ctx, "", e.room, EventKey, string(e.own.Bot), &now)
	if err != nil && !mxclient.IsCode(err, "M_NOT_FOUND") || now == mine {
		return err
	}
	if _, err := e.mx.SetState(ctx, e.room, "", EventKey, string(e.own.Bot), mine); err != nil {
		return fmt.Errorf("showing the key of this site: %w", err)
	}
	return nil
}

// relearn is how long a site's key is not asked for again.
const relearn = 5 * time.Second

// learn asks the room for a site's key. The first that is seen counts until an operator says otherwise.
func (e *engine) learn(ctx context.Context, p *peer) error {
	if time.Since(p.learned) < relearn {
		return nil
	}
	p.learned = time.Now()
	var c keyContent
	err := e.mx.State(ctx, "", e.room, EventKey, string(p.site.Bot), &c)
	if mxclient.IsCode(err, "M_NOT_FOUND") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("asking for the key of site %q: %w", p.name, err)
	}
	if publicKey(c.Key) == nil {
		return nil
	}
	key, offered := p.key, ""
	switch {
	case key == "":
		key = c.Key
	case key != c.Key:
		offered = c.Key
		log.WithFields(log.Fields{"site": p.name, "known": fingerprint(key), "new": fingerprint(offered)}).
			Error("a site speaks with another key than before; if its service was set up anew, say so with: carillon org sites --trust SITE")
	}
	return e.saveKeys(ctx, p, key, offered)
}

func (e *engine) saveKeys(ctx context.Context, p *peer, key, offered string) error {
	if key == p.key && offered == p.offered {
		return nil
	}
	err := e.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSaveKeys, p.name, key, offered)
		return err
	})
	if err != nil {
		return fmt.Errorf("keeping the key of site %q: %w", p.name, err)
	}
	p.key, p.offered = key, offered
	return nil
}

// fingerprint is what people compare of a key.
func fingerprint(key string) string { return key[:min(len(key), 16)] }
