CREATE TABLE as_site_self (
    one         BIGINT NOT NULL PRIMARY KEY,
    private_key TEXT   NOT NULL,
    room_id     TEXT   NOT NULL,
    room_alias  TEXT   NOT NULL
);

CREATE TABLE as_site_peers (
    site           TEXT   NOT NULL PRIMARY KEY,
    public_key     TEXT   NOT NULL,
    offered_key    TEXT   NOT NULL,
    out_generation BIGINT NOT NULL,
    out_seq        BIGINT NOT NULL,
    acked_seq      BIGINT NOT NULL,
    acked_id       TEXT   NOT NULL,
    in_generation  BIGINT NOT NULL,
    in_seq         BIGINT NOT NULL,
    in_id          TEXT   NOT NULL,
    epoch          BIGINT NOT NULL,
    version        BIGINT NOT NULL,
    digest         TEXT   NOT NULL,
    heard_at       BIGINT NOT NULL
);

CREATE TABLE as_site_messages (
    id    TEXT   NOT NULL PRIMARY KEY,
    kind  TEXT   NOT NULL,
    body  TEXT   NOT NULL,
    media TEXT   NOT NULL,
    at    BIGINT NOT NULL
);

CREATE TABLE as_site_out (
    site       TEXT   NOT NULL,
    seq        BIGINT NOT NULL,
    message_id TEXT   NOT NULL REFERENCES as_site_messages (id),
    PRIMARY KEY (site, seq)
);

CREATE INDEX as_site_out_message ON as_site_out (message_id);

CREATE TABLE as_site_handled (
    site       TEXT   NOT NULL,
    message_id TEXT   NOT NULL,
    at         BIGINT NOT NULL,
    PRIMARY KEY (site, message_id)
);

CREATE INDEX as_site_handled_at ON as_site_handled (at);

CREATE TABLE as_site_in (
    n        BIGSERIAL PRIMARY KEY,
    site     TEXT   NOT NULL,
    event_id TEXT   NOT NULL UNIQUE,
    content  TEXT   NOT NULL
);

CREATE INDEX as_site_in_site ON as_site_in (site, n);

CREATE TABLE as_site_trees (
    epoch   BIGINT NOT NULL,
    version BIGINT NOT NULL,
    digest  TEXT   NOT NULL,
    PRIMARY KEY (epoch, version)
);

CREATE TABLE as_site_delegated (
    site TEXT NOT NULL,
    unit TEXT NOT NULL,
    PRIMARY KEY (site, unit)
);

CREATE TABLE as_site_proposals (
    id         TEXT   NOT NULL PRIMARY KEY,
    site       TEXT   NOT NULL,
    actor      TEXT   NOT NULL,
    at         BIGINT NOT NULL,
    changes    BIGINT NOT NULL,
    decided_at BIGINT NOT NULL,
    outcome    TEXT   NOT NULL
);

CREATE INDEX as_site_proposals_at ON as_site_proposals (at);
