-- The blog's database. Moments are text in ISO 8601, UTC, with a Z: they sort as they read.
PRAGMA user_version = 1;

CREATE TABLE user (
    id            INTEGER PRIMARY KEY,
    login         TEXT NOT NULL UNIQUE,
    name          TEXT NOT NULL,
    bio           TEXT NOT NULL DEFAULT '',
    password_hash TEXT,                          -- NULL: writes here, but cannot log in
    is_admin      INTEGER NOT NULL DEFAULT 0 CHECK (is_admin IN (0, 1))
);

CREATE TABLE post (
    id        INTEGER PRIMARY KEY,
    slug      TEXT NOT NULL UNIQUE,
    title     TEXT NOT NULL,
    summary   TEXT NOT NULL,
    body      TEXT NOT NULL,
    author_id INTEGER NOT NULL REFERENCES user (id),
    published TEXT NOT NULL
);
CREATE INDEX post_by_date ON post (published DESC);

CREATE TABLE post_tag (
    post_id INTEGER NOT NULL REFERENCES post (id) ON DELETE CASCADE,
    tag     TEXT NOT NULL,
    PRIMARY KEY (post_id, tag)
) WITHOUT ROWID;
CREATE INDEX post_tag_by_tag ON post_tag (tag);

CREATE TABLE comment (
    id      INTEGER PRIMARY KEY,
    post_id INTEGER NOT NULL REFERENCES post (id) ON DELETE CASCADE,
    name    TEXT NOT NULL,
    body    TEXT NOT NULL,
    written TEXT NOT NULL
);
CREATE INDEX comment_by_post ON comment (post_id, written);

-- What all processes of the blog must agree on, such as the key that signs sessions.
CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
