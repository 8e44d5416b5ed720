-- The room in which a person gets the server's notices.
CREATE TABLE notice_rooms (
    user_id TEXT PRIMARY KEY,
    room_id TEXT NOT NULL
);
-- Accounts that were made to send notices, which are nobody else's.
CREATE TABLE notice_senders (
    user_id TEXT PRIMARY KEY
);
