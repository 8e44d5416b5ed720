-- Events that clients hear of in any case until they end (ms).
CREATE TABLE sticky_events (
    nid  BIGINT PRIMARY KEY,
    ends BIGINT NOT NULL
);
CREATE INDEX sticky_events_ends ON sticky_events (ends);
