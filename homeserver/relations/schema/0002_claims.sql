-- How many children other servers say that an event has (MSC2836), where that is more
-- than are known here, and which of that they have been asked for.
CREATE TABLE relations_claims (
    event_id TEXT PRIMARY KEY,
    total    BIGINT NOT NULL,
    children TEXT NOT NULL,
    hash     TEXT NOT NULL,
    explored TEXT NOT NULL
);
