package clients_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const slidingPath = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"

// slidingAnswer is what sliding sync says, in the form that clients use today.
type slidingAnswer struct {
	Pos   string `json:"pos"`
	Rooms map[id.RoomID]struct {
		Membership string         `json:"membership"`
		State      []*event.Event `json:"required_state"`
		Timeline   []*event.Event `json:"timeline"`
		Limited    bool           `json:"limited"`
		PrevBatch  string         `json:"prev_batch"`
		Stripped   []*event.Event `json:"invite_state"`
		Notify     *int           `json:"notification_count"`
		Highlight  int            `json:"highlight_count"`
	} `json:"rooms"`
	Extensions struct {
		ToDevice struct {
			Next   string         `json:"next_batch"`
			Events []*event.Event `json:"events"`
		} `json:"to_device"`
		E2EE struct {
			Lists    mautrix.DeviceLists `json:"device_lists"`
			Counts   *mautrix.OTKCount   `json:"device_one_time_keys_count"`
			Fallback []id.KeyAlgorithm   `json:"device_unused_fallback_key_types"`
		} `json:"e2ee"`
		AccountData struct {
			Global []*event.Event               `json:"global"`
			Rooms  map[id.RoomID][]*event.Event `json:"rooms"`
		} `json:"account_data"`
		Receipts struct {
			Rooms map[id.RoomID]*event.Event `json:"rooms"`
		} `json:"receipts"`
		Typing struct {
			Rooms map[id.RoomID]*event.Event `json:"rooms"`
		} `json:"typing"`
	} `json:"extensions"`
}

// asSync says the same as /sync would: mautrix-go has no sliding sync of its own,
// and all that it does with an answer begins here.
func (a *slidingAnswer) asSync() *mautrix.RespSync {
	r := &mautrix.RespSync{NextBatch: a.Pos, DeviceLists: a.Extensions.E2EE.Lists, FallbackKeys: a.Extensions.E2EE.Fallback}
	r.DeviceOTKCount.SignedCurve25519 = 100 // not said: nothing has changed
	if c := a.Extensions.E2EE.Counts; c != nil {
		r.DeviceOTKCount = *c
	}
	r.ToDevice.Events, r.AccountData.Events = a.Extensions.ToDevice.Events, a.Extensions.AccountData.Global
	r.Rooms.Join = map[id.RoomID]*mautrix.SyncJoinedRoom{}
	r.Rooms.Leave, r.Rooms.Invite, r.Rooms.Knock = map[id.RoomID]*mautrix.SyncLeftRoom{}, map[id.RoomID]*mautrix.SyncInvitedRoom{}, map[id.RoomID]*mautrix.SyncKnockedRoom{}
	joined := func(room id.RoomID) *mautrix.SyncJoinedRoom {
		if r.Rooms.Join[room] == nil {
			r.Rooms.Join[room] = &mautrix.SyncJoinedRoom{}
		}
		return r.Rooms.Join[room]
	}
	for room, x := range a.Rooms {
		timeline := mautrix.SyncTimeline{SyncEventsList: mautrix.SyncEventsList{Events: x.Timeline}, Limited: x.Limited, PrevBatch: x.PrevBatch}
		switch x.Membership {
		case "join", "":
			j := joined(room)
			j.State.Events, j.Timeline = x.State, timeline
			if x.Notify != nil {
				j.UnreadNotifications = &mautrix.UnreadNotificationCounts{NotificationCount: *x.Notify, HighlightCount: x.Highlight}
			}
		case "invite":
			r.Rooms.Invite[room] = &mautrix.SyncInvitedRoom{State: mautrix.SyncEventsList{Events: x.Stripped}}
		case "knock":
			r.Rooms.Knock[room] = &mautrix.SyncKnockedRoom{State: mautrix.SyncEventsList{Events: x.Stripped}}
		default:
			r.Rooms.Leave[room] = &mautrix.SyncLeftRoom{State: mautrix.SyncEventsList{Events: x.State}, Timeline: timeline}
		}
	}
	for room, list := range a.Extensions.AccountData.Rooms {
		j := joined(room)
		j.AccountData.Events = append(j.AccountData.Events, list...)
	}
	for _, m := range []map[id.RoomID]*event.Event{a.Extensions.Receipts.Rooms, a.Extensions.Typing.Rooms} {
		for room, e := range m {
			j := joined(room)
			j.Ephemeral.Events = append(j.Ephemeral.Events, e)
		}
	}
	return r
}

// slide syncs by sliding sync until ctx ends, and gives what it hears to the client.
func (h *handset) slide(ctx context.Context) error {
	on := map[string]any{"enabled": true}
	toDevice := map[string]any{"enabled": true, "limit": 100}
	body := map[string]any{
		"lists":      map[string]any{"all": map[string]any{"ranges": [][]int{{0, 99}}, "timeline_limit": 20, "required_state": [][]string{{"*", "*"}}}},
		"extensions": map[string]any{"to_device": toDevice, "e2ee": on, "account_data": on, "receipts": on, "typing": on},
	}
	for pos := ""; ctx.Err() == nil; {
		wait := 20 * time.Second
		if pos == "" {
			wait = 0
		}
		q := url.Values{"pos": {pos}, "timeout": {strconv.FormatInt(wait.Milliseconds(), 10)}}
		raw, err := h.MakeFullRequest(ctx, mautrix.FullRequest{
			Method: http.MethodPost, URL: h.HomeserverURL.String() + slidingPath + "?" + q.Encode(), RequestJSON: body, MaxAttempts: 1,
		})
		if err != nil {
			return err
		}
		var a slidingAnswer
		if err := json.Unmarshal(raw, &a); err != nil {
			return err
		}
		if err := h.Syncer.ProcessResponse(ctx, a.asSync(), pos); err != nil {
			return err
		}
		if a.Extensions.ToDevice.Next != "" {
			toDevice["since"] = a.Extensions.ToDevice.Next
		}
		pos = a.Pos
	}
	return ctx.Err()
}
