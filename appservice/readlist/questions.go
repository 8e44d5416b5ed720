package readlist

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/appservice/lang"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// shownNames is how many names of a list the bot tells.
const shownNames = 50

// question is somebody's wish, in a room, to know the readers of a message.
type question struct {
	message string
	plain   bool // 👀 or a bare word: only asked about one's own message, else it is talk among people
}

// asked reads a question from an event: an eye on the message, or a reply to it with the command.
func asked(ev *mxclient.Event) (q question, ok bool) {
	var c content
	if ev.StateKey != nil || json.Unmarshal(ev.Content, &c) != nil {
		return q, false
	}
	rel := &c.RelatesTo
	switch ev.Type {
	case "m.reaction":
		if rel.RelType == "m.annotation" && strings.TrimRight(rel.Key, "\ufe0f\ufe0e") == "\U0001F440" {
			return question{message: rel.EventID, plain: true}, mxclient.Identifier(rel.EventID)
		}
	case "m.room.message":
		if rel.RelType == "m.replace" || !mxclient.Identifier(rel.InReplyTo.EventID) || c.MsgType != "m.text" {
			return q, false
		}
		switch strings.ToLower(strings.TrimSpace(Unquoted(c.Body))) {
		case "!readers", "！readers", "!已读", "！已读":
			return question{message: rel.InReplyTo.EventID}, true
		case "已读":
			return question{message: rel.InReplyTo.EventID, plain: true}, true
		}
	}
	return q, false
}

// Unquoted is a message's text without the quotation that clients put before a reply.
func Unquoted(body string) string {
	if !strings.HasPrefix(body, "> ") {
		return body
	}
	for strings.HasPrefix(body, ">") {
		_, rest, found := strings.Cut(body, "\n")
		if !found {
			return ""
		}
		body = rest
	}
	return strings.TrimPrefix(body, "\n")
}

// answer tells a person in their DING room who has read the message they ask about. The key of what is told comes
// from the question, so a repeated transaction tells it once.
func (l *Lists) answer(ctx context.Context, ev *mxclient.Event) error {
	if l.opts.Outbox == nil || l.bots[ev.Sender] {
		return nil
	}
	q, ok := asked(ev)
	if !ok {
		return nil
	}
	asker, ok := l.opts.Roster.PersonOf(ev.Sender)
	if !ok || asker.Gone || asker.Elsewhere { // who asks elsewhere is answered there
		return nil
	}
	if done, err := l.opts.Outbox.ByKey(ctx, answerKey(ev)); err != nil || done != nil {
		return err
	}
	if q.plain {
		r, e, err := l.message(ctx, ev.Room, q.message)
		if err != nil || e.sender != ev.Sender || r == nil {
			return ignoreRefusal(err)
		}
	}
	in := lang.Chinese
	if l.opts.Lang != nil {
		in = l.opts.Lang.Of(ev.Sender)
	}
	text, err := l.describe(ctx, ev.Room, q.message, Viewer{User: ev.Sender, Admin: l.opts.IsAdmin != nil && l.opts.IsAdmin(ev.Sender)}, in)
	if err != nil {
		return err
	}
	return l.opts.Outbox.Say(ctx, answerKey(ev), asker.ID, text)
}

func answerKey(ev *mxclient.Event) string { return "readers/" + ev.ID }

func ignoreRefusal(err error) error {
	var refusal *matrix.Error
	if errors.As(err, &refusal) {
		return nil
	}
	return err
}

// describe writes the lists of a message, or why they are not shown.
func (l *Lists) describe(ctx context.Context, roomID, eventID string, v Viewer, in lang.Lang) (string, error) {
	var b strings.Builder
	q := Query{Room: roomID, Event: eventID, Limit: shownNames}
	var total int
	for i, state := range []string{Read, Unread, Left} {
		q.State = state
		page, err := l.Readers(ctx, v, q)
		switch {
		case matrix.IsCode(err, "M_FORBIDDEN"):
			return in.Pick("只有消息的发送者、群管理员和审计员可以查看已读名单。", "Only the sender of a message, the room's managers and auditors may see who has read it."), nil
		case matrix.IsCode(err, "M_NOT_FOUND"):
			return in.Pick("找不到这条消息，无法查看已读名单。", "That message is not known, so its readers are not either."), nil
		case err != nil:
			return "", err
		}
		count := []int{page.TotalRead, page.TotalUnread, page.TotalLeft}[i]
		if i == 0 {
			sent := l.clockTime(page.SentAt, page.AsOf)
			now := time.UnixMilli(page.AsOf).In(l.opts.Location).Format("15:04:05")
			fmt.Fprintf(&b, in.Pick("%s 发送的消息，截至 %s：", "Message sent %s, as of %s:"), sent, now)
			lags(&b, page, in)
		}
		if count == 0 && state == Left {
			continue
		}
		title := map[string]string{
			Read: in.Pick("已读", "Read"), Unread: in.Pick("未读", "Unread"), Left: in.Pick("未读已离开", "Left unread"),
		}[state]
		fmt.Fprintf(&b, "\n%s (%d)", title, count)
		l.names(&b, page, in)
		total = max(total, count)
	}
	if total > shownNames {
		where := l.opts.BaseURL + "/_carillon/v1/messages/" + url.PathEscape(roomID) + "/" + url.PathEscape(eventID) + "/readers"
		fmt.Fprintf(&b, in.Pick("\n完整名单：%s", "\nThe whole list: %s"), where)
	}
	return b.String(), nil
}

func (l *Lists) names(b *strings.Builder, page *Page, in lang.Lang) {
	for i := range page.Readers {
		rd := &page.Readers[i]
		name := rd.User
		if rd.Person != nil {
			name = rd.Person.Name
		}
		b.WriteString([]string{in.Pick("、", ", "), in.Pick("：", ": ")}[b2i(i == 0)])
		b.WriteString(name)
		if rd.ReadAt != 0 {
			b.WriteString(" " + l.clockTime(rd.ReadAt, page.AsOf))
		}
		if rd.BeforeEdit {
			b.WriteString(in.Pick("（修改前）", " (before the edit)"))
		}
	}
	if page.Next != "" {
		b.WriteString(in.Pick(" ……", ", ..."))
	}
}

// longLag is from which lag on people are told of it.
const longLag = time.Minute

// lags names the sites of which the newest may not have come.
func lags(b *strings.Builder, page *Page, in lang.Lang) {
	for _, site := range slices.Sorted(maps.Keys(page.LagBySite)) {
		if behind := time.Duration(page.LagBySite[site].Behind) * time.Millisecond; behind >= longLag {
			fmt.Fprintf(b, in.Pick("\n%s 已 %s 没有联系，其名单可能不是最新的", "\n%s has not been heard of for %s, its people may have read more"), site, in.Duration(behind.Truncate(time.Second)))
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// clockTime is a time of day, with the date unless it is today.
func (l *Lists) clockTime(ms, now int64) string {
	t, n := time.UnixMilli(ms).In(l.opts.Location), time.UnixMilli(now).In(l.opts.Location)
	switch {
	case t.YearDay() == n.YearDay() && t.Year() == n.Year():
		return t.Format("15:04")
	case t.Year() == n.Year():
		return t.Format("01-02 15:04")
	}
	return t.Format("2006-01-02 15:04")
}
