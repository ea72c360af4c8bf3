-- Rows: `doc` is the row as JSON, in the form `format`; the other columns repeat what queries need, and `version` is
-- what the next write must name. Times are microseconds since 1970, UTC; ids are lower-case UUIDs.

CREATE TABLE shares (
    id            TEXT PRIMARY KEY NOT NULL,
    version       INTEGER NOT NULL,
    format        INTEGER NOT NULL,
    project_id    TEXT NOT NULL,
    name          TEXT,
    description   TEXT,
    size_gb       INTEGER NOT NULL,
    protocol      TEXT NOT NULL,
    share_type_id TEXT NOT NULL,
    is_public     INTEGER NOT NULL,
    replicates    INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER,
    doc           TEXT NOT NULL
) STRICT;
CREATE INDEX shares_by_project ON shares (project_id, created_at, id);
CREATE INDEX shares_by_age ON shares (created_at, id);
CREATE INDEX shares_by_name ON shares (name);
CREATE INDEX shares_by_type ON shares (share_type_id);

CREATE TABLE share_metadata (
    share_id TEXT NOT NULL REFERENCES shares (id) ON DELETE CASCADE,
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (share_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX share_metadata_by_value ON share_metadata (key, value);

CREATE TABLE instances (
    id                TEXT PRIMARY KEY NOT NULL,
    version           INTEGER NOT NULL,
    format            INTEGER NOT NULL,
    share_id          TEXT NOT NULL,
    project_id        TEXT NOT NULL,
    host              TEXT, -- host@backend#pool
    backend           TEXT,
    availability_zone TEXT,
    status            TEXT NOT NULL,
    replica_state     TEXT,
    created_at        INTEGER NOT NULL,
    doc               TEXT NOT NULL
) STRICT;
CREATE INDEX instances_by_share ON instances (share_id, created_at, id);
CREATE INDEX instances_by_project ON instances (project_id, created_at, id);
CREATE INDEX instances_by_backend ON instances (backend, created_at, id);
CREATE INDEX instances_by_status ON instances (status, created_at, id);
CREATE INDEX instances_by_state ON instances (replica_state, created_at, id);
CREATE INDEX instances_following ON instances (replica_state, share_id);
CREATE INDEX instances_unfenced ON instances (id) WHERE json_extract(doc, '$.unfenced') = 1;
CREATE INDEX instances_by_age ON instances (created_at, id);
CREATE INDEX instances_by_host ON instances (host, share_id);

CREATE TABLE exports (
    instance_id TEXT NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    share_id    TEXT NOT NULL,
    id          TEXT NOT NULL,
    path        TEXT NOT NULL
) STRICT;
CREATE INDEX exports_by_instance ON exports (instance_id);
CREATE INDEX exports_by_id ON exports (id);
CREATE INDEX exports_by_path ON exports (path);

CREATE TABLE rules (
    id         TEXT PRIMARY KEY NOT NULL,
    version    INTEGER NOT NULL,
    format     INTEGER NOT NULL,
    share_id   TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    doc        TEXT NOT NULL
) STRICT;
CREATE INDEX rules_by_share ON rules (share_id, created_at, id);

CREATE TABLE share_types (
    id         TEXT PRIMARY KEY NOT NULL,
    version    INTEGER NOT NULL,
    format     INTEGER NOT NULL,
    name       TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    doc        TEXT NOT NULL
) STRICT;

-- `id` is the project's.
CREATE TABLE quotas (
    id      TEXT PRIMARY KEY NOT NULL,
    version INTEGER NOT NULL,
    format  INTEGER NOT NULL,
    doc     TEXT NOT NULL
) STRICT;
CREATE TABLE usages (
    id      TEXT PRIMARY KEY NOT NULL,
    version INTEGER NOT NULL,
    format  INTEGER NOT NULL,
    doc     TEXT NOT NULL
) STRICT;

CREATE TABLE operations (
    id         TEXT PRIMARY KEY NOT NULL,
    seq        INTEGER NOT NULL,
    format     INTEGER NOT NULL,
    share_id   TEXT NOT NULL,
    project_id TEXT NOT NULL,
    instance   TEXT,
    kind       TEXT NOT NULL,
    status     TEXT NOT NULL,
    finished   INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    doc        TEXT NOT NULL
) STRICT;
CREATE INDEX operations_unfinished ON operations (created_at, id) WHERE finished = 0;
CREATE INDEX operations_by_share ON operations (share_id, finished, created_at, id);
CREATE INDEX operations_by_project ON operations (project_id, created_at, id);
CREATE INDEX operations_by_instance ON operations (instance, kind, created_at, id);
CREATE INDEX operations_by_kind ON operations (kind, finished, updated_at);
CREATE INDEX operations_by_age ON operations (created_at, id);

-- The log: only ever appended to, but for the syncs that are pruned. A position is never given twice.
CREATE TABLE events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    op       TEXT NOT NULL,
    seq      INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    format   INTEGER NOT NULL,
    doc      TEXT NOT NULL,
    UNIQUE (op, seq)
) STRICT;
