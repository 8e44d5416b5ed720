-- nid: the row's number; the log position for what this server saw happen, negative for
-- outliers and for history fetched later. pos: the place in the room's timeline, 0 for none.
CREATE TABLE events (
    nid         BIGINT PRIMARY KEY,
    pos         BIGINT NOT NULL,
    event_id    TEXT NOT NULL UNIQUE,
    room_id     TEXT NOT NULL,
    version     TEXT NOT NULL,
    type        TEXT NOT NULL,
    state_key   TEXT,
    sender      TEXT NOT NULL,
    ts          BIGINT NOT NULL,
    depth       BIGINT NOT NULL,
    flags       INTEGER NOT NULL,
    replaces    BIGINT NOT NULL,
    redacts     TEXT NOT NULL,
    redacted_by BIGINT NOT NULL,
    rel_type    TEXT NOT NULL,
    rel_to      TEXT NOT NULL,
    txn         TEXT NOT NULL,
    json        TEXT NOT NULL
);
CREATE INDEX events_timeline ON events (room_id, pos) WHERE pos <> 0;
CREATE UNIQUE INDEX events_txn ON events (room_id, sender, txn) WHERE txn <> '';
CREATE INDEX events_redacts ON events (redacts) WHERE redacts <> '';
CREATE INDEX events_relations ON events (rel_to, pos) WHERE rel_to <> '';
CREATE TABLE events_backward (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    nid BIGINT NOT NULL
);
INSERT INTO events_backward (id, nid) VALUES (1, 0);
