CREATE TABLE threepids (
    medium       TEXT NOT NULL,
    address      TEXT NOT NULL,
    user_id      TEXT NOT NULL,
    validated_at BIGINT NOT NULL,
    added_at     BIGINT NOT NULL,
    PRIMARY KEY (medium, address)
);
CREATE INDEX threepids_user ON threepids (user_id);
-- Where addresses are published, so that they can be taken back.
CREATE TABLE threepid_binds (
    user_id   TEXT NOT NULL,
    medium    TEXT NOT NULL,
    address   TEXT NOT NULL,
    id_server TEXT NOT NULL,
    bound_at  BIGINT NOT NULL,
    PRIMARY KEY (user_id, medium, address, id_server)
);
-- Proofs under way. A dud looks like any other but nothing validates it: the message that was sent says why.
CREATE TABLE validation_sessions (
    sid          TEXT PRIMARY KEY,
    secret_hash  BYTEA NOT NULL,
    medium       TEXT NOT NULL,
    address      TEXT NOT NULL,
    purpose      TEXT NOT NULL,
    user_id      TEXT NOT NULL DEFAULT '',
    send_attempt BIGINT NOT NULL DEFAULT 0,
    next_link    TEXT NOT NULL DEFAULT '',
    token_hash   BYTEA NOT NULL,
    code_hash    BYTEA NOT NULL,
    dud          BOOLEAN NOT NULL DEFAULT FALSE,
    tries        BIGINT NOT NULL DEFAULT 0,
    expires_at   BIGINT NOT NULL,
    validated_at BIGINT NOT NULL DEFAULT 0,
    used_by      TEXT NOT NULL DEFAULT '',
    UNIQUE (secret_hash, medium, address, purpose)
);
CREATE INDEX validation_sessions_expiry ON validation_sessions (expires_at);
