CREATE TABLE room_aliases (
    alias   TEXT PRIMARY KEY,
    room_id TEXT NOT NULL,
    creator TEXT NOT NULL,
    ts      BIGINT NOT NULL
);
CREATE INDEX room_aliases_room ON room_aliases (room_id);
-- network is '' for the server's own list, else appservice ID and network.
CREATE TABLE published_rooms (
    network TEXT NOT NULL,
    room_id TEXT NOT NULL,
    ts      BIGINT NOT NULL,
    PRIMARY KEY (network, room_id)
);
