CREATE TABLE as_transactions (
    txn_id TEXT PRIMARY KEY,
    at     BIGINT NOT NULL
);
CREATE INDEX as_transactions_at ON as_transactions (at);
