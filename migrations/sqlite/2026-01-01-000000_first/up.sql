-- Times are milliseconds since 1970 (UTC), JSON is text. Rows of commands, outcomes and late_results are inserted and
-- never touched again; what changes is kept small (open_commands) or few (actions, action_counts).

-- AUTOINCREMENT: the number of a removed agent is never given to another one.
CREATE TABLE agents (
    no          INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    name        TEXT NOT NULL,
    transport   TEXT NOT NULL,
    address     TEXT,
    labels      TEXT NOT NULL DEFAULT '{}',
    facts       TEXT NOT NULL DEFAULT '{}',
    version     TEXT NOT NULL DEFAULT '',
    enrolled_at BIGINT NOT NULL,
    last_seen   BIGINT,
    checked_in_at BIGINT,
    disabled    BOOLEAN NOT NULL DEFAULT FALSE,
    removed_at  BIGINT
);
CREATE UNIQUE INDEX agents_name ON agents (name) WHERE removed_at IS NULL;
-- For pages by name, removed ones included.
CREATE INDEX agents_all_names ON agents (name);

CREATE TABLE tokens (
    id         TEXT PRIMARY KEY NOT NULL,
    hash       BLOB NOT NULL UNIQUE,
    role       TEXT NOT NULL,
    name       TEXT NOT NULL DEFAULT '',
    agent_no   BIGINT REFERENCES agents (no),
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);

CREATE TABLE nodes (
    incarnation TEXT PRIMARY KEY NOT NULL,
    name        TEXT NOT NULL,
    started_at  BIGINT NOT NULL,
    heartbeat   BIGINT NOT NULL
);

-- Which incarnation holds an agent's connection. A newer connection has a higher epoch.
CREATE TABLE agent_sessions (
    agent_no     BIGINT PRIMARY KEY NOT NULL,
    incarnation  TEXT NOT NULL,
    epoch        BIGINT NOT NULL,
    connected_at BIGINT NOT NULL
);

CREATE TABLE actions (
    no                 INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    id                 TEXT NOT NULL UNIQUE,
    idempotency_key    TEXT UNIQUE,
    name               TEXT NOT NULL,
    target             TEXT NOT NULL,
    document           TEXT NOT NULL,
    operations         TEXT NOT NULL,
    digest             BLOB NOT NULL,
    created_at         BIGINT NOT NULL,
    valid_from         BIGINT NOT NULL,
    expires_at         BIGINT NOT NULL,
    spread_ms          BIGINT NOT NULL,
    timeout_ms         BIGINT NOT NULL,
    max_deliveries     INTEGER,
    max_runs           INTEGER NOT NULL,
    live               BOOLEAN NOT NULL,
    priority           INTEGER NOT NULL,
    resolved           BOOLEAN NOT NULL DEFAULT FALSE,
    paused             BOOLEAN NOT NULL DEFAULT FALSE,
    cancelled          BOOLEAN NOT NULL DEFAULT FALSE,
    expired            BOOLEAN NOT NULL DEFAULT FALSE,
    expected_total     BIGINT,
    resolved_through   BIGINT NOT NULL DEFAULT 0,
    dispatched_through BIGINT NOT NULL DEFAULT 0,
    owner              TEXT,
    ended_at           BIGINT
);
CREATE INDEX actions_open ON actions (no) WHERE ended_at IS NULL;

-- One row per action and writer lane; readers sum the lanes.
CREATE TABLE action_counts (
    action_no     BIGINT NOT NULL,
    lane          TEXT NOT NULL,
    total         BIGINT NOT NULL DEFAULT 0,
    sent          BIGINT NOT NULL DEFAULT 0,
    succeeded     BIGINT NOT NULL DEFAULT 0,
    failed        BIGINT NOT NULL DEFAULT 0,
    timed_out     BIGINT NOT NULL DEFAULT 0,
    undeliverable BIGINT NOT NULL DEFAULT 0,
    expired       BIGINT NOT NULL DEFAULT 0,
    cancelled     BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (action_no, lane)
) WITHOUT ROWID;

CREATE TABLE commands (
    action_no BIGINT NOT NULL,
    agent_no  BIGINT NOT NULL,
    due_at    BIGINT,
    PRIMARY KEY (action_no, agent_no)
) WITHOUT ROWID;

CREATE TABLE outcomes (
    action_no   BIGINT NOT NULL,
    agent_no    BIGINT NOT NULL,
    run         INTEGER NOT NULL,
    status      SMALLINT NOT NULL,
    is_final    BOOLEAN NOT NULL,
    attempts    INTEGER NOT NULL,
    sent_at     BIGINT,
    started_at  BIGINT,
    finished_at BIGINT NOT NULL,
    results     TEXT,
    error       TEXT,
    PRIMARY KEY (action_no, agent_no, run)
) WITHOUT ROWID;

CREATE TABLE late_results (
    action_no   BIGINT NOT NULL,
    agent_no    BIGINT NOT NULL,
    run         INTEGER NOT NULL,
    status      SMALLINT NOT NULL,
    finished_at BIGINT NOT NULL,
    results     TEXT,
    error       TEXT,
    PRIMARY KEY (action_no, agent_no, run)
) WITHOUT ROWID;

CREATE TABLE open_commands (
    action_no BIGINT NOT NULL,
    agent_no  BIGINT NOT NULL,
    state     SMALLINT NOT NULL,
    run       INTEGER NOT NULL,
    attempts  INTEGER NOT NULL,
    due_at    BIGINT NOT NULL,
    sent_at   BIGINT,
    PRIMARY KEY (action_no, agent_no)
) WITHOUT ROWID;
CREATE INDEX open_commands_agent ON open_commands (agent_no);
CREATE INDEX open_commands_due ON open_commands (state, due_at);

CREATE TABLE agent_metadata (
    agent_no     BIGINT NOT NULL,
    key          TEXT NOT NULL,
    value        TEXT,
    error        TEXT,
    collected_at BIGINT NOT NULL,
    PRIMARY KEY (agent_no, key)
) WITHOUT ROWID;

CREATE TABLE schedules (
    no         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    name       TEXT NOT NULL UNIQUE,
    document   TEXT NOT NULL,
    paused     BOOLEAN NOT NULL DEFAULT FALSE,
    next_at    BIGINT,
    created_at BIGINT NOT NULL
);

CREATE TABLE occurrences (
    schedule_no BIGINT NOT NULL,
    occurs_at   BIGINT NOT NULL,
    action_no   BIGINT,
    skipped     TEXT,
    PRIMARY KEY (schedule_no, occurs_at)
) WITHOUT ROWID;
