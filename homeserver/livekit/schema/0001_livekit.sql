-- bits: what makes the names of rooms on the media server hard to guess, base64.
CREATE TABLE livekit_secret (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    bits TEXT NOT NULL
);
