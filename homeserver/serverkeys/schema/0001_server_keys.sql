-- Signing keys of other servers, one row a key. expired_ts is 0 for a key in use.
CREATE TABLE server_keys (
    server_name TEXT NOT NULL,
    key_id TEXT NOT NULL,
    public_key BYTEA NOT NULL,
    valid_until_ts BIGINT NOT NULL,
    expired_ts BIGINT NOT NULL,
    PRIMARY KEY (server_name, key_id)
);

-- The last good answer of each server, as it was signed, for those who ask this server as a notary.
CREATE TABLE server_key_answers (
    server_name TEXT PRIMARY KEY,
    valid_until_ts BIGINT NOT NULL,
    fetched_ts BIGINT NOT NULL,
    answer TEXT NOT NULL
);
