-- The device of a user that waits for the next one to be logged in; data is secret to the server.
CREATE TABLE dehydrated_devices (
    user_id   TEXT PRIMARY KEY,
    device_id TEXT NOT NULL,
    data      TEXT NOT NULL
);
