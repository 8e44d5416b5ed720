package push_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

func (f *fixture) follow(user matrix.UserID, room matrix.RoomID, root matrix.EventID, yes bool) {
	f.T.Helper()
	method := "DELETE"
	if yes {
		method = "PUT"
	}
	f.Want(user, method, "/_matrix/client/unstable/io.element.msc4306/rooms/"+string(room)+"/thread/"+string(root)+"/subscription", `{}`, 200, "")
}

// in is an event of a thread; more begins with a comma.
func in(root matrix.EventID, more string) string {
	return fmt.Sprintf(`{"msgtype":"m.text","body":"in","m.relates_to":{"rel_type":"m.thread","event_id":%q}%s}`, root, more)
}

const forBob = `,"m.mentions":{"user_ids":["@bob:a.example"]}`

func TestThreadRules(t *testing.T) {
	for _, how := range []string{"default", "custom"} {
		t.Run(how, func(t *testing.T) {
			db := sqldbtest.Open(t)
			f := openWith(t, db, push.Options{ThreadRules: true})
			if how == "custom" {
				f.custom(bob)
			}
			room := f.Room(alice, bob, carol)
			root := f.Say(room, alice, "root")
			f.Send(room, alice, "m.room.message", in(root, ""))
			f.Send(room, alice, "x.poll", in(root, ""))
			f.check(room, bob, "1/0") // he does not follow
			f.Send(room, alice, "m.room.message", in(root, forBob))
			named := f.Send(room, alice, "x.poll", in(root, forBob))
			f.check(room, bob, "1/0 "+string(root[:4])+" 2/2")
			f.follow(bob, room, root, true)
			f.check(room, bob, "1/0 "+string(root[:4])+" 4/2") // what no rule is for counts too
			f.Send(room, alice, "m.reaction", in(root, ""))
			f.Send(room, alice, "m.room.message", in(root, `,"msgtype":"m.notice"`))
			f.check(room, bob, "1/0 "+string(root[:4])+" 4/2")
			f.Redact(room, alice, named)
			f.check(room, bob, "1/0 "+string(root[:4])+" 3/1")
			all := f.Send(room, alice, "m.room.message", in(root, `,"m.mentions":{"room":true}`))
			f.check(room, bob, "1/0 "+string(root[:4])+" 4/2")
			f.check(room, carol, "1/0 "+string(root[:4])+" 1/1") // of the rest she hears nothing
			f.Stop()
			f = openWith(t, db, push.Options{ThreadRules: true})
			f.check(room, bob, "1/0 "+string(root[:4])+" 4/2")
			f.follow(bob, room, root, false)
			f.check(room, bob, "1/0 "+string(root[:4])+" 2/2")
			f.mark(room, bob, all, string(root))
			f.check(room, bob, "1/0")
		})
	}
}

// The rules as clients see them.
func TestPostContent(t *testing.T) {
	off := open(t, sqldbtest.Open(t))
	if off.ids(bob, "postcontent") != "" || strings.Contains(string(off.p.Rules(bob)), "postcontent") {
		t.Errorf("rules on threads without having been asked for: %s", off.p.Rules(bob))
	}
	off.Want(bob, "PUT", rule("postcontent", "mine"), `{"actions":["notify"],"conditions":[]}`, 400, "M_INVALID_PARAM")
	const id = ".io.element.msc4306.rule.unsubscribed_thread"
	off.Want(bob, "GET", rule("postcontent", id), "", 404, "M_NOT_FOUND")

	f := openWith(t, sqldbtest.Open(t), push.Options{ThreadRules: true})
	if got := f.ids(bob, "postcontent"); got != id+" .io.element.msc4306.rule.subscribed_thread" {
		t.Errorf("the rules are %s", got)
	}
	f.Want(bob, "PUT", rule("postcontent", "mine"), `{"actions":["notify"],"conditions":[]}`, 400, "M_INVALID_PARAM")
	f.Want(bob, "DELETE", rule("postcontent", id), "", 400, "M_INVALID_PARAM")
	room := f.Room(alice, bob)
	root := f.Say(room, alice, "root")
	f.Send(room, alice, "m.room.message", in(root, ""))
	f.check(room, bob, "1/0")
	f.Want(bob, "PUT", rule("postcontent", id)+"/enabled", `{"enabled":false}`, 200, "")
	f.check(room, bob, "1/0 "+string(root[:4])+" 1/0")
	f.Want(bob, "PUT", rule("postcontent", id)+"/enabled", `{"enabled":true}`, 200, "")
	f.Want(bob, "PUT", rule("postcontent", id)+"/actions", `{"actions":["notify"]}`, 200, "")
	f.check(room, bob, "1/0 "+string(root[:4])+" 1/0")

	// A rule of one's own may ask for it too.
	own := open(t, sqldbtest.Open(t))
	own.Want(bob, "PUT", rule("override", "followed"), `{"actions":["notify",{"set_tweak":"highlight"}],"conditions":[{"kind":"io.element.msc4306.thread_subscription","subscribed":true}]}`, 200, "")
	room = own.Room(alice, bob)
	root = own.Say(room, alice, "root")
	own.Send(room, alice, "m.room.message", in(root, ""))
	own.check(room, bob, "1/0 "+string(root[:4])+" 1/0")
	own.follow(bob, room, root, true)
	own.check(room, bob, "1/0 "+string(root[:4])+" 1/1")
}

// Counts made at once are those that the rules give event by event.
func TestThreadCountsAgree(t *testing.T) {
	for _, opts := range []push.Options{{ThreadRules: true}, {ThreadRules: true, LegacyMentions: true}, {LegacyMentions: true}, {}} {
		t.Run(fmt.Sprint(opts.ThreadRules, opts.LegacyMentions), func(t *testing.T) {
			db := sqldbtest.Open(t)
			f := openWith(t, db, opts)
			f.custom(carol)
			room := f.Room(alice, bob, carol)
			rng := rand.New(rand.NewPCG(4, uint64(len(t.Name()))))
			roots := []matrix.EventID{f.Say(room, alice, "a"), f.Say(room, alice, "b"), f.Say(room, alice, "c")}
			var sent []matrix.EventID
			for i := range 200 {
				root := roots[rng.IntN(len(roots))]
				content := in(root, "")
				if rng.IntN(3) == 0 {
					content = `{"msgtype":"m.text","body":"main"}`
				}
				switch rng.IntN(6) {
				case 0:
					content = strings.Replace(content, "{", `{"m.mentions":{"user_ids":["@bob:a.example","@carol:a.example"]},`, 1)
				case 1:
					content = strings.Replace(content, "{", `{"m.mentions":{"room":true},`, 1)
				case 2:
					content = strings.Replace(content, "m.text", "m.notice", 1)
				case 3:
					content = strings.Replace(content, `"body":"`, `"body":"bob carol `, 1)
				}
				typ := []string{"m.room.message", "m.room.encrypted", "x.poll", "m.reaction"}[rng.IntN(4)]
				switch rng.IntN(12) {
				case 0:
					yes := rng.IntN(2) == 0
					f.follow(bob, room, root, yes)
					f.follow(carol, room, root, yes)
				case 1:
					if len(sent) > 0 {
						f.Redact(room, alice, sent[rng.IntN(len(sent))])
					}
				case 2:
					if len(sent) > 0 {
						id := sent[rng.IntN(len(sent))]
						for _, u := range []matrix.UserID{bob, carol} {
							if err := f.r.Mark(f.Ctx, u, room, "m.read", id, ""); err != nil {
								t.Fatal(err)
							}
						}
					}
				default:
					sent = append(sent, f.Send(room, alice, typ, content))
				}
				b, c := f.unread(room, bob), f.unread(room, carol)
				if len(b.Threads)+len(c.Threads) == 0 {
					b.Threads, c.Threads = nil, nil
				}
				if !reflect.DeepEqual(b, c) {
					t.Fatalf("after %d steps Bob has %v, Carol with a rule of her own %v", i, b, c)
				}
			}
		})
	}
}

// What old clients send mentions by words, where that is wanted.
func TestLegacyMentions(t *testing.T) {
	db := sqldbtest.Open(t)
	f := openWith(t, db, push.Options{LegacyMentions: true})
	rules := gjson.ParseBytes(f.p.Rules(bob))
	if got := rules.Get("global.content.0"); got.Get("rule_id").Str != ".m.rule.contains_user_name" || got.Get("pattern").Str != "bob" {
		t.Errorf("the content rules are %s", rules.Get("global.content").Raw)
	}
	if got := f.ids(bob, "override"); !strings.Contains(got, "is_user_mention contains_display_name is_room_mention roomnotif tombstone") {
		t.Errorf("the override rules are %s", got)
	}
	room := f.Room(alice, bob, carol)
	say := func(user matrix.UserID, content, want string) {
		t.Helper()
		f.Send(room, user, "m.room.message", content)
		f.check(room, bob, want)
		f.read(room, bob)
	}
	say(alice, `{"msgtype":"m.text","body":"hello @bob:a.example!"}`, "1/1")
	say(alice, `{"msgtype":"m.text","body":"hello bobby"}`, "1/0")
	say(alice, `{"msgtype":"m.text","body":"hello bob","m.mentions":{}}`, "1/0") // a client that knows better
	say(alice, `{"msgtype":"m.text","body":"@room look"}`, "1/1")
	say(carol, `{"msgtype":"m.text","body":"@room look"}`, "1/0") // she may not
	f.Set(room, bob, "m.room.member", "@bob:a.example", `{"membership":"join","displayname":"Robert"}`)
	say(alice, `{"msgtype":"m.text","body":"ask Robert"}`, "1/1")
	f.Set(room, bob, "m.room.member", "@bob:a.example", `{"membership":"join","displayname":"Rob"}`)
	say(alice, `{"msgtype":"m.text","body":"ask Robert"}`, "1/0")
	say(alice, `{"msgtype":"m.text","body":"ask Rob"}`, "1/1")

	plain := open(t, sqldbtest.Open(t))
	room = plain.Room(alice, bob)
	plain.Say(room, alice, "hello bob, @room")
	plain.check(room, bob, "1/0")
}
