package soak_test

import (
	"encoding/json"
	"fmt"
	"syscall"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// maxTips is how many ends a room may have on a server when all is quiet.
const maxTips = 10

// stored is what a server has in its database of a room.
type stored struct {
	events   map[string]int64  // flags, of all since the first message
	receipts map[string]string // by user
	tips     int
}

const (
	qTips     = `SELECT tips FROM rooms WHERE room_id = $1`
	qEvents   = `SELECT event_id, flags FROM events WHERE room_id = $1 AND ts >= (SELECT ts FROM events WHERE event_id = $2) AND flags & 4 = 0`
	qReceipts = `SELECT user_id, event_id FROM receipts WHERE room_id = $1 AND type = 'm.read' AND thread_id = ''`
)

// pair reads rows of two columns.
type pair[V any] struct {
	key   string
	value V
}

func pairs[V any](tx *sqldb.Tx, q string, args ...any) (map[string]V, error) {
	list, err := sqldb.Select(tx, func(r *sqldb.Rows) (p pair[V], err error) { return p, r.Scan(&p.key, &p.value) }, q, args...)
	out := make(map[string]V, len(list))
	for _, p := range list {
		out[p.key] = p.value
	}
	return out, err
}

// stop stops the sites as an operator would, and compares what they have stored.
func (s *soak) stop() {
	all := make([]map[*room]*stored, len(s.sites))
	if !s.everywhere(func(st *site) (err error) {
		st.usage()
		if took := st.end(syscall.SIGTERM); took > 12*time.Second {
			s.t.Errorf("site %d took %s to stop", st.n, took)
		}
		if what := st.complaint(); what != "" {
			s.t.Errorf("site %d has logged %s", st.n, what)
		}
		all[st.n], err = s.readStored(st)
		return err
	}) && all[0] == nil {
		return
	}
	for _, r := range s.rooms {
		s.compareStored(r, all)
	}
}

func (s *soak) readStored(st *site) (map[*room]*stored, error) {
	db, err := sqldb.Open(st.db)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	out := map[*room]*stored{}
	err = db.Read(s.t.Context(), func(tx *sqldb.Tx) error {
		for _, r := range s.roomsOf(st.n) {
			d, text, tips := &stored{}, "", []string(nil)
			err := tx.QueryRow(qTips, r.id).Scan(&text)
			if err == nil {
				err = json.Unmarshal([]byte(text), &tips)
			}
			if err == nil {
				d.events, err = pairs[int64](tx, qEvents, r.id, r.list[0].id)
			}
			if err == nil {
				d.receipts, err = pairs[string](tx, qReceipts, r.id)
			}
			if err != nil {
				return fmt.Errorf("room %s: %w", r.id, err)
			}
			d.tips, out[r] = len(tips), d
		}
		return nil
	})
	return out, err
}

// compareStored compares what the sites of a room have of it.
func (s *soak) compareStored(r *room, all []map[*room]*stored) {
	union := map[string]bool{}
	for _, n := range r.sites {
		if d := all[n][r]; d != nil {
			for id, flags := range d.events {
				// One that a server refused nobody may have built on, so others need not know it.
				union[id] = union[id] || flags&(events.FlagRejected|events.FlagSoftFailed) == 0
			}
		}
	}
	for _, n := range r.sites {
		d := all[n][r]
		if d == nil {
			continue
		}
		s.times.tips = max(s.times.tips, d.tips)
		if d.tips > maxTips {
			s.t.Errorf("site %d: room %s has %d ends", n, r.id, d.tips)
		}
		lacks, example := 0, ""
		for id, wanted := range union {
			if _, ok := d.events[id]; !ok && wanted {
				lacks++
				example = id
			}
		}
		if lacks > 0 {
			s.t.Errorf("site %d lacks %d of %d events of %s, such as %s", n, lacks, len(union), r.id, example)
		}
		for id, m := range r.sent {
			flags, ok := d.events[id]
			switch {
			case !ok && id != r.list[0].id:
				s.t.Errorf("site %d has never heard of %s of %s, which %s sent", n, id, r.id, m.by.id)
			case flags&events.FlagRejected != 0, flags&events.FlagSoftFailed != 0 && !m.by.moves:
				s.t.Errorf("site %d refuses %s of %s, which %s sent (flags %d)", n, id, r.id, m.by.id, flags)
			case flags&events.FlagSoftFailed != 0:
				s.tally.add("messages of people who had been removed, not shown somewhere")
			}
		}
		s.compareReceipts(r, n, d)
		s.times.events += len(d.events)
	}
}

// compareReceipts wants the last receipt of everybody who sent one in the end.
func (s *soak) compareReceipts(r *room, n int, d *stored) {
	for _, at := range r.sites {
		for _, p := range s.steady(r, at) {
			if got := d.receipts[p.id]; got != r.newest.id {
				s.t.Errorf("site %d: room %s: the receipt of %s is at %q and not at %s", n, r.id, p.id, got, r.newest.id)
			}
		}
	}
}
