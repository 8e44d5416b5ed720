CREATE TABLE rooms (
    room_id TEXT PRIMARY KEY,
    version TEXT NOT NULL,
    seq     BIGINT NOT NULL,
    tips    TEXT NOT NULL,
    depth   BIGINT NOT NULL
);
-- Memberships of local users only; the state has everybody's.
CREATE TABLE memberships (
    user_id    TEXT NOT NULL,
    room_id    TEXT NOT NULL,
    membership TEXT NOT NULL,
    sender     TEXT NOT NULL,
    event_id   TEXT NOT NULL,
    pos        BIGINT NOT NULL,
    forgotten  BOOLEAN NOT NULL,
    stripped   TEXT NOT NULL,
    was_joined BOOLEAN NOT NULL,
    PRIMARY KEY (user_id, room_id)
);
CREATE INDEX memberships_pos ON memberships (user_id, pos);
