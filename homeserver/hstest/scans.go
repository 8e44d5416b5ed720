package hstest

import (
	"context"
	"slices"
	"strings"
)

// mayScan are the statements that may read a whole table: at the start, in the
// background, or of a table that stays small. Each is given by its beginning.
var mayScan = []string{
	// What is read into memory at the start.
	"SELECT room_id, state_key, from_pos FROM room_state", "SELECT room_id, max(pos) FROM events",
	"SELECT user_id, device_id, algorithm", "SELECT user_id, device_id, MAX(pos) FROM to_device",
	"SELECT user_id, type, content FROM account_data", "SELECT user_id, field, value FROM profiles",
	"SELECT id, user_id, app_id, pushkey", "SELECT user_id, pos FROM erasures", "SELECT room_id, server_name FROM silences", "SELECT user_id, created_at, appservice", "SELECT server, failures",
	"SELECT user_id, status_msg", "SELECT user_id, pos, changes FROM push_rules", "SELECT service, pos, pending",
	"SELECT user_id, version FROM profile_spreads", "SELECT server, txn, count(*) FROM fed_queue", "SELECT DISTINCT server FROM fed_behind", "SELECT server FROM fed_owed", "SELECT room_id, network FROM published_rooms",
	// Cleaning up in the background, and when an account is closed.
	"DELETE FROM delayed_events", "SELECT user_id FROM delayed_events", "DELETE FROM login_tokens", "DELETE FROM uia_sessions",
	// The administrator's list of registration tokens.
	"SELECT r.token, r.uses_allowed",
}

// noScans fails the test if a statement of the server's read a whole table: its
// cost would grow with all that the server holds.
func (s *Server) noScans() {
	list, err := s.DB().Scans(context.Background())
	if err != nil {
		s.T.Errorf("asking for query plans: %v", err)
	}
	for _, scan := range list {
		switch scan.Table {
		case "json_each", "search_terms", "t": // a list of values; the index of terms, by its own plan
			continue
		}
		may := func(start string) bool { return strings.HasPrefix(scan.Query, start) }
		if !slices.ContainsFunc(mayScan, may) {
			s.T.Errorf("this reads all of %s:\n%s", scan.Table, scan.Query)
		}
	}
}
