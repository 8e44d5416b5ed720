package ding

import (
	"fmt"
	"time"

	"github.com/carillon-chat/carillon/appservice/lang"
)

// siteFigures are the figures of one site of a DING; Site "" is this one.
type siteFigures struct {
	Site string
	Counts
}

// sites counts by the sites that deliver, in the order in which they come. The caller holds mu.
func (l *live) sites() []siteFigures {
	var out []siteFigures
	index := map[string]int{}
	for i := range l.to {
		n, ok := index[l.to[i].Site]
		if !ok {
			n = len(out)
			index[l.to[i].Site] = n
			out = append(out, siteFigures{Site: l.to[i].Site})
		}
		out[n].Total++
		out[n].add(&l.to[i], 1)
	}
	return out
}

// longLag is from which lag on a card tells of it.
const longLag = time.Minute

// siteLines says how a DING stands at each site, where there are several. The caller holds mu.
func (d *Dings) siteLines(l *live, in lang.Lang) (lines []line) {
	if !d.many() || l.FiredAt == 0 || l.Origin != "" {
		return nil
	}
	figures := l.sites()
	if len(figures) == 0 || len(figures) == 1 && figures[0].Site == "" {
		return nil
	}
	for _, f := range figures {
		site := d.opts.Sites.Own()
		if f.Site != "" {
			site = d.opts.Sites.Named(f.Site)
		}
		text := fmt.Sprintf(in.Pick("%d 人：已确认 %d，未确认 %d", "%d: %d confirmed, %d not yet"), f.Total, f.Confirmed, f.Sent)
		if f.Queued > 0 {
			text += fmt.Sprintf(in.Pick("，等待送达 %d", ", %d waiting to be delivered"), f.Queued)
			if lag := d.opts.Sites.Lag(site); f.Site != "" && lag.Behind >= longLag {
				text += fmt.Sprintf(in.Pick("（已 %s 没有联系）", " (not heard of for %s)"), in.Duration(lag.Behind.Truncate(time.Minute)))
			}
		}
		lines = append(lines, line{site.Name + in.Pick("：", ": "), text})
	}
	return lines
}

// siteJSON is how a DING stands at one site.
type siteJSON struct {
	Site      string `json:"site"`
	Total     int    `json:"total"`
	Waiting   int    `json:"waiting"` // not yet delivered, also because the site cannot be reached
	Sent      int    `json:"sent"`    // and not confirmed in time
	Confirmed int    `json:"confirmed"`
	Failed    int    `json:"failed"`
	Expired   int    `json:"expired"`
	Recalled  int    `json:"recalled"`
	Late      int    `json:"late"`
	Behind    int64  `json:"behind_ms"`
	HeardAt   int64  `json:"heard_at,omitempty"`
}

// bySite counts by sites, where there are several. The caller holds mu.
func (d *Dings) bySite(l *live) []siteJSON {
	if !d.many() || l.Origin != "" {
		return nil
	}
	var out []siteJSON
	for _, f := range l.sites() {
		j := siteJSON{
			Site: d.opts.Sites.Own().Name, Total: f.Total, Waiting: f.Queued, Sent: f.Sent, Confirmed: f.Confirmed, Failed: f.Failed,
			Expired: f.Expired, Recalled: f.Recalled, Late: f.Late,
		}
		if f.Site != "" {
			lag := d.opts.Sites.Lag(d.opts.Sites.Named(f.Site))
			j.Site, j.Behind = f.Site, lag.Behind.Milliseconds()
			if !lag.Heard.IsZero() {
				j.HeardAt = lag.Heard.UnixMilli()
			}
		}
		out = append(out, j)
	}
	return out
}
