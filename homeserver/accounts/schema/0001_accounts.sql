CREATE TABLE users (
    user_id       TEXT PRIMARY KEY,
    created_at    BIGINT NOT NULL,
    password_hash TEXT NOT NULL DEFAULT '',
    appservice    TEXT NOT NULL DEFAULT '',
    admin         BOOLEAN NOT NULL DEFAULT FALSE,
    guest         BOOLEAN NOT NULL DEFAULT FALSE,
    locked        BOOLEAN NOT NULL DEFAULT FALSE,
    suspended     BOOLEAN NOT NULL DEFAULT FALSE,
    deactivated   BOOLEAN NOT NULL DEFAULT FALSE,
    erased        BOOLEAN NOT NULL DEFAULT FALSE
);
-- A refresh leaves both pairs valid until the new one is used: replaces is the refresh token that then goes.
CREATE TABLE refresh_tokens (
    id         BIGSERIAL PRIMARY KEY,
    token_hash BYTEA NOT NULL UNIQUE,
    user_id    TEXT NOT NULL,
    device_id  TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    replaces   BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_id, device_id);
CREATE INDEX refresh_tokens_replaces ON refresh_tokens (replaces) WHERE replaces <> 0;
CREATE TABLE access_tokens (
    id         BIGSERIAL PRIMARY KEY,
    token_hash BYTEA NOT NULL UNIQUE,
    user_id    TEXT NOT NULL,
    device_id  TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL DEFAULT 0,
    refresh_id BIGINT NOT NULL DEFAULT 0,
    replaces   BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX access_tokens_device ON access_tokens (user_id, device_id);
CREATE INDEX access_tokens_refresh ON access_tokens (refresh_id) WHERE refresh_id <> 0;
CREATE INDEX access_tokens_replaces ON access_tokens (replaces) WHERE replaces <> 0;
CREATE INDEX access_tokens_expiry ON access_tokens (expires_at) WHERE expires_at <> 0;
CREATE TABLE login_tokens (
    token_hash BYTEA PRIMARY KEY,
    user_id    TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE TABLE registration_tokens (
    token        TEXT PRIMARY KEY,
    uses_allowed BIGINT NOT NULL DEFAULT -1,
    completed    BIGINT NOT NULL DEFAULT 0,
    expires_at   BIGINT NOT NULL DEFAULT 0,
    created_at   BIGINT NOT NULL
);
CREATE TABLE uia_sessions (
    id                 TEXT PRIMARY KEY,
    user_id            TEXT NOT NULL,
    operation          TEXT NOT NULL,
    completed          TEXT NOT NULL DEFAULT '[]',
    registration_token TEXT NOT NULL DEFAULT '',
    created_at         BIGINT NOT NULL
);
CREATE INDEX uia_sessions_token ON uia_sessions (registration_token) WHERE registration_token <> '';
CREATE INDEX uia_sessions_age ON uia_sessions (created_at);
