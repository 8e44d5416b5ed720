-- What waits to be sent to each server. Rows of one txn go out together, under the same transaction ID however
-- often they are tried. A PDU is named by its event; an EDU is written out.
CREATE TABLE fed_queue (
    id BIGSERIAL PRIMARY KEY,
    server TEXT NOT NULL,
    txn BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    edu TEXT NOT NULL
);
CREATE INDEX fed_queue_by_txn ON fed_queue (server, txn, id);

-- Servers that failed, and when they are tried next.
CREATE TABLE fed_destinations (
    server TEXT PRIMARY KEY,
    failures BIGINT NOT NULL,
    failing_since BIGINT NOT NULL,
    retry_at BIGINT NOT NULL
);

-- Up to where the log has been put into the queue.
CREATE TABLE fed_position (
    id BIGINT PRIMARY KEY,
    pos BIGINT NOT NULL
);
