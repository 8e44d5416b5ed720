CREATE TABLE as_users (
    person     TEXT PRIMARY KEY,
    localpart  TEXT NOT NULL,
    name       TEXT NOT NULL,
    state      TEXT NOT NULL,
    changed_at BIGINT NOT NULL
);
CREATE TABLE as_rooms (
    room_key   TEXT PRIMARY KEY,
    room_id    TEXT NOT NULL,
    alias      TEXT NOT NULL,
    name       TEXT NOT NULL,
    parent     TEXT NOT NULL,
    ord        TEXT NOT NULL,
    power      TEXT NOT NULL,
    closed     BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX as_rooms_room_id ON as_rooms (room_id);
CREATE TABLE as_room_members (
    room_key   TEXT NOT NULL,
    person     TEXT NOT NULL,
    membership TEXT NOT NULL,
    reason     TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (room_key, person)
);
CREATE INDEX as_room_members_person ON as_room_members (person);
CREATE TABLE as_ding_rooms (
    person     TEXT PRIMARY KEY,
    room_id    TEXT NOT NULL,
    joined     BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE TABLE as_derive_state (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    clean        BOOLEAN NOT NULL,
    tree_version BIGINT NOT NULL,
    bot_name     TEXT NOT NULL
);
INSERT INTO as_derive_state (id, clean, tree_version, bot_name) VALUES (1, TRUE, -1, '');
