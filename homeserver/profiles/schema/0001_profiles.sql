CREATE TABLE profiles (
    user_id TEXT NOT NULL,
    field   TEXT NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (user_id, field)
);
-- Users whose name or picture has still to be spread into their rooms.
CREATE TABLE profile_spreads (
    user_id TEXT PRIMARY KEY,
    version BIGINT NOT NULL
);
