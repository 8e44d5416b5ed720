-- One row for each time that a state entry held: from_pos <= pos < to_pos.
CREATE TABLE room_state (
    room_id    TEXT NOT NULL,
    type       TEXT NOT NULL,
    state_key  TEXT NOT NULL,
    from_pos   BIGINT NOT NULL,
    to_pos     BIGINT NOT NULL,
    nid        BIGINT NOT NULL,
    membership TEXT NOT NULL,
    PRIMARY KEY (room_id, type, state_key, from_pos)
);
CREATE INDEX room_state_from ON room_state (room_id, from_pos);
-- Stretches that have ended. One over all of them would tempt a database that has no
-- statistics yet to look for one entry among all that hold now.
CREATE INDEX room_state_to ON room_state (room_id, to_pos) WHERE to_pos < 9223372036854775807;
-- Only for events whose prev_events were not exactly the room's tips of their time.
CREATE TABLE state_views (
    nid   BIGINT PRIMARY KEY,
    base  BIGINT NOT NULL,
    delta TEXT NOT NULL
);
