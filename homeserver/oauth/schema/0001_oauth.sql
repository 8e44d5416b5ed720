-- A client's ID follows from its metadata, so that all installations of one client share a row.
CREATE TABLE oauth_clients (
    client_id  TEXT PRIMARY KEY,
    metadata   TEXT NOT NULL,
    used       BOOLEAN NOT NULL DEFAULT FALSE,
    checked_at BIGINT NOT NULL
);
CREATE INDEX oauth_clients_unused ON oauth_clients (checked_at) WHERE NOT used;
CREATE INDEX oauth_clients_used ON oauth_clients (checked_at) WHERE used;
CREATE TABLE oauth_codes (
    code_hash    BYTEA PRIMARY KEY,
    client_id    TEXT NOT NULL,
    redirect_uri TEXT NOT NULL,
    user_id      TEXT NOT NULL,
    device_id    TEXT NOT NULL,
    scope        TEXT NOT NULL,
    challenge    TEXT NOT NULL,
    nonce        TEXT NOT NULL,
    auth_at      BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    used         BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX oauth_codes_expiry ON oauth_codes (expires_at);
CREATE INDEX oauth_codes_user ON oauth_codes (user_id);
CREATE TABLE oauth_device_codes (
    code_hash  BYTEA PRIMARY KEY,
    user_code  TEXT NOT NULL UNIQUE,
    client_id  TEXT NOT NULL,
    device_id  TEXT NOT NULL,
    scope      TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    state      TEXT NOT NULL DEFAULT 'pending',
    user_id    TEXT NOT NULL DEFAULT '',
    auth_at    BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX oauth_device_codes_user ON oauth_device_codes (user_id) WHERE user_id <> '';
CREATE INDEX oauth_device_codes_expiry ON oauth_device_codes (expires_at);
-- Browsers that are signed in to the account pages.
CREATE TABLE oauth_browsers (
    token_hash BYTEA PRIMARY KEY,
    user_id    TEXT NOT NULL,
    auth_at    BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX oauth_browsers_user ON oauth_browsers (user_id);
CREATE INDEX oauth_browsers_expiry ON oauth_browsers (expires_at);
-- Users who have allowed a client to replace their cross-signing keys, once.
CREATE TABLE oauth_resets (
    user_id    TEXT PRIMARY KEY,
    expires_at BIGINT NOT NULL
);
CREATE INDEX oauth_resets_expiry ON oauth_resets (expires_at);
CREATE TABLE oauth_keys (
    slot        BIGINT PRIMARY KEY,
    id          TEXT NOT NULL,
    private_key TEXT NOT NULL,
    created_at  BIGINT NOT NULL
);
