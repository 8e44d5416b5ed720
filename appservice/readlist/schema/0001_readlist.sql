-- Rooms the service has seen. room_nid keeps the other tables narrow.
CREATE TABLE as_read_rooms (
	room_nid BIGSERIAL PRIMARY KEY,
	room_id TEXT NOT NULL UNIQUE,
	creators TEXT NOT NULL -- JSON list, empty if the creation was not seen
);
-- Every event in the order of its arrival: receipts may name any of them. kind 1 counts as a message.
CREATE TABLE as_read_events (
	room_nid BIGINT NOT NULL,
	pos BIGINT NOT NULL,
	event_id TEXT NOT NULL UNIQUE,
	kind BIGINT NOT NULL,
	sender TEXT NOT NULL,
	thread BIGINT NOT NULL,
	ts BIGINT NOT NULL,
	edited_pos BIGINT NOT NULL,
	edited_ts BIGINT NOT NULL,
	redacted_pos BIGINT NOT NULL,
	frozen BYTEA,
	PRIMARY KEY (room_nid, pos)
);
-- Who was ever seen in a room, by a dense number, with the last interval of membership: joined at, left at (0: still in).
CREATE TABLE as_read_members (
	room_nid BIGINT NOT NULL,
	idx BIGINT NOT NULL,
	user_id TEXT NOT NULL,
	joined_pos BIGINT NOT NULL,
	left_pos BIGINT NOT NULL,
	PRIMARY KEY (room_nid, idx)
);
-- Earlier intervals of those who came back.
CREATE TABLE as_read_spans (
	room_nid BIGINT NOT NULL,
	idx BIGINT NOT NULL,
	joined_pos BIGINT NOT NULL,
	left_pos BIGINT NOT NULL,
	PRIMARY KEY (room_nid, idx, joined_pos)
);
-- Numbers of threads: 0 is "unthreaded", 1 the main timeline, these begin at 2.
CREATE TABLE as_read_threads (
	room_nid BIGINT NOT NULL,
	thread BIGINT NOT NULL,
	root TEXT NOT NULL,
	PRIMARY KEY (room_nid, thread)
);
-- How far each person has read, by thread.
CREATE TABLE as_read_marks (
	room_nid BIGINT NOT NULL,
	idx BIGINT NOT NULL,
	thread BIGINT NOT NULL,
	pos BIGINT NOT NULL,
	PRIMARY KEY (room_nid, idx, thread)
);
-- Every forward step of a mark, for the time of first reading; old ones are dropped.
CREATE TABLE as_read_moves (
	room_nid BIGINT NOT NULL,
	idx BIGINT NOT NULL,
	thread BIGINT NOT NULL,
	pos BIGINT NOT NULL,
	ts BIGINT NOT NULL,
	implied BOOLEAN NOT NULL,
	PRIMARY KEY (room_nid, idx, thread, pos)
);
CREATE INDEX as_read_moves_recent ON as_read_moves (room_nid, pos);
CREATE INDEX as_read_moves_old ON as_read_moves (ts);
-- Receipts for events that have not arrived.
CREATE TABLE as_read_parked (
	room_nid BIGINT NOT NULL,
	event_id TEXT NOT NULL,
	user_id TEXT NOT NULL,
	thread TEXT NOT NULL,
	ts BIGINT NOT NULL,
	arrived BIGINT NOT NULL,
	PRIMARY KEY (room_nid, event_id, user_id, thread)
);
