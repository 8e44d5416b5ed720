-- Several sites. home is the site that looks after a room, '' for this one; creators are the bots that made it, '' for
-- the own alone; rules is whom its join rules name; inside tells whether this site's bot is in it; told, whether the other
-- sites know it as it is.
ALTER TABLE as_rooms ADD COLUMN home TEXT NOT NULL DEFAULT '';
ALTER TABLE as_rooms ADD COLUMN creators TEXT NOT NULL DEFAULT '';
ALTER TABLE as_rooms ADD COLUMN rules TEXT NOT NULL DEFAULT '';
ALTER TABLE as_rooms ADD COLUMN inside BOOLEAN NOT NULL DEFAULT TRUE;
ALTER TABLE as_rooms ADD COLUMN told BOOLEAN NOT NULL DEFAULT FALSE;
-- Which other sites' bots are in the rooms of this site: invited, joined or left.
CREATE TABLE as_room_sites (
    room_key   TEXT NOT NULL,
    site       TEXT NOT NULL,
    state      TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (room_key, site)
);
-- The rooms that other sites have told of.
CREATE TABLE as_room_announced (
    room_key   TEXT NOT NULL,
    site       TEXT NOT NULL,
    room_id    TEXT NOT NULL,
    alias      TEXT NOT NULL,
    creators   TEXT NOT NULL,
    closed     BOOLEAN NOT NULL,
    PRIMARY KEY (room_key, site)
);
-- Invitations by other sites' bots that are still to be accepted.
CREATE TABLE as_invitations (
    room_id    TEXT NOT NULL,
    user_id    TEXT NOT NULL,
    inviter    TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (room_id, user_id)
);
-- The sites that have been told all rooms once, and those that have told all of theirs.
CREATE TABLE as_sites_told (
    site       TEXT PRIMARY KEY,
    told_at    BIGINT NOT NULL,
    heard_at   BIGINT NOT NULL
);
