-- Up to where each application service has the log, and up to where the transaction goes that is being sent to it.
CREATE TABLE application_positions (
    service TEXT PRIMARY KEY,
    pos BIGINT NOT NULL,
    pending BIGINT NOT NULL
);
