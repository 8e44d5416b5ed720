CREATE TABLE as_org_version (
    version    BIGINT NOT NULL,
    changed_at BIGINT NOT NULL
);

INSERT INTO as_org_version (version, changed_at) VALUES (0, 0);

CREATE TABLE as_units (
    id          TEXT    NOT NULL PRIMARY KEY,
    parent_id   TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    code        TEXT    NOT NULL,
    position    BIGINT  NOT NULL,
    site        TEXT    NOT NULL,
    own_site    BOOLEAN NOT NULL,
    managers    TEXT    NOT NULL,
    no_room     BOOLEAN NOT NULL,
    contain_sub BOOLEAN NOT NULL,
    created_at  BIGINT  NOT NULL,
    removed_at  BIGINT  NOT NULL
);

CREATE TABLE as_people (
    id         TEXT    NOT NULL PRIMARY KEY,
    localpart  TEXT    NOT NULL UNIQUE,
    name       TEXT    NOT NULL,
    mobile     TEXT    NOT NULL,
    email      TEXT    NOT NULL,
    manager    TEXT    NOT NULL,
    hired      TEXT    NOT NULL,
    left_on    TEXT    NOT NULL,
    status     TEXT    NOT NULL,
    admin      BOOLEAN NOT NULL,
    created_at BIGINT  NOT NULL,
    changed_at BIGINT  NOT NULL
);

CREATE TABLE as_posts (
    person_id TEXT    NOT NULL REFERENCES as_people (id),
    place     BIGINT  NOT NULL,
    unit_id   TEXT    NOT NULL REFERENCES as_units (id),
    title     TEXT    NOT NULL,
    main      BOOLEAN NOT NULL,
    leader    TEXT    NOT NULL,
    position  BIGINT  NOT NULL,
    PRIMARY KEY (person_id, place)
);

CREATE TABLE as_org_journal (
    seq        BIGSERIAL PRIMARY KEY,
    version    BIGINT NOT NULL,
    at         BIGINT NOT NULL,
    actor      TEXT   NOT NULL,
    kind       TEXT   NOT NULL,
    object_id  TEXT   NOT NULL,
    old_value  TEXT   NOT NULL,
    new_value  TEXT   NOT NULL
);

CREATE INDEX as_org_journal_object ON as_org_journal (object_id, seq);
