-- kind: room, event or user. user_id: who is reported; of an event its sender.
CREATE TABLE reports (
    id         BIGSERIAL PRIMARY KEY,
    kind       TEXT NOT NULL,
    reporter   TEXT NOT NULL,
    room_id    TEXT NOT NULL,
    event_id   TEXT NOT NULL,
    user_id    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    ts         BIGINT NOT NULL,
    handled_by TEXT NOT NULL,
    handled_ts BIGINT NOT NULL,
    UNIQUE (reporter, kind, room_id, event_id, user_id)
);
-- Up to where in the log people's settings have been carried to the rooms that replaced others.
CREATE TABLE upgrades_carried (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    pos BIGINT NOT NULL
);
