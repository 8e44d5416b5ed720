package federation

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/metrics"
)

// shownServers is how many other servers are shown each by itself: those that most waits for. Who else is there is
// in the sums.
const shownServers = 100

// meters count what goes to and comes from other servers.
type meters struct {
	sent, received         *prometheus.CounterVec // transactions, by result
	out, in                *prometheus.CounterVec // what was in them
	sendTook, receiveTook  prometheus.Histogram
	receiptsHeld, turnAway prometheus.Counter
}

// newMeters makes the counters and hangs them where they are read; r may be nil.
func newMeters(r prometheus.Registerer, q *queue) *meters {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "carillon_federation_" + name, Help: help}, labels)
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "carillon_federation_" + name, Help: help})
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "carillon_federation_" + name, Help: help, Buckets: metrics.Seconds()})
	}
	m := &meters{
		sent:         counters("transactions_sent_total", "Transactions sent to other servers, each attempt, by result.", "result"),
		received:     counters("transactions_received_total", "Transactions of other servers, by result.", "result"),
		out:          counters("sent_total", "Events (pdu) and EDUs that other servers have taken.", "kind"),
		in:           counters("received_total", "Events (pdu) and EDUs of other servers, by result.", "kind", "result"),
		sendTook:     seconds("send_seconds", "How long attempts to send a transaction took."),
		receiveTook:  seconds("receive_seconds", "How long transactions of other servers took."),
		receiptsHeld: counter("receipts_held_total", "Receipts, for each server, that waited for others to go with."),
		turnAway:     counter("turned_away_total", "Requests of other servers that were refused because too many of the same server were under way."),
	}
	for _, result := range []string{"ok", "failed"} { // else they are not there before the first
		m.sent.WithLabelValues(result)
		m.received.WithLabelValues(result)
		for _, kind := range []string{"pdu", "edu"} {
			m.in.WithLabelValues(kind, result)
		}
	}
	if r != nil {
		r.MustRegister(m.sent, m.received, m.out, m.in, m.sendTook, m.receiveTook, m.receiptsHeld, m.turnAway, newOutlook(q))
	}
	return m
}

// attempt counts a transaction that was sent.
func (m *meters) attempt(pdus, edus int, took time.Duration, err error) {
	m.sendTook.Observe(took.Seconds())
	if err != nil {
		m.sent.WithLabelValues("failed").Inc()
		return
	}
	m.sent.WithLabelValues("ok").Inc()
	m.out.WithLabelValues("pdu").Add(float64(pdus))
	m.out.WithLabelValues("edu").Add(float64(edus))
}

// taken counts a transaction that came in; refused of its events were not accepted.
func (m *meters) taken(pdus, refused, edus int, took time.Duration) {
	m.receiveTook.Observe(took.Seconds())
	m.received.WithLabelValues("ok").Inc()
	m.in.WithLabelValues("pdu", "ok").Add(float64(pdus - refused))
	m.in.WithLabelValues("pdu", "failed").Add(float64(refused))
	m.in.WithLabelValues("edu", "ok").Add(float64(edus))
}

// outlook describes what waits for other servers at the moment when it is read.
type outlook struct {
	q *queue

	servers, waiting, transactions, items, oldest, failures, retry, success, behind *prometheus.Desc
}

func newOutlook(q *queue) *outlook {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("carillon_federation_"+name, help, labels, nil)
	}
	return &outlook{
		q:            q,
		servers:      desc("destinations", "Other servers: failing ones, ones that are far behind, and ones that something waits for.", "state"),
		waiting:      desc("waiting", "Events and EDUs that wait, over all other servers."),
		transactions: desc("destination_transactions_waiting", "Transactions that wait for a server.", "server"),
		items:        desc("destination_waiting", "Events and EDUs that wait for a server.", "server"),
		oldest:       desc("destination_oldest_seconds", "How long the oldest of them has been waiting.", "server"),
		failures:     desc("destination_failures", "Failures since a server last took something.", "server"),
		retry:        desc("destination_retry_timestamp_seconds", "When a failing server is tried next.", "server"),
		success:      desc("destination_success_timestamp_seconds", "When a server last took something, since this server's start.", "server"),
		behind:       desc("destination_behind", "1: a server has been away for so long that it will be sent the newest event of each room.", "server"),
	}
}

// Describe is of prometheus.Collector.
func (o *outlook) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{o.servers, o.waiting, o.transactions, o.items, o.oldest, o.failures, o.retry, o.success, o.behind} {
		ch <- d
	}
}

// sight is what is seen of one server.
type sight struct {
	adminDestination
	items  int
	oldest time.Duration
}

// Collect is of prometheus.Collector.
func (o *outlook) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	list, sum := o.q.sights()
	gauge(o.servers, float64(sum.failing), "failing")
	gauge(o.servers, float64(sum.behind), "behind")
	gauge(o.servers, float64(sum.waiting), "waiting")
	gauge(o.waiting, float64(sum.items))
	for _, s := range list {
		name := string(s.Server)
		gauge(o.transactions, float64(s.Transactions), name)
		gauge(o.items, float64(s.items), name)
		gauge(o.oldest, s.oldest.Seconds(), name)
		gauge(o.failures, float64(s.Failures), name)
		gauge(o.retry, float64(s.RetryAt)/1000, name)
		gauge(o.success, float64(s.SentAt)/1000, name)
		behind := 0.0
		if s.Behind {
			behind = 1
		}
		gauge(o.behind, behind, name)
	}
}

type sightSums struct{ failing, behind, waiting, items int }

// sights describes the servers that most waits for, and sums over all.
func (q *queue) sights() (list []sight, sum sightSums) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for _, d := range q.dests {
		s := sight{adminDestination: q.status(d.name)}
		for _, b := range d.batches {
			s.items += b.items()
		}
		if s.WaitingSince > 0 {
			s.oldest = max(now.Sub(time.UnixMilli(s.WaitingSince)), 0)
			sum.waiting++
		}
		sum.items += s.items
		if d.failures > 0 {
			sum.failing++
		}
		if d.behind {
			sum.behind++
		}
		list = append(list, s)
	}
	for name := range q.sentAt {
		if q.dests[name] == nil {
			list = append(list, sight{adminDestination: q.status(name)})
		}
	}
	slices.SortFunc(list, func(a, b sight) int {
		return cmp.Or(cmp.Compare(b.items, a.items), cmp.Compare(b.Failures, a.Failures), cmp.Compare(b.SentAt, a.SentAt), cmp.Compare(a.Server, b.Server))
	})
	return list[:min(len(list), shownServers)], sum
}

// items is how much is in a batch; queue.mu is held.
func (b *batch) items() int { return b.pdus + b.edus + b.merged }

// note remembers when a server was sent something; q.mu is held.
func (q *queue) note(server matrix.ServerName, at time.Time) {
	if len(q.sentAt) >= keptSent {
		q.sentAt = map[matrix.ServerName]time.Time{} // a federation so large is known by those that come next
	}
	q.sentAt[server] = at
}
