package soak_test

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// report writes what was done and measured, as Markdown.
func (s *soak) report() {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	kinds := map[string]int{}
	for _, st := range s.sites {
		kinds[st.kind]++
	}
	verdict := "All comparisons passed."
	if s.t.Failed() {
		verdict = "**Comparisons failed.**"
	}
	line("%s Seed %d, %s.\n", verdict, s.o.seed, time.Now().Format(time.DateOnly))
	line("| | |\n| --- | --- |")
	row := func(what string, format string, args ...any) { line("| %s | %s |", what, fmt.Sprintf(format, args...)) }
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		row("Homeservers on "+k, "%d", kinds[k])
	}
	row("People", "%d, all in one room; %d more rooms", len(s.sites)*s.o.people, len(s.rooms)-1)
	row("Making the accounts", "%s", short(s.times.accounts))
	row("All join one room", "%s", short(s.times.joins))
	row("The last site's way into that room", "%s", short(s.times.entered))
	row("Making and joining the other rooms", "%s", short(s.times.created))
	row("Work and harm", "%s", s.o.lasts)
	row("From the last word until nothing waits to be sent", "%s", short(s.times.settled))
	row("Events made by the work, summed over the servers", "%d", s.times.events)
	row("Most forward extremities of a room on a server", "%d", s.times.tips)
	for _, k := range slices.Sorted(maps.Keys(s.tally.done)) {
		row(strings.ToUpper(k[:1])+k[1:], "%d", s.tally.done[k])
	}
	left := 0
	for _, w := range s.watchers {
		left += len(w.holes)
	}
	row("Stretches that clients read with /messages after a gap in /sync", "%d", left)
	for _, a := range s.times.away {
		row("One site away for", "%s; it missed %d messages, had the newest of all rooms %s after the link was back, and its own were everywhere after %s",
			short(a.lasted), a.missed, short(a.heard), short(a.wasHeard))
	}
	line("\n| Site | Database | Processor time | Memory at most | Memory at the end | Slowest start |\n| --- | --- | --- | --- | --- | --- |")
	for _, st := range s.sites {
		used, now, peak := st.usage()
		line("| %d | %s | %s | %d MiB | %d MiB | %s |", st.n, st.kind, short(used), peak>>20, now>>20, short(st.slow))
	}
	if s.o.report != "" {
		if err := os.WriteFile(s.o.report, []byte(b.String()), 0o600); err != nil {
			s.t.Error(err)
		}
	}
	s.t.Log("\n" + b.String())
}

// short is a duration as people read it.
func short(d time.Duration) string {
	return d.Round(cmp.Or(map[bool]time.Duration{d < 10*time.Second: 10 * time.Millisecond}[true], time.Second)).String()
}
