-- What a session is for may be one of several flows, and stages remember what they have proven.
ALTER TABLE uia_sessions ADD COLUMN flows TEXT NOT NULL DEFAULT '[]';
ALTER TABLE uia_sessions ADD COLUMN evidence TEXT NOT NULL DEFAULT '{}';
-- The policies that people accepted when they registered.
CREATE TABLE accepted_policies (
    user_id     TEXT NOT NULL,
    policy      TEXT NOT NULL,
    version     TEXT NOT NULL,
    accepted_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, policy, version)
);
-- Closed accounts of which something is still to be removed.
CREATE TABLE deactivations (
    user_id    TEXT PRIMARY KEY,
    erase      BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);
