package ding

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/lang"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/readlist"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// staleAfter is how old a command may be: one that was held up for long is answered, not obeyed.
const staleAfter = time.Hour

// content is the part of an event's content that matters here.
type content struct {
	MsgType   string          `json:"msgtype"`
	Body      string          `json:"body"`
	Formatted string          `json:"formatted_body"`
	Ding      json.RawMessage `json:"im.carillon.ding"`
	RelatesTo struct {
		RelType   string `json:"rel_type"`
		EventID   string `json:"event_id"`
		Key       string `json:"key"`
		InReplyTo struct {
			EventID string `json:"event_id"`
		} `json:"m.in_reply_to"`
	} `json:"m.relates_to"`
}

// about is the message that a reply, quoted or in a thread, is about. A thread's reply names the last message of the
// thread as a fallback, so there the root comes first.
func (c *content) about() []string {
	var ids []string
	if c.RelatesTo.RelType == "m.thread" {
		ids = append(ids, c.RelatesTo.EventID)
	}
	ids = append(ids, c.RelatesTo.InReplyTo.EventID)
	return slices.DeleteFunc(ids, func(e string) bool { return !mxclient.Identifier(e) })
}

// OnEvent takes one event; see OnEvents.
func (d *Dings) OnEvent(ctx context.Context, ev *mxclient.Event) error {
	return d.OnEvents(ctx, []*mxclient.Event{ev})
}

// OnEvents takes the events of one transaction: confirmations, which are stored together, and commands. When it
// returns nil everything is durable; a repeated transaction changes nothing.
func (d *Dings) OnEvents(ctx context.Context, evs []*mxclient.Event) error {
	var answers []answer
	for _, ev := range evs {
		if ev.StateKey != nil {
			continue
		}
		var err error
		switch ev.Type {
		case "m.reaction", typeConfirm:
			answers, err = d.takeAnswer(ctx, ev, answers)
		case typeMessage:
			answers, err = d.takeMessage(ctx, ev, answers)
		}
		if err != nil {
			return fmt.Errorf("taking event %s: %w", ev.ID, err)
		}
	}
	return d.confirm(ctx, answers)
}

// takeAnswer takes a reaction or a confirmation event in the sender's own DING room.
func (d *Dings) takeAnswer(ctx context.Context, ev *mxclient.Event, answers []answer) ([]answer, error) {
	person, ok := d.opts.Rooms.DingPerson(id.RoomID(ev.Room))
	if !ok || ev.Sender == string(d.opts.Matrix.BotID()) {
		return answers, nil
	}
	if ev.Type == typeConfirm {
		if err := d.schemas.Validate(typeConfirm, ev.Content); err != nil {
			log.WithFields(log.Fields{"event_id": ev.ID, "user_id": ev.Sender}).WithError(err).Info("Confirmation that does not fit its schema")
			return answers, nil
		}
		var c struct {
			Ding string `json:"ding_id"`
		}
		if err := json.Unmarshal(ev.Content, &c); err != nil {
			return answers, nil
		}
		l, err := d.get(ctx, c.Ding)
		if err != nil || l == nil {
			return answers, err
		}
		return d.answerOf(answers, l, person, ev, viaEvent), nil
	}
	var c content
	if json.Unmarshal(ev.Content, &c) != nil || c.RelatesTo.RelType != "m.annotation" || !d.reactions[plainReaction(c.RelatesTo.Key)] {
		return answers, nil
	}
	l, err := d.about(ctx, ev.Room, person, c.RelatesTo.EventID)
	if err != nil || l == nil {
		return answers, err
	}
	return d.answerOf(answers, l, person, ev, viaReaction), nil
}

// answerOf adds the confirmation of a person, if the event is theirs.
func (d *Dings) answerOf(answers []answer, l *live, person string, ev *mxclient.Event, via string) []answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, ok := l.index[person]
	if !ok || l.to[i].User != ev.Sender {
		return answers
	}
	now := d.millis()
	at := now
	if ev.TS > l.FiredAt && ev.TS < now { // the sender's clock, within what is possible
		at = ev.TS
	}
	return append(answers, answer{l: l, i: i, at: at, via: via})
}

// about finds the DING of a message in a person's DING room: in memory, in the tables, or, when the message is on the
// way to becoming known, by asking the homeserver for it.
func (d *Dings) about(ctx context.Context, room, person, event string) (*live, error) {
	if !mxclient.Identifier(event) {
		return nil, nil
	}
	d.mu.Lock()
	r, ok := d.events[event]
	theirs := ok && r.l.to[r.i].Person == person
	d.mu.Unlock()
	if theirs {
		return r.l, nil
	}
	if ok {
		return nil, nil // another's message
	}
	var dingID string
	err := d.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qByEvent, event, person).Scan(&dingID) })
	switch {
	case err == nil:
		return d.get(ctx, dingID)
	case !errors.Is(err, sqldb.ErrNoRows):
		return nil, fmt.Errorf("looking for a DING by its message: %w", err)
	}
	ev, err := d.opts.Matrix.Event(ctx, "", id.RoomID(room), id.EventID(event))
	if mxclient.IsPermanent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking for a message: %w", err)
	}
	if ev.Type == typeDing && ev.Sender == string(d.opts.Matrix.BotID()) { // a client that shows the record itself
		var rec struct {
			Ding string `json:"ding_id"`
		}
		if json.Unmarshal(ev.Content, &rec) != nil {
			return nil, nil
		}
		return d.get(ctx, rec.Ding)
	}
	key, ok := d.companion(ev)
	if !ok || key.Person != person {
		return nil, nil
	}
	return d.get(ctx, key.Ding)
}

// companion is whose DING the bot's message is.
func (d *Dings) companion(ev *mxclient.Event) (key companionKey, ok bool) {
	var c content
	if ev.Sender != string(d.opts.Matrix.BotID()) || json.Unmarshal(ev.Content, &c) != nil || len(c.Ding) == 0 || c.RelatesTo.RelType == "m.replace" {
		return key, false
	}
	return key, json.Unmarshal(c.Ding, &key) == nil && key.Ding != ""
}

// takeMessage takes a person's command or reply, or learns of the bot's own message.
func (d *Dings) takeMessage(ctx context.Context, ev *mxclient.Event, answers []answer) ([]answer, error) {
	if ev.Sender == string(d.opts.Matrix.BotID()) {
		return answers, d.ownMessage(ctx, ev)
	}
	var c content
	if json.Unmarshal(ev.Content, &c) != nil || c.MsgType != "m.text" || c.RelatesTo.RelType == "m.replace" {
		return answers, nil
	}
	text := readlist.Unquoted(c.Body)
	if name, rest, ok := isCommand(text); ok {
		if linked, ok := plainText(c.Formatted); ok {
			if n, r, ok := isCommand(linked); ok {
				name, rest = n, r
			}
		}
		return answers, d.obey(ctx, ev, &c, name, rest)
	}
	person, ok := d.opts.Rooms.DingPerson(id.RoomID(ev.Room))
	if !ok || !d.isConfirmation(text) {
		return answers, nil
	}
	if about := c.about(); len(about) > 0 {
		for _, event := range about {
			l, err := d.about(ctx, ev.Room, person, event)
			if err != nil {
				return answers, err
			}
			if l != nil {
				return d.answerOf(answers, l, person, ev, viaReply), nil
			}
		}
		return answers, nil
	}
	open, coming := d.openOf(person)
	if len(open)+coming > 1 {
		in := d.opts.Lang.Of(ev.Sender)
		return answers, d.opts.Outbox.Say(ctx, "ding-which/"+ev.ID, person, fmt.Sprintf(
			in.Pick("你有 %d 条未确认的 DING，请直接回复（引用）要确认的那一条，或点 ✅。", "You have %d DINGs to confirm: reply to the one you mean, or react to it with ✅."), len(open)+coming))
	}
	for _, l := range open {
		answers = d.answerOf(answers, l, person, ev, viaReply)
	}
	return answers, nil
}

// openOf are the DINGs that a person has received and not confirmed, and how many more are on their way.
func (d *Dings) openOf(person string) (open []*live, coming int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.live {
		i, ok := l.index[person]
		if !ok || l.State != Open || l.to[i].ConfirmedAt != 0 {
			continue
		}
		switch t := &l.to[i]; {
		case t.State == Sent || t.seen:
			open = append(open, l)
		case t.State == Queued:
			coming++
		}
	}
	return open, coming
}

// ownMessage learns from the bot's message in a DING room that it has gone out, which may be before the outbox says so.
func (d *Dings) ownMessage(ctx context.Context, ev *mxclient.Event) error {
	key, ok := d.companion(ev)
	if !ok {
		return nil
	}
	l, err := d.get(ctx, key.Ding)
	if err != nil || l == nil {
		return err
	}
	d.mu.Lock()
	i, ok := l.index[key.Person]
	fresh := ok && l.to[i].Event == ""
	recalled := l.State == Recalled
	if fresh {
		d.events[ev.ID] = ref{l, i}
		l.to[i].seen = true
	}
	d.mu.Unlock()
	if !fresh || !recalled {
		return nil
	}
	return d.apply(ctx, []outcome{{l: l, i: i, state: Sent, room: ev.Room, event: ev.ID, at: ev.TS}})
}

// obey carries out a command. What comes of it is told in the person's DING room: a DING by its card, the rest by a
// notice whose key comes from the command, so that a repeated transaction tells it once.
func (d *Dings) obey(ctx context.Context, ev *mxclient.Event, c *content, name, rest string) error {
	p := d.personOf(ev.Sender)
	if p == nil || !d.isHere(ev.Sender) { // people of other sites are obeyed there
		return nil
	}
	in := d.opts.Lang.Of(ev.Sender)
	key := "ding-command/" + ev.ID
	if done, err := d.opts.Outbox.ByKey(ctx, key); err != nil || done != nil {
		return err
	}
	text, err := d.carryOut(ctx, ev, c, name, rest, in)
	var refusal *matrix.Error
	if errors.As(err, &refusal) {
		text, err = refusalText(refusal, in), nil
	}
	if err != nil || text == "" {
		return err
	}
	return d.opts.Outbox.Say(ctx, key, p.ID, text)
}

// carryOut does what a command says and returns what there is to tell.
func (d *Dings) carryOut(ctx context.Context, ev *mxclient.Event, c *content, name, rest string, in lang.Lang) (string, error) {
	now := d.opts.Now().In(d.opts.Location)
	replied := ""
	if about := c.about(); len(about) > 0 {
		replied = about[len(about)-1] // in a thread, the message replied to rather than the root
	}
	cmd, problem := parseCommand(name, rest, replied != "", now)
	if problem != "" {
		return problemText(problem, in) + "\n\n" + usage(in), nil
	}
	switch cmd.verb {
	case "help":
		return usage(in), nil
	case "lang":
		l, ok := lang.Parse(cmd.arg)
		if !ok {
			return in.Pick("用法：!lang zh 或 !lang en", "Usage: !lang zh or !lang en"), nil
		}
		if err := d.opts.Lang.Set(ctx, ev.Sender, l); err != nil {
			return "", err
		}
		return l.Pick("好的，以后用中文。", "From now on in English."), nil
	case "recall":
		return d.recallCommand(ctx, ev, c, cmd.arg, in)
	}
	if ev.TS < now.Add(-staleAfter).UnixMilli() {
		return in.Pick("这条 !ding 到达得太晚，没有执行。如仍需要请重新发送。", "This !ding arrived too late and was not carried out. Send it again if it is still needed."), nil
	}
	req := Request{UUID: "event:" + ev.ID, Body: strings.TrimSpace(cmd.text), Receivers: Receivers{Persons: cmd.people, Units: cmd.units, Everybody: cmd.all}}
	if cmd.urgent {
		req.Kind = Emergency
	}
	if !cmd.at.IsZero() {
		req.FireAt = cmd.at.UnixMilli()
	}
	if replied != "" && !cmd.all && len(cmd.people)+len(cmd.units) == 0 {
		req.Receivers.UnreadOf = &Source{Room: ev.Room, Event: replied}
	}
	if replied != "" && req.Body == "" && req.Receivers.UnreadOf == nil {
		req.Body = in.Pick("请查看 ", "Please read ") + "https://matrix.to/#/" + ev.Room + "/" + replied
	}
	_, _, err := d.Create(ctx, Caller{User: ev.Sender}, req)
	return "", err
}

// recallCommand recalls the DING whose card was replied to, the one named, or else the last.
func (d *Dings) recallCommand(ctx context.Context, ev *mxclient.Event, c *content, dingID string, in lang.Lang) (string, error) {
	p := d.personOf(ev.Sender)
	for _, event := range c.about() {
		if dingID != "" {
			break
		}
		d.mu.Lock()
		dingID = d.cards[event]
		d.mu.Unlock()
		if dingID == "" {
			err := d.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qByCard, event).Scan(&dingID) })
			if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
				return "", fmt.Errorf("looking for a DING by its card: %w", err)
			}
		}
		if dingID == "" {
			var err error
			if dingID, err = d.ofCard(ctx, ev.Room, event); err != nil {
				return "", err
			}
		}
	}
	if dingID == "" && len(c.about()) == 0 {
		err := d.db.Read(ctx, func(tx *sqldb.Tx) error {
			return tx.QueryRow(qNewest, p.ID, d.millis()-24*time.Hour.Milliseconds()).Scan(&dingID)
		})
		if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
			return "", fmt.Errorf("looking for the last DING: %w", err)
		}
	}
	if dingID == "" {
		return in.Pick("没有可以撤回的 DING。", "There is no DING to recall."), nil
	}
	if err := d.Recall(ctx, Caller{User: ev.Sender}, dingID); err != nil {
		return "", err
	}
	l, err := d.get(ctx, dingID)
	if err != nil || l == nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return fmt.Sprintf(in.Pick("已撤回。撤回前已送达 %d 人，其中 %d 人已确认。", "Recalled. It had reached %d, of whom %d had confirmed."), l.n.WentOut, l.n.Confirmed), nil
}

// ofCard asks the homeserver for a card that is not known yet: people can be quicker than the outbox's word that it is
// out.
func (d *Dings) ofCard(ctx context.Context, room, event string) (dingID string, err error) {
	ev, err := d.opts.Matrix.Event(ctx, "", id.RoomID(room), id.EventID(event))
	if mxclient.IsPermanent(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("asking for a card: %w", err)
	}
	var c struct {
		Card struct {
			Ding string `json:"ding_id"`
		} `json:"im.carillon.ding.card"`
	}
	if ev.Sender != string(d.opts.Matrix.BotID()) || json.Unmarshal(ev.Content, &c) != nil {
		return "", nil
	}
	return c.Card.Ding, nil
}

func problemText(problem string, in lang.Lang) string {
	switch problem {
	case badTime:
		return in.Pick("看不懂时间，或时间已过。", "The time is not understood, or has passed.")
	case badTarget:
		return in.Pick("看不懂接收人。", "The receivers are not understood.")
	case noText:
		return in.Pick("还缺 DING 的内容。", "The text of the DING is missing.")
	}
	return in.Pick("还缺接收人。", "The receivers are missing.")
}

func usage(in lang.Lang) string {
	return in.Pick(`DING 用法：
回复一条消息 !ding —— DING 未读这条消息的人
!ding @张三 @李四 内容
!ding unit:技术部 内容（含下级部门）
!ding all 内容（全员）
!ding at 18:30 @张三 内容（定时，也可写 at 明天 08:00、at 2026-12-01 09:00、in 10m）
!ding 紧急 @张三 内容（紧急，限主管和管理员）
!ding recall —— 撤回最近一条，或回复 DING 卡片
!lang en —— 切换为英文
确认：点 ✅ 或回复“收到”`, `How to DING:
reply to a message with !ding - DINGs those who have not read it
!ding @zhangsan @lisi text
!ding unit:Engineering text (with all units below)
!ding all text (everybody)
!ding at 18:30 @zhangsan text (later; also at tomorrow 08:00, at 2026-12-01 09:00, in 10m)
!ding urgent @zhangsan text (for managers and administrators)
!ding recall - takes the last one back, or the one whose card you reply to
!lang zh - speak Chinese
To confirm: react with ✅ or reply "ok"`)
}

// refusalText says in the person's language why a command was not carried out.
func refusalText(e *matrix.Error, in lang.Lang) string {
	str := func(key string) string { s, _ := e.Extra[key].(string); return s }
	candidates := func() string { s, _ := e.Extra["candidates"].([]string); return strings.Join(s, in.Pick("、", ", ")) }
	switch {
	case str("unknown_person") != "":
		return fmt.Sprintf(in.Pick("没有找到“%s”。", "Nobody is called “%s”."), str("unknown_person"))
	case str("ambiguous_person") != "":
		return fmt.Sprintf(in.Pick("有多位“%s”，请用工号：%s", "Several people are called “%s”; use the job number: %s"), str("ambiguous_person"), candidates())
	case str("unknown_unit") != "":
		return fmt.Sprintf(in.Pick("没有找到部门“%s”。", "No unit is called “%s”."), str("unknown_unit"))
	case str("ambiguous_unit") != "":
		return fmt.Sprintf(in.Pick("有多个部门叫“%s”，请用部门编号：%s", "Several units are called “%s”; use the ID: %s"), str("ambiguous_unit"), candidates())
	case e.Code == codeNoReceivers:
		skipped, _ := e.Extra["skipped"].([]Skip)
		if len(skipped) == 0 {
			return in.Pick("没有需要 DING 的人：都已读过。", "Nobody needs a DING: all have read it.")
		}
		return in.Pick("没有可以 DING 的人。跳过：", "Nobody is left to DING. Passed over: ") + skippedNames(skipped, in)
	case e.Code == "M_LIMIT_EXCEEDED":
		return in.Pick("DING 发送得太频繁，请稍后再试。", "Too many DINGs, wait a moment.")
	case e.Extra["outside"] != nil:
		return fmt.Sprintf(in.Pick("接收人太多：管辖范围之外最多 %d 人，这里有 %d 人。", "Too many receivers: at most %d outside of what you manage, these are %d."), e.Extra["max_receivers"], e.Extra["outside"])
	case e.Code == codeDingOver:
		return in.Pick("这条 DING 没有发出过，无需撤回。", "This DING was never sent.")
	case e.Code == "M_NOT_FOUND":
		return in.Pick("找不到这条 DING 或消息。", "No such DING or message.")
	case e.Code == "M_FORBIDDEN":
		return in.Pick("没有权限这样做：", "You may not do that: ") + e.Msg
	}
	return in.Pick("没有发出：", "Not sent: ") + e.Msg
}
