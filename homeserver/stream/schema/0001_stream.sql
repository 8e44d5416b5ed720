CREATE TABLE stream_head (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    pos BIGINT NOT NULL
);
INSERT INTO stream_head (id, pos) VALUES (1, 0);
CREATE TABLE stream (
    pos     BIGINT PRIMARY KEY,
    kind    INTEGER NOT NULL,
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL
);
CREATE TABLE stream_followers (
    name TEXT PRIMARY KEY,
    pos  BIGINT NOT NULL
);
