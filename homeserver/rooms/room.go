package rooms

import (
	"encoding/json"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// room is a room in memory: what the next event is built on. Its fields are
// guarded by mu.
type room struct {
	id     matrix.RoomID
	used   int64 // guarded by Rooms.mu
	weight int   // guarded by Rooms.mu

	mu      sync.Mutex
	loaded  bool
	gone    bool            // no longer in Rooms.cached: get it again
	gen     uint64          // raised each time it is loaded
	flying  int             // appends handed to the log and not yet answered
	last    *stream.Pending // the newest of them
	version gomatrixserverlib.RoomVersion
	impl    gomatrixserverlib.IRoomVersion
	seq     int64 // of the newest event built
	applied int   // events applied to the memory
	kept    int   // members whose PDUs are kept
	tips    []matrix.EventID
	moved   time.Time // when the newest event of another server that came beside others was placed
	depth   int64
	state   map[state.Key]*entry
	levels  *levels // nil: to be read again
	joined  int
	invited int

	policyServer *policy
	policyRead   bool // else policyServer is to be read again
	dry          bool // build makes events and applies none; see changeApproved

	// txns are the newest transactions, so that a client that asks again does
	// not disturb the others who send; older ones are found in the database.
	txns     map[txn]repeat
	txnOrder []txn
}

type txn struct {
	sender matrix.UserID
	key    string
}

// repeat is what a transaction made, and the append that it is part of.
type repeat struct {
	id matrix.EventID
	w  *stream.Pending
}

// maxTxns is how many transactions a room remembers.
const maxTxns = 128

func (rm *room) note(t txn, r repeat) {
	if rm.txns == nil {
		rm.txns = map[txn]repeat{}
	}
	if len(rm.txnOrder) == maxTxns {
		delete(rm.txns, rm.txnOrder[0])
		rm.txnOrder = rm.txnOrder[1:]
	}
	rm.txns[t] = r
	rm.txnOrder = append(rm.txnOrder, t)
}

// entry is one state entry.
type entry struct {
	id         matrix.EventID // "" for members not looked at yet
	nid        int64          // 0 while its append is under way
	pend       *pending
	ev         *events.Event // at hand for all but members
	pdu        gomatrixserverlib.PDU
	membership string
}

// pending is an event on its way into the log; nid is written and read on the
// log's goroutine only.
type pending struct{ nid int64 }

// maxDepth is the largest number that every reader of JSON can hold.
// Spec: appendices#canonical-json
const maxDepth = 1<<53 - 1

// nextDepth is the depth of what is built on the room's tips: in a room that others
// have brought to the largest one it stays there.
// Spec: server-server-api#pdus (depth)
func (rm *room) nextDepth() int64 { return min(max(rm.depth, 0), maxDepth-1) + 1 }

func memberKey(u matrix.UserID) state.Key {
	return state.Key{Type: spec.MRoomMember, StateKey: string(u)}
}

func (rm *room) membership(u matrix.UserID) string {
	if e := rm.state[memberKey(u)]; e != nil {
		return e.membership
	}
	return ""
}

// set puts e into the state and keeps the counts true.
func (rm *room) set(k state.Key, e *entry) {
	if k.Type == PolicyType {
		rm.policyRead = false
	}
	if k.Type == spec.MRoomMember {
		rm.count(rm.state[k], -1)
		rm.count(e, 1)
		if rm.policyServer != nil {
			rm.policyServer.move(k.StateKey, rm.state[k], e)
		}
	} else if k.Type == spec.MRoomPowerLevels || k.Type == spec.MRoomCreate {
		rm.levels = nil
	}
	if e == nil {
		delete(rm.state, k)
		return
	}
	rm.state[k] = e
}

func (rm *room) count(e *entry, by int) {
	if e == nil {
		return
	}
	switch e.membership {
	case spec.Join:
		rm.joined += by
	case spec.Invite:
		rm.invited += by
	}
}

// current returns the event of a state entry that is kept at hand.
func (rm *room) current(typ, key string) *events.Event {
	if e := rm.state[state.Key{Type: typ, StateKey: key}]; e != nil {
		return e.ev
	}
	return nil
}

func (rm *room) contentString(typ, field string) string {
	if e := rm.current(typ, ""); e != nil {
		return e.ContentString(field)
	}
	return ""
}

func (rm *room) joinRule() string {
	if r := rm.contentString(spec.MRoomJoinRules, "join_rule"); r != "" {
		return r
	}
	return spec.Invite
}

// levels is a room's power levels, ready for use.
// Spec: client-server-api#mroompower_levels
type levels struct {
	c        gomatrixserverlib.PowerLevelContent
	creators []matrix.UserID // above all levels, room version 12 on
}

// creatorLevel stands for the infinite power of creators.
const creatorLevel = math.MaxInt64

func (rm *room) powerLevels(load func(*entry) (*events.Event, error)) (*levels, error) {
	if rm.levels != nil {
		return rm.levels, nil
	}
	l := &levels{}
	l.c.Defaults()
	create := rm.state[state.Key{Type: spec.MRoomCreate}]
	if create == nil {
		return nil, matrix.NotFound("the room %s has no create event", rm.id)
	}
	ce, err := load(create)
	if err != nil {
		return nil, err
	}
	creators := creatorsOf(ce)
	if rm.impl.PrivilegedCreators() {
		l.creators = creators
	}
	if e := rm.state[state.Key{Type: spec.MRoomPowerLevels}]; e != nil {
		pe, err := load(e)
		if err != nil {
			return nil, err
		}
		if err := rm.impl.ParsePowerLevels(pe.Content(), &l.c); err != nil {
			l.c.Defaults()
		}
	} else {
		l.c.Users = map[string]int64{string(creators[0]): 100}
		l.c.StateDefault = 0
	}
	rm.levels = l
	return l, nil
}

func creatorsOf(create *events.Event) []matrix.UserID {
	list := []matrix.UserID{create.Sender}
	gjson.GetBytes(create.JSON, "content.additional_creators").ForEach(func(_, v gjson.Result) bool {
		list = append(list, matrix.UserID(v.Str))
		return true
	})
	return list
}

func (l *levels) user(u matrix.UserID) int64 {
	if slices.Contains(l.creators, u) {
		return creatorLevel
	}
	return l.c.UserLevel(spec.SenderID(u))
}

// Power is a user's power in a room.
type Power struct {
	levels *levels
	Level  int64
}

// May reports whether the level suffices for an event of this type.
func (p Power) May(eventType string, isState bool) bool {
	return p.Level >= p.levels.c.EventLevel(eventType, isState)
}

// MayRedact, MayInvite, MayKick and MayBan report whether the level suffices
// for the action.
func (p Power) MayRedact() bool { return p.Level >= p.levels.c.Redact }

// MayInvite is described at MayRedact.
func (p Power) MayInvite() bool { return p.Level >= p.levels.c.Invite }

// MayKick is described at MayRedact.
func (p Power) MayKick() bool { return p.Level >= p.levels.c.Kick }

// MayBan is described at MayRedact.
func (p Power) MayBan() bool { return p.Level >= p.levels.c.Ban }

// MayNotify reports whether the level suffices for a notification such as "room".
func (p Power) MayNotify(kind string) bool { return p.Level >= p.levels.c.NotificationLevel(kind) }

func encodeTips(tips []matrix.EventID) string {
	b, err := json.Marshal(tips)
	if err != nil { // strings always encode
		return "[]"
	}
	return string(b)
}
