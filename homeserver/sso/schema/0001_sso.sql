CREATE TABLE sso_identities (
    provider   TEXT NOT NULL,
    subject    TEXT NOT NULL,
    user_id    TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (provider, subject)
);
CREATE INDEX sso_identities_user ON sso_identities (user_id);
-- The key that seals what a browser carries from one step of a sign-in to the next.
CREATE TABLE sso_keys (
    id     BIGINT PRIMARY KEY,
    secret BYTEA NOT NULL
);
