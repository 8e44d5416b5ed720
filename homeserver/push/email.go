package push

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/mail"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Email says how people are told of unread messages by e-mail, with pushers of the kind "email". A message that stays
// unread for a while becomes part of one e-mail with all that is unread by then; the next comes some time later at the
// earliest. What is encrypted is told of without its content.
//
// Spec: client-server-api#post_matrixclientv3pushersset
type Email struct {
	Send func(ctx context.Context, m mail.Message) error
	// Owns says whether an e-mail address is a proven one of the user: others get no e-mail.
	Owns func(ctx context.Context, user matrix.UserID, address string) (bool, error)

	PublicURL string // under which people reach this server
	Key       []byte // signs the links by which people end the e-mails
	Company   string
	Signature pages.Text
	After     time.Duration // how long a message stays unread before it is told; 0: 10 minutes
	Every     time.Duration // the shortest time between two e-mails; 0: an hour
}

const (
	qMailState = `UPDATE pushers SET last_pos = $2, mail_due = $3, mail_sent = $4 WHERE id = $1`

	mailApp      = "m.email" // the app_id that the specification gives
	mostTold     = 60        // messages in an e-mail
	toldOfRoom   = 4         // of one room
	toldRooms    = 12
	mailLookedAt = 3000 // events looked at for an e-mail
	mailAgain    = 5 * time.Minute
	mailIdle     = time.Hour
	maxBody      = 200 // characters of a message
)

// mailer knows when which pusher has an e-mail due.
type mailer struct {
	mu     sync.Mutex
	boxes  map[int64]*mailbox // by pusher
	bell   chan struct{}      // capacity one: something is due earlier; full is as good
	saving sync.Mutex         // before mu
}

// mailbox is the state of one pusher by e-mail; times in ms, 0 for none.
type mailbox struct {
	s         *sender
	due, sent int64
	told      stream.Pos // messages up to here are told, or read
	failed    int
}

// addMail begins with a new pusher: what was said before it is not told.
func (p *Push) addMail(ctx context.Context, s *sender) {
	b := &mailbox{s: s, told: p.log.Head()}
	p.mail.mu.Lock()
	p.mail.boxes[s.pusher.ID] = b
	p.mail.mu.Unlock()
	p.saveMail(ctx, b)
}

func (p *Push) dropMail(id int64) {
	p.mail.mu.Lock()
	defer p.mail.mu.Unlock()
	delete(p.mail.boxes, id)
}

// noteMail hears of an event that notifies the user of a pusher.
func (p *Push) noteMail(ctx context.Context, s *sender, pos stream.Pos) {
	now := matrix.Millis(p.opts.Now())
	p.mail.mu.Lock()
	b := p.mail.boxes[s.pusher.ID]
	if b == nil || b.due != 0 || pos <= b.told {
		p.mail.mu.Unlock()
		return
	}
	b.due = max(now+p.opts.Email.After.Milliseconds(), b.sent+p.opts.Email.Every.Milliseconds())
	p.mail.mu.Unlock()
	p.saveMail(ctx, b)
	select {
	case p.mail.bell <- struct{}{}:
	default:
	}
}

// saveMail stores when an e-mail is due, also while the server stops: else nobody would know of it after the start.
func (p *Push) saveMail(ctx context.Context, b *mailbox) {
	p.mail.saving.Lock() // what is stored last is the newest
	defer p.mail.saving.Unlock()
	ctx = context.WithoutCancel(ctx)
	p.mail.mu.Lock()
	id, told, due, sent := b.s.pusher.ID, b.told, b.due, b.sent
	p.mail.mu.Unlock()
	err := p.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qMailState, id, int64(told), due, sent)
		return err
	})
	if err != nil {
		log.WithError(err).Warn("storing when an e-mail is due")
	}
}

// runMail sends what is due until ctx ends.
func (p *Push) runMail(ctx context.Context) {
	for ctx.Err() == nil {
		now := matrix.Millis(p.opts.Now())
		wait := mailIdle
		var due []*mailbox
		p.mail.mu.Lock()
		for _, b := range p.mail.boxes {
			switch {
			case b.due == 0:
			case b.due <= now:
				due = append(due, b)
			default:
				wait = min(wait, time.Duration(b.due-now)*time.Millisecond)
			}
		}
		p.mail.mu.Unlock()
		for _, b := range due {
			p.mailTo(ctx, b)
		}
		if len(due) > 0 {
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-p.mail.bell:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// mailTo tells what a user has not read. Whatever fails is tried again later.
func (p *Push) mailTo(ctx context.Context, b *mailbox) {
	p.mail.mu.Lock()
	b.due = 0 // what comes from here on is for the next one
	told := b.told
	p.mail.mu.Unlock()
	head := p.log.Head()
	sent, err := p.tellUnread(ctx, b.s.pusher, told)
	if ctx.Err() != nil && !sent {
		return // it is still due in the database
	}
	now := p.opts.Now()
	p.mail.mu.Lock()
	switch {
	case err != nil:
		b.failed++
		b.due = matrix.Millis(now.Add(min(mailAgain<<min(b.failed-1, 6), longMail)))
	default:
		b.told, b.failed = max(b.told, head), 0
		if sent {
			b.sent = matrix.Millis(now)
		}
		if b.due != 0 {
			b.due = max(b.due, b.sent+p.opts.Email.Every.Milliseconds())
		}
	}
	p.mail.mu.Unlock()
	if err != nil {
		log.WithError(err).WithField("user_id", b.s.pusher.User).Warn("an e-mail of unread messages could not be sent; trying again later")
	}
	p.saveMail(ctx, b)
}

// longMail is the longest wait between attempts.
const longMail = 6 * time.Hour

// roomMail is what is unread of one room.
type roomMail struct {
	name string
	more int
	list []mail.Line
}

// tellUnread sends one e-mail, if there is anything to tell.
func (p *Push) tellUnread(ctx context.Context, x *pusher, told stream.Pos) (sent bool, err error) {
	if own, err := p.opts.Email.Owns(ctx, x.User, x.Pushkey); err != nil {
		return false, err
	} else if !own {
		return false, p.dropPusher(ctx, x.User, x.AppID, x.Pushkey)
	}
	l := &lister{p: p, user: x.User, limit: mostTold, rooms: make(map[matrix.RoomID]*listedRoom), most: mailLookedAt, after: told, unread: []*events.Event{}}
	if _, err := l.list(ctx, farthest); err != nil {
		return false, err
	}
	if len(l.unread) == 0 {
		return false, nil
	}
	lang := pages.English
	if strings.HasPrefix(strings.ToLower(x.Lang), "zh") {
		lang = pages.Chinese
	}
	rooms, err := p.roomMails(ctx, l.unread, lang)
	if err != nil {
		return false, err
	}
	letter := p.letter(x, rooms, len(l.unread), lang)
	m, err := letter.To(x.Pushkey, letter.Title+" - "+p.opts.Email.Company)
	if err != nil {
		return false, err
	}
	m.Headers = map[string]string{
		"List-Unsubscribe": "<" + p.leaveLink(x, lang) + ">", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
	}
	err = p.opts.Email.Send(ctx, m)
	var refused *mail.Error
	if errors.As(err, &refused) && !refused.Temporary() {
		log.WithError(err).WithField("user_id", x.User).Warn("the mail server refuses an e-mail of unread messages; it is not sent")
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("sending an e-mail: %w", err)
	}
	return true, nil
}

// roomMails sorts unread events, the newest first, into their rooms; those with the newest events come first.
func (p *Push) roomMails(ctx context.Context, list []*events.Event, lang string) ([]*roomMail, error) {
	var order []*roomMail
	byRoom := map[matrix.RoomID]*roomMail{}
	for _, e := range list {
		r := byRoom[e.Room]
		if r == nil && len(order) == toldRooms {
			continue
		}
		if r != nil && len(r.list) == toldOfRoom {
			r.more++
			continue
		}
		about, err := p.about(ctx, e)
		if err != nil {
			return nil, err
		}
		who := about.senderName
		if who == "" {
			who = string(e.Sender)
		}
		if r == nil {
			r = &roomMail{name: about.roomName}
			if r.name == "" {
				r.name = about.roomAlias
			}
			if r.name == "" {
				r.name = who
			}
			byRoom[e.Room] = r
			order = append(order, r)
		}
		r.list = append([]mail.Line{{Who: clipText(who), What: tellOf(e, lang)}}, r.list...)
	}
	return order, nil
}

// tellOf is what an e-mail says of an event: never what is encrypted.
func tellOf(e *events.Event, lang string) string {
	if e.Type == "m.room.encrypted" {
		return pages.Text{ZH: "（加密消息）", EN: "(an encrypted message)"}.In(lang)
	}
	if body := e.ContentString("body"); e.Type == "m.room.message" && body != "" {
		return clipText(body)
	}
	return pages.Text{ZH: "（新消息）", EN: "(something new)"}.In(lang)
}

// clipText makes one short line.
func clipText(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	r := []rune(s)
	if len(r) > maxBody {
		return string(r[:maxBody]) + "…"
	}
	return s
}

func (p *Push) letter(x *pusher, rooms []*roomMail, n int, lang string) mail.Letter {
	count := fmt.Sprint(n)
	if n == mostTold {
		count += "+"
	}
	l := mail.Letter{Lang: lang, Title: pages.Text{ZH: "您有 " + count + " 条未读消息", EN: "You have " + count + " unread messages"}.In(lang)}
	if n == 1 && lang == pages.English {
		l.Title = "You have an unread message"
	}
	for _, r := range rooms {
		lines := r.list
		if r.more > 0 {
			lines = append(lines, mail.Line{Who: "…", What: fmt.Sprintf(pages.Text{ZH: "还有 %d 条", EN: "and %d more"}.In(lang), r.more)})
		}
		l.Parts = append(l.Parts, mail.Part{Text: clipText(r.name), Lines: lines})
	}
	l.Parts = append(l.Parts, mail.Part{Text: pages.Text{ZH: "请在聊天应用中查看和回复，不要回复此邮件。", EN: "Read and answer them in your chat app; answers to this e-mail reach nobody."}.In(lang)})
	if small := p.opts.Email.Signature.In(lang); small != "" {
		l.Small = append(l.Small, small)
	}
	l.Leave = mail.Line{What: pages.Text{ZH: "不再接收此类邮件", EN: "Send me no more of these e-mails"}.In(lang), Link: p.leaveLink(x, lang)}
	return l
}

// DropEmail ends the e-mails to an address that an account has no longer.
func (p *Push) DropEmail(ctx context.Context, user matrix.UserID, address string) error {
	p.pushers.mu.RLock()
	var gone []*pusher
	for _, s := range p.pushers.byUser[user] {
		if s.pusher.Kind == "email" && strings.EqualFold(s.pusher.Pushkey, address) {
			gone = append(gone, s.pusher)
		}
	}
	p.pushers.mu.RUnlock()
	for _, x := range gone {
		if err := p.dropPusher(ctx, user, x.AppID, x.Pushkey); err != nil {
			return err
		}
	}
	return nil
}
