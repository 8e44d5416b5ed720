CREATE TABLE devices (
    user_id      TEXT NOT NULL,
    device_id    TEXT NOT NULL,
    display_name TEXT NOT NULL DEFAULT '',
    created_at   BIGINT NOT NULL,
    seen_at      BIGINT NOT NULL DEFAULT 0,
    seen_ip      TEXT NOT NULL DEFAULT '',
    seen_agent   TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (user_id, device_id)
);
