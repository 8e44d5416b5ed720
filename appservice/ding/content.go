package ding

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"html"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/appservice/lang"
	"github.com/carillon-chat/carillon/bridges/bridge"
)

// Event types and keys.
const (
	typeDing    = "im.carillon.ding"
	typeConfirm = "im.carillon.ding.confirm"
	keyCard     = "im.carillon.ding.card"
	typeMessage = "m.room.message"
)

// Keys of outbox items are "ding/<id>/<what>/<person>".
const (
	itemDelivery = "d"
	itemRetract  = "r"
	itemRecord   = "k" // of a confirmation
	itemCard     = "c"
)

// Priorities in the outbox: what is urgent first, what is only recorded last.
const (
	urgent, normal, cardFirst, recordsLast = 0, 1, 2, 5
)

func itemKey(ding, what, person string) string { return "ding/" + ding + "/" + what + "/" + person }

// splitKey is the reverse; ok is false for the keys of others.
func splitKey(key string) (ding, what, person string, ok bool) {
	parts := strings.SplitN(key, "/", 4)
	if len(parts) != 4 || parts[0] != "ding" {
		return "", "", "", false
	}
	return parts[1], parts[2], parts[3], true
}

func group(ding string) string { return "ding/" + ding }

type personContent struct {
	User   string `json:"user_id"`
	Person string `json:"person_id"`
	Name   string `json:"name"`
}

// record is the content of im.carillon.ding.
type record struct {
	Ding      string         `json:"ding_id"`
	Kind      string         `json:"kind"`
	Body      string         `json:"body"`
	Need      string         `json:"need"`
	Sender    personContent  `json:"sender"`
	Receiver  *personContent `json:"receiver,omitempty"`
	Total     *int           `json:"total,omitempty"`
	Source    *Source        `json:"source,omitempty"`
	SentAt    int64          `json:"sent_at"`
	ExpiresAt int64          `json:"expires_at"`
}

// companionKey is what a message carries under the record's type.
type companionKey struct {
	Ding   string `json:"ding_id"`
	Person string `json:"person_id"`
}

// outgoing are the messages to the receivers of a fired DING.
func (d *Dings) outgoing(l *live) []bridge.New {
	items := make([]bridge.New, 0, len(l.to))
	sender := d.personContent(l.Sender, l.SenderUser)
	expires := time.UnixMilli(l.ExpiresAt)
	for i := range l.to {
		t := &l.to[i]
		if t.Site != "" { // another site delivers
			continue
		}
		receiver := d.personContent(t.Person, t.User)
		rec := record{
			Ding: l.ID, Kind: l.Kind, Body: l.Body, Need: "confirm", Sender: sender, Receiver: &receiver, Source: l.Receivers.UnreadOf,
			SentAt: l.FiredAt, ExpiresAt: l.ExpiresAt,
		}
		in := d.opts.Lang.Of(t.User)
		msg := message(noticeLines(l, sender.Name, in)...)
		msg[typeDing] = companionKey{Ding: l.ID, Person: t.Person}
		msg["m.mentions"] = map[string]any{"user_ids": []string{t.User}}
		it := bridge.Message(itemKey(l.ID, itemDelivery, t.Person), bridge.AppMessage{Person: t.Person, Events: []bridge.AppEvent{
			{Type: typeDing, Content: json.RawMessage(mustJSON(rec))},
			{Type: typeMessage, Content: json.RawMessage(mustJSON(msg)), Reference: true},
		}})
		it.Group, it.Expires, it.Priority = group(l.ID), expires, normal
		if l.Kind == Emergency {
			it.Priority = urgent
		}
		items = append(items, it)
	}
	return items
}

func (d *Dings) personContent(person, user string) personContent {
	return personContent{User: user, Person: person, Name: d.nameOf(person)}
}

// line is a line of a message; the strong part stands before the text.
type line struct{ strong, text string }

// message makes the content of an m.room.message of lines.
func message(lines ...line) map[string]any {
	var plain, formatted strings.Builder
	for i, ln := range lines {
		if i > 0 {
			plain.WriteByte('\n')
			formatted.WriteString("<br>")
		}
		plain.WriteString(ln.strong + ln.text)
		if ln.strong != "" {
			formatted.WriteString("<strong>" + html.EscapeString(ln.strong) + "</strong>")
		}
		formatted.WriteString(strings.ReplaceAll(html.EscapeString(ln.text), "\n", "<br>"))
	}
	return map[string]any{
		"msgtype": "m.text", "body": plain.String(), "format": "org.matrix.custom.html", "formatted_body": formatted.String(),
	}
}

// noticeLines is what a receiver reads.
func noticeLines(l *live, sender string, in lang.Lang) []line {
	word := in.Pick(" DING：", " DING: ")
	if l.Kind == Emergency {
		word = in.Pick(" 紧急 DING：", " urgent DING: ")
	}
	body := l.Body
	if body == "" {
		body = in.Pick("请查看这条消息", "please read this message")
	}
	lines := []line{{sender + word, body}}
	if s := l.Receivers.UnreadOf; s != nil {
		lines = append(lines, line{"", "https://matrix.to/#/" + url.PathEscape(s.Room) + "/" + url.PathEscape(s.Event)})
	}
	return append(lines, line{"", in.Pick("点 ✅ 或回复“收到”确认", "React with ✅ or reply “ok” to confirm")})
}

// retraction is the edit that takes a DING back in a receiver's room.
func (d *Dings) retraction(l *live, t *Delivery) bridge.New {
	in := d.opts.Lang.Of(t.User)
	text := d.nameOf(l.Sender) + in.Pick(" 撤回了这条 DING", " has recalled this DING")
	msg := edit(t.Event, message(line{"", text}))
	msg[typeDing] = companionKey{Ding: l.ID, Person: t.Person}
	msg["m.new_content"].(map[string]any)[typeDing] = companionKey{Ding: l.ID, Person: t.Person}
	it := bridge.Message(itemKey(l.ID, itemRetract, t.Person), bridge.AppMessage{Person: t.Person, Events: []bridge.AppEvent{
		{Type: typeMessage, Content: json.RawMessage(mustJSON(msg))},
	}})
	it.Group = group(l.ID) + "/after"
	return it
}

// edit makes content replace an event.
func edit(event string, content map[string]any) map[string]any {
	out := make(map[string]any, len(content)+3)
	for k, v := range content {
		out[k] = v
	}
	out["body"] = "* " + content["body"].(string)
	if f, ok := content["formatted_body"].(string); ok {
		out["formatted_body"] = "* " + f
	}
	content["m.mentions"] = map[string]any{}
	out["m.mentions"] = map[string]any{} // an edit must not ring again
	out["m.new_content"] = content
	out["m.relates_to"] = map[string]any{"rel_type": "m.replace", "event_id": event}
	return out
}

// confirmation is the record of a confirmation in the receiver's room.
func (d *Dings) confirmation(l *live, t *Delivery, at int64, via string, late bool) bridge.New {
	content := map[string]any{
		"ding_id": l.ID, "user_id": t.User, "person_id": t.Person, "confirmed_at": at, "via": via,
	}
	if late {
		content["late"] = true
	}
	if t.Record != "" {
		content["m.relates_to"] = map[string]any{"rel_type": "m.reference", "event_id": t.Record}
	}
	it := bridge.Message(itemKey(l.ID, itemRecord, t.Person), bridge.AppMessage{Person: t.Person, Events: []bridge.AppEvent{
		{Type: typeConfirm, Content: json.RawMessage(mustJSON(content))},
	}})
	it.Group, it.Priority = group(l.ID)+"/after", recordsLast
	return it
}

// card is the sender's card, with a short mark of what it shows.
type card struct {
	content map[string]any
	shown   string
	item    bridge.New
}

// firstCard is the record and the card in the sender's DING room.
func (d *Dings) firstCard(l *live) card {
	l.recount()
	c := d.card(l)
	total := len(l.to)
	rec := record{
		Ding: l.ID, Kind: l.Kind, Body: l.Body, Need: "confirm", Sender: d.personContent(l.Sender, l.SenderUser), Total: &total,
		Source: l.Receivers.UnreadOf, SentAt: l.FireAt, ExpiresAt: l.ExpiresAt,
	}
	c.item = bridge.Message(itemKey(l.ID, itemCard, l.Sender), bridge.AppMessage{Person: l.Sender, Events: []bridge.AppEvent{
		{Type: typeDing, Content: json.RawMessage(mustJSON(rec))},
		{Type: typeMessage, Content: json.RawMessage(mustJSON(c.content)), Reference: true},
	}})
	c.item.Group, c.item.Priority = group(l.ID)+"/after", cardFirst
	return c
}

// shownNames is how many names a card tells of each kind.
const shownNames = 20

// card writes the state of a DING for its sender. The caller holds mu, or is alone with l.
func (d *Dings) card(l *live) card {
	in := d.opts.Lang.Of(l.SenderUser)
	n := &l.n
	title := in.Pick("我的 DING：", "My DING: ")
	if l.Kind == Emergency {
		title = in.Pick("我的紧急 DING：", "My urgent DING: ")
	}
	body := l.Body
	if body == "" {
		body = in.Pick("请查看未读消息", "an unread message")
	}
	if r := []rune(body); len(r) > 80 {
		body = string(r[:80]) + "…"
	}
	lines := []line{{title, body}, {"", d.standing(l, in)}}
	if l.FiredAt != 0 {
		lines = append(lines, line{"", fmt.Sprintf(in.Pick("发给 %d 人：已确认 %d，未确认 %d，发送中 %d，失败 %d", "To %d: %d confirmed, %d not yet, %d on their way, %d failed"),
			n.Total, n.Confirmed, n.Sent, n.Queued, n.Failed+n.Expired)})
	}
	lines = append(lines, d.siteLines(l, in)...)
	if n.AlreadyRead > 0 {
		lines = append(lines, line{"", fmt.Sprintf(in.Pick("%d 人中已有 %d 人读过消息", "Of %d, %d had read the message already"), n.Total+n.AlreadyRead, n.AlreadyRead)})
	}
	if n.Late > 0 {
		lines = append(lines, line{"", fmt.Sprintf(in.Pick("结束后确认 %d", "%d confirmed after the end"), n.Late)})
	}
	if names := d.waiting(l, in); names != "" {
		lines = append(lines, line{in.Pick("未确认：", "Not yet: "), names})
	}
	if len(l.Skipped) > 0 {
		lines = append(lines, line{in.Pick("跳过：", "Passed over: "), skippedNames(l.Skipped, in)})
	}
	content := message(lines...)
	content["msgtype"] = "m.notice"
	content[keyCard] = map[string]any{
		"ding_id": l.ID, "state": l.State, "total": n.Total, "sent": n.WentOut, "confirmed": n.Confirmed, "failed": n.Failed + n.Expired,
		"recalled": n.Recalled, "late": n.Late, "skipped": n.Skipped,
	}
	h := fnv.New64a()
	h.Write([]byte(mustJSON(content)))
	return card{content: content, shown: strconv.FormatUint(h.Sum64(), 36)}
}

// standing says in a sentence how a DING stands.
func (d *Dings) standing(l *live, in lang.Lang) string {
	at := func(ms int64) string { return time.UnixMilli(ms).In(d.opts.Location).Format("01-02 15:04") }
	switch l.State {
	case Scheduled:
		return fmt.Sprintf(in.Pick("定时于 %s 发出", "Will be sent %s"), at(l.FireAt))
	case Confirmed:
		took := time.Duration(l.EndedAt-l.FiredAt) * time.Millisecond
		return fmt.Sprintf(in.Pick("全部确认，用时 %s", "All have confirmed, in %s"), in.Duration(took))
	case Expired:
		return in.Pick("已过期", "Over: the time for confirming has passed")
	case Recalled:
		return fmt.Sprintf(in.Pick("已撤回；撤回前已送达 %d 人", "Recalled; it had reached %d"), l.n.WentOut)
	case Missed:
		return in.Pick("错过了发送时间，没有发出", "Its time was missed, it was not sent")
	case Cancelled:
		return in.Pick("发送人已离职，已取消", "Cancelled: the sender has left")
	case Refused:
		return in.Pick("没有发出：", "Not sent: ") + l.Reason
	}
	if l.n.WentOut < l.n.Total-l.n.Failed {
		return in.Pick("发送中", "On its way")
	}
	return in.Pick("已发出，等待确认", "Sent, waiting for confirmations")
}

func (d *Dings) waiting(l *live, in lang.Lang) string {
	if l.State != Open && l.State != Expired || l.n.Confirmed == 0 && l.n.Total > 3*shownNames {
		return "" // a list of everybody tells nothing
	}
	var names []string
	more := 0
	for i := range l.to {
		if l.to[i].State != Sent {
			continue
		}
		if len(names) == shownNames {
			more++
			continue
		}
		names = append(names, d.nameOf(l.to[i].Person))
	}
	return list(names, more, in)
}

func list(names []string, more int, in lang.Lang) string {
	s := strings.Join(names, in.Pick("、", ", "))
	if more > 0 {
		s += fmt.Sprintf(in.Pick(" 等另外 %d 人", " and %d more"), more)
	}
	return s
}

// reasonText says why somebody is passed over.
func reasonText(reason string, in lang.Lang) string {
	switch reason {
	case "self":
		return in.Pick("本人", "yourself")
	case "left":
		return in.Pick("已离职", "has left")
	case "not_active":
		return in.Pick("未入职", "has not begun")
	case "suspended":
		return in.Pick("已停用", "suspended")
	case "unit_removed":
		return in.Pick("部门已撤销", "unit removed")
	}
	return in.Pick("不在通讯录", "not in the directory")
}

func skippedNames(skipped []Skip, in lang.Lang) string {
	var names []string
	more := 0
	for _, s := range skipped {
		if len(names) == shownNames {
			more++
			continue
		}
		names = append(names, s.Name+in.Pick("（", " (")+reasonText(s.Reason, in)+in.Pick("）", ")"))
	}
	return list(names, more, in)
}
