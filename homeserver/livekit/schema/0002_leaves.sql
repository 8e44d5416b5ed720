-- Delayed events that this server sends when a participant is gone. due: when it is
-- looked for him next; restarted: when the delay was begun anew; both ms.
CREATE TABLE livekit_leaves (
    delay_id  TEXT PRIMARY KEY,
    alias     TEXT NOT NULL,
    identity  TEXT NOT NULL,
    user_id   TEXT NOT NULL,
    delay     BIGINT NOT NULL,
    connected BOOLEAN NOT NULL,
    restarted BIGINT NOT NULL,
    due       BIGINT NOT NULL
);
CREATE UNIQUE INDEX livekit_leaves_who ON livekit_leaves (alias, identity);
CREATE INDEX livekit_leaves_due ON livekit_leaves (due, delay_id);
