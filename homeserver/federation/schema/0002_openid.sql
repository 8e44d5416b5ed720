-- Tokens by which a user proves to a third party who they are, as SHA-256.
CREATE TABLE openid_tokens (
    token_hash TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX openid_tokens_expires ON openid_tokens (expires_at);
