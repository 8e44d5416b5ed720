-- Users who wanted their content erased, and since which position newcomers see it redacted.
CREATE TABLE erasures (
    user_id TEXT PRIMARY KEY,
    pos     BIGINT NOT NULL
);
