-- send_at: when it is to be sent; due: when that is tried next, later where the sender
-- is being slowed down; finalised_at: 0 while it is scheduled. All times in ms.
CREATE TABLE delayed_events (
    delay_id     TEXT PRIMARY KEY,
    user_id      TEXT NOT NULL,
    room_id      TEXT NOT NULL,
    type         TEXT NOT NULL,
    state_key    TEXT,
    content      TEXT NOT NULL,
    sticky       BIGINT,
    ts           BIGINT NOT NULL,
    unlimited    BOOLEAN NOT NULL,
    txn          TEXT NOT NULL,
    delay        BIGINT NOT NULL,
    scheduled_at BIGINT NOT NULL,
    send_at      BIGINT NOT NULL,
    due          BIGINT NOT NULL,
    finalised_at BIGINT NOT NULL,
    event_id     TEXT NOT NULL,
    error        TEXT NOT NULL
);
CREATE INDEX delayed_events_due ON delayed_events (due) WHERE finalised_at = 0;
CREATE INDEX delayed_events_user ON delayed_events (user_id, send_at, delay_id) WHERE finalised_at = 0;
CREATE INDEX delayed_events_final ON delayed_events (user_id, finalised_at) WHERE finalised_at > 0;
CREATE UNIQUE INDEX delayed_events_txn ON delayed_events (user_id, txn) WHERE txn <> '';
