CREATE TABLE push_rules (
    user_id TEXT PRIMARY KEY,
    pos     BIGINT NOT NULL,
    changes TEXT NOT NULL
);
CREATE TABLE pushers (
    id                  BIGSERIAL PRIMARY KEY,
    user_id             TEXT NOT NULL,
    app_id              TEXT NOT NULL,
    pushkey             TEXT NOT NULL,
    pushkey_ts          BIGINT NOT NULL,
    kind                TEXT NOT NULL,
    app_display_name    TEXT NOT NULL,
    device_display_name TEXT NOT NULL,
    profile_tag         TEXT NOT NULL,
    lang                TEXT NOT NULL,
    data                TEXT NOT NULL,
    device_id           TEXT NOT NULL,
    token_id            BIGINT NOT NULL,
    last_pos            BIGINT NOT NULL,
    failing_since       BIGINT NOT NULL,
    UNIQUE (app_id, pushkey, user_id)
);
CREATE INDEX pushers_user ON pushers (user_id);
CREATE TABLE push_position (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    pos BIGINT NOT NULL
);
