CREATE TABLE thread_subscriptions (
    user_id    TEXT NOT NULL,
    room_id    TEXT NOT NULL,
    root       TEXT NOT NULL,
    pos        BIGINT NOT NULL,
    subscribed BOOLEAN NOT NULL,
    automatic  BOOLEAN NOT NULL,
    ended      BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, root)
);
CREATE INDEX thread_subscriptions_changed ON thread_subscriptions (user_id, pos);
CREATE INDEX thread_subscriptions_root ON thread_subscriptions (root, room_id) WHERE subscribed;
