-- The room of a queued event; '' for those that are kept whatever happens.
ALTER TABLE fed_queue ADD COLUMN room_id TEXT NOT NULL DEFAULT '';

-- For servers that have been away while much has happened: the newest event of each room that they should hear of.
-- When they are back they are sent these, and ask for what lies between.
CREATE TABLE fed_behind (
    server TEXT NOT NULL,
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (server, room_id)
);
