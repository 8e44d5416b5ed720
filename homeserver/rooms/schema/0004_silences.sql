-- Rooms whose state may lack events of a server whose keys could not be had when the
-- state was taken from another one.
CREATE TABLE silences (
    room_id     TEXT NOT NULL,
    server_name TEXT NOT NULL,
    PRIMARY KEY (room_id, server_name)
);
