-- Servers that have been away for so long that receipts are no longer queued for them: what they have missed begins
-- after pos and ends at last. It is read from where receipts are kept when they are back.
CREATE TABLE fed_owed (
    server TEXT PRIMARY KEY,
    pos BIGINT NOT NULL,
    last BIGINT NOT NULL
);
