package slidingsync

import (
	"encoding/json"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/clientsync"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/carillon-chat/carillon/homeserver/subscriptions"
)

// concerns reports whether an extension is wanted for a room: one of its lists, or
// one that is subscribed to. Without names it is wanted for all of them.
func (x *extBody) concerns(e *entry) bool {
	if x.Lists == nil && len(e.lists) > 0 {
		return true
	}
	for _, l := range x.Lists {
		if l == "*" && len(e.lists) > 0 || slices.Contains(e.lists, l) {
			return true
		}
	}
	if x.Rooms == nil {
		return e.subscribed
	}
	return e.subscribed && slices.Contains(x.Rooms, "*") || slices.Contains(x.Rooms, string(e.id))
}

// receiptsFrom is up to where the client knows the receipts of a room.
func (e *entry) receiptsFrom() stream.Pos {
	if e.st == nil || e.fresh() {
		return 0
	}
	return e.st.receipts
}

// extensions writes what is not of rooms.
func (w *work) extensions(tx *sqldb.Tx) error {
	for _, fn := range []func(*sqldb.Tx) error{w.toDevice, w.encryption, w.accountData, w.readReceipts, w.typing, w.threadSubscriptions, w.stickyEvents} {
		mark := len(w.b)
		if w.b[mark-1] != '{' {
			w.b = append(w.b, ',')
		}
		open := len(w.b)
		if err := fn(tx); err != nil {
			return err
		}
		if len(w.b) == open {
			w.b = w.b[:mark]
		}
	}
	return nil
}

func appendList(b []byte, list []json.RawMessage) []byte {
	b = append(b, '[')
	for i, e := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, e...)
	}
	return append(b, ']')
}

func (w *work) toDevice(tx *sqldb.Tx) error {
	x := w.q.ext.toDevice
	if x == nil || w.q.device == "" {
		return nil
	}
	var msgs []json.RawMessage
	upTo := w.to
	if w.s.Keys.HasToDevice(w.q.user, w.q.device, x.since) {
		if tx == nil {
			return errNeedsDB
		}
		var err error
		if msgs, upTo, err = w.s.Keys.ToDevice(w.ctx, tx, w.q.user, w.q.device, x.since, w.to, x.limit); err != nil {
			return err
		}
	}
	w.some = w.some || len(msgs) > 0
	w.b = append(w.b, `"to_device":{"next_batch":"`...)
	w.b = append(append(w.b, clientsync.Token{Pos: upTo}.String()...), `","events":`...)
	w.b = append(appendList(w.b, msgs), '}')
	return nil
}

// changed reports whether a kind may have changed for the user since a position.
func (w *work) changed(k stream.Kind, since stream.Pos) bool {
	return since < w.snap.Start || w.snap.Last[k] > since
}

// encryption tells whose keys to read again, and how many of the device's own are
// left.
func (w *work) encryption(tx *sqldb.Tx) error {
	if !w.q.ext.e2ee || w.q.device == "" {
		return nil
	}
	w.b = append(w.b, `"e2ee":{`...)
	mark := len(w.b)
	w.b = w.s.AppendKeyCounts(w.b, w.q.user, w.q.device)
	w.b = append(w.b[:mark], w.b[mark+1:]...) // the comma
	w.out.otk = string(w.b[mark:])
	w.some = w.some || w.out.otk != w.base.otk
	since := w.base.keys
	w.out.keys = w.to
	if since > 0 && w.listsChanged(since) {
		if tx == nil {
			return errNeedsDB
		}
		changed, left, err := w.s.DeviceLists(w.ctx, tx, w.q.user, since, &w.snap)
		if err != nil {
			return err
		}
		if len(changed)+len(left) > 0 {
			w.some = true
			b, err := json.Marshal(map[string][]matrix.UserID{"changed": changed, "left": left})
			if err != nil {
				return err
			}
			w.b = append(append(w.b, `,"device_lists":`...), b...)
		}
	}
	w.b = append(w.b, '}')
	return nil
}

// listsChanged reports whether anybody's devices, or those whom the user shares a
// room with, may have changed.
func (w *work) listsChanged(since stream.Pos) bool {
	if w.changed(stream.KindDeviceList, since) || w.snap.Member > since {
		return true
	}
	for i := range w.snap.Rooms {
		if r := &w.snap.Rooms[i]; r.Joined > since || r.LastState > since {
			return true
		}
	}
	return false
}

func (w *work) accountData(tx *sqldb.Tx) error {
	x := w.q.ext.accountData
	if x == nil {
		return nil
	}
	global, err := w.globalData(tx)
	if err != nil {
		return err
	}
	lacking := map[matrix.RoomID]*entry{}
	from := w.to
	for _, e := range w.wanted {
		if at := w.dataFrom(e); x.concerns(e) && w.c.personal.changed[e.id] > at {
			lacking[e.id] = e
			from = min(from, at)
		}
	}
	var byRoom map[matrix.RoomID][]accountdata.Entry
	if len(lacking) > 0 {
		if tx == nil {
			return errNeedsDB
		}
		if from == 0 {
			_, byRoom, err = w.s.Data.All(w.ctx, tx, w.q.user)
		} else {
			_, byRoom, err = w.s.Data.Since(w.ctx, tx, w.q.user, from, w.to)
		}
		if err != nil {
			return err
		}
	}
	if len(global)+len(lacking) == 0 {
		return nil
	}
	w.some = true
	w.b = append(w.b, `"account_data":{"global":`...)
	w.b = append(appendList(w.b, global), `,"rooms":{`...)
	for id, e := range lacking {
		at := w.dataFrom(e)
		var list []json.RawMessage
		for _, d := range byRoom[id] {
			if d.Pos > at {
				list = append(list, clientsync.PlainEvent(d.Type, d.Content))
			}
		}
		if len(list) > 0 {
			w.roomKey(id)
			w.b = appendList(w.b, list)
		}
		w.edit(e).data = w.to
	}
	w.b = append(w.b, `}}`...)
	return nil
}

// dataFrom is up to where the client knows the account data of a room.
func (w *work) dataFrom(e *entry) stream.Pos {
	if e.st == nil || e.fresh() {
		return 0
	}
	return e.st.data
}

// globalData is the account data outside rooms, with the push rules.
func (w *work) globalData(tx *sqldb.Tx) (out []json.RawMessage, err error) {
	since := w.base.data
	w.out.data = w.to
	if since > 0 && !w.changed(stream.KindAccountData, since) {
		return nil, nil
	}
	if tx == nil {
		return nil, errNeedsDB
	}
	var list []accountdata.Entry
	var rules []byte
	if since == 0 {
		list, _, err = w.s.Data.All(w.ctx, tx, w.q.user)
		rules = w.s.Push.Rules(w.q.user)
	} else {
		list, _, err = w.s.Data.Since(w.ctx, tx, w.q.user, since, w.to)
		rules = w.s.Push.RulesSince(w.q.user, since, w.to)
	}
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		out = append(out, clientsync.PlainEvent(e.Type, e.Content))
	}
	if rules != nil {
		out = append(out, clientsync.PlainEvent(accountdata.TypePushRules, rules))
	}
	return out, nil
}

// roomKey begins a room's member of an object.
func (w *work) roomKey(id matrix.RoomID) {
	if w.b[len(w.b)-1] != '{' {
		w.b = append(w.b, ',')
	}
	w.b = append(matrix.AppendJSONString(w.b, string(id)), ':')
}

// readReceipts tells who has read what. Of a room that is new to the client it
// tells the receipts at the events that it gets, and the user's own.
func (w *work) readReceipts(*sqldb.Tx) error {
	x := w.q.ext.receipts
	if x == nil {
		return nil
	}
	open := len(w.b)
	w.b = append(w.b, `"receipts":{"rooms":{`...)
	told := false
	for _, e := range w.wanted {
		if !e.joined() || !x.concerns(e) {
			continue
		}
		contents := e.receipts
		if e.allReceipts != nil {
			contents = receipts.Encode(slices.DeleteFunc(slices.Clone(e.allReceipts), func(r *receipts.Receipt) bool {
				return e.shown != nil && !e.shown[r.Event] && r.User != w.q.user
			}))
		}
		if e.st != nil && !e.fresh() && len(e.st.more) > 0 {
			contents = slices.Concat(e.st.more, contents)
		}
		if len(contents) == 0 {
			continue
		}
		told = true
		w.roomKey(e.id)
		w.b = append(w.b, clientsync.PlainEvent("m.receipt", contents[0])...)
		st := w.edit(e)
		st.receipts, st.more = w.to, contents[1:]
	}
	w.end(open, told)
	return nil
}

// end closes the rooms of an extension, or takes it back where there are none.
func (w *work) end(open int, told bool) {
	if !told {
		w.b = w.b[:open]
		return
	}
	w.some = true
	w.b = append(w.b, `}}`...)
}

func (w *work) typing(*sqldb.Tx) error {
	x := w.q.ext.typing
	if x == nil {
		return nil
	}
	open := len(w.b)
	w.b = append(w.b, `"typing":{"rooms":{`...)
	told := false
	for _, e := range w.wanted {
		if !e.joined() || !x.concerns(e) {
			continue
		}
		var from int64
		if e.st != nil && !e.fresh() {
			from = e.st.typing
		}
		if e.room.Typing <= from {
			continue
		}
		content := w.s.Typing.Since(e.id, from)
		if content == nil {
			continue
		}
		told = true
		w.roomKey(e.id)
		w.b = append(w.b, clientsync.PlainEvent("m.typing", content)...)
		w.edit(e).typing = w.eph
	}
	w.end(open, told)
	return nil
}

// threadSubscriptions tells which threads the user follows and no longer follows;
// those that do not fit are read from the endpoint for it.
//
// Spec: MSC4308
func (w *work) threadSubscriptions(tx *sqldb.Tx) error {
	x := w.q.ext.threads
	if x == nil {
		return nil
	}
	since := w.base.threads
	w.out.threads = w.to
	if since > 0 && !w.changed(stream.KindThreadSubscription, since) {
		return nil
	}
	if tx == nil {
		return errNeedsDB
	}
	p, err := w.s.threads.Page(tx, w.q.user, since, w.to, x.limit)
	if err != nil || len(p.Subscribed)+len(p.Unsubscribed) == 0 {
		return err
	}
	b, err := json.Marshal(struct {
		subscriptions.Page
		More string `json:"prev_batch,omitempty"`
	}{p, p.More})
	if err != nil {
		return err
	}
	w.some = true
	w.b = append(matrix.AppendJSONString(w.b, x.name), ':')
	w.b = append(w.b, b...)
	return nil
}
