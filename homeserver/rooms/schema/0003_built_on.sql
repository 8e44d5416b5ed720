-- Events without a place here, on which events that have one are built: should they
-- come, nothing new is to be built on them.
CREATE TABLE built_on (
    room_id  TEXT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (room_id, event_id)
);
