CREATE TABLE presence (
    user_id     TEXT PRIMARY KEY,
    status_msg  TEXT NOT NULL,
    last_active BIGINT NOT NULL
);
