-- doc: the event's place in the timeline (events.pos). source: the row of the edit whose
-- text is indexed, 0 when it is the event's own. terms: how many terms the text has.
CREATE TABLE search_docs (
    doc     BIGINT PRIMARY KEY,
    nid     BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    sender  TEXT NOT NULL,
    field   INTEGER NOT NULL,
    terms   INTEGER NOT NULL,
    source  BIGINT NOT NULL
);
CREATE INDEX search_docs_source ON search_docs (source) WHERE source <> 0;
-- upto: the log is indexed up to here. downto: so is fetched history, which has falling
-- negative places.
CREATE TABLE search_progress (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    upto   BIGINT NOT NULL,
    downto BIGINT NOT NULL
);
INSERT INTO search_progress (id, upto, downto) VALUES (1, 0, 0);
CREATE INDEX events_history ON events (pos) WHERE pos < 0;
