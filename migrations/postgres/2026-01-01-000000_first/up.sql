-- Times are milliseconds since 1970 (UTC), JSON of results is text as it came. Rows of commands, outcomes and
-- late_results are inserted and never touched again; what changes is kept small (open_commands) or few (actions,
-- action_counts), and has room in its pages for its next version, so that an update touches no index.
--
-- Texts are compared bytewise (COLLATE "C") whatever the order of the database is. Facts and labels are `json`, not
-- `jsonb`: it keeps numbers as they were written, which is what targets compare.

CREATE TABLE agents (
    no            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          TEXT COLLATE "C" NOT NULL,
    transport     TEXT COLLATE "C" NOT NULL,
    address       TEXT,
    labels        JSON NOT NULL DEFAULT '{}',
    facts         JSON NOT NULL DEFAULT '{}',
    version       TEXT COLLATE "C" NOT NULL DEFAULT '',
    enrolled_at   BIGINT NOT NULL,
    last_seen     BIGINT,
    checked_in_at BIGINT,
    disabled      BOOLEAN NOT NULL DEFAULT FALSE,
    removed_at    BIGINT
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX agents_name ON agents (name) WHERE removed_at IS NULL;
-- For pages by name, removed ones included.
CREATE INDEX agents_all_names ON agents (name);

CREATE TABLE tokens (
    id         TEXT COLLATE "C" PRIMARY KEY,
    hash       BYTEA NOT NULL UNIQUE,
    role       TEXT NOT NULL,
    name       TEXT NOT NULL DEFAULT '',
    agent_no   BIGINT REFERENCES agents (no),
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);

-- Every writing transaction locks its own row FOR KEY SHARE; whoever takes over deletes the row, waits by that for
-- writers in flight, and later ones find nothing and fail.
CREATE TABLE nodes (
    incarnation TEXT COLLATE "C" PRIMARY KEY,
    name        TEXT NOT NULL,
    started_at  BIGINT NOT NULL,
    heartbeat   BIGINT NOT NULL
) WITH (fillfactor = 50);

-- Which incarnation holds an agent's connection. A newer connection has a higher epoch.
CREATE TABLE agent_sessions (
    agent_no     BIGINT PRIMARY KEY,
    incarnation  TEXT COLLATE "C" NOT NULL,
    epoch        BIGINT NOT NULL,
    connected_at BIGINT NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX agent_sessions_incarnation ON agent_sessions (incarnation);

CREATE TABLE actions (
    no                 BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id                 TEXT COLLATE "C" NOT NULL UNIQUE,
    idempotency_key    TEXT COLLATE "C" UNIQUE,
    name               TEXT NOT NULL,
    target             TEXT NOT NULL,
    document           TEXT NOT NULL,
    operations         TEXT NOT NULL,
    digest             BYTEA NOT NULL,
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
    owner              TEXT COLLATE "C",
    ended_at           BIGINT
) WITH (fillfactor = 50);
CREATE INDEX actions_open ON actions (no) WHERE ended_at IS NULL;
CREATE INDEX actions_ended ON actions (ended_at) WHERE ended_at IS NOT NULL;

-- Actions that are kept no longer: their rows elsewhere go in small batches, and then this one.
CREATE TABLE purges (
    action_no BIGINT PRIMARY KEY
);

-- Agents that were removed, until all their commands are closed.
CREATE TABLE departures (
    agent_no BIGINT PRIMARY KEY
);

-- One row per action and writer lane; readers sum the lanes.
CREATE TABLE action_counts (
    action_no     BIGINT NOT NULL,
    lane          TEXT COLLATE "C" NOT NULL,
    total         BIGINT NOT NULL DEFAULT 0,
    sent          BIGINT NOT NULL DEFAULT 0,
    succeeded     BIGINT NOT NULL DEFAULT 0,
    failed        BIGINT NOT NULL DEFAULT 0,
    timed_out     BIGINT NOT NULL DEFAULT 0,
    undeliverable BIGINT NOT NULL DEFAULT 0,
    expired       BIGINT NOT NULL DEFAULT 0,
    cancelled     BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (action_no, lane)
) WITH (fillfactor = 30);

CREATE TABLE commands (
    action_no BIGINT NOT NULL,
    agent_no  BIGINT NOT NULL,
    due_at    BIGINT,
    PRIMARY KEY (action_no, agent_no)
);

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
);

CREATE TABLE late_results (
    action_no   BIGINT NOT NULL,
    agent_no    BIGINT NOT NULL,
    run         INTEGER NOT NULL,
    status      SMALLINT NOT NULL,
    finished_at BIGINT NOT NULL,
    results     TEXT,
    error       TEXT,
    PRIMARY KEY (action_no, agent_no, run)
);

-- Rows come and go: vacuum looks at them sooner than at others.
CREATE TABLE open_commands (
    action_no BIGINT NOT NULL,
    agent_no  BIGINT NOT NULL,
    state     SMALLINT NOT NULL,
    run       INTEGER NOT NULL,
    attempts  INTEGER NOT NULL,
    due_at    BIGINT NOT NULL,
    sent_at   BIGINT,
    PRIMARY KEY (action_no, agent_no)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX open_commands_agent ON open_commands (agent_no);
CREATE INDEX open_commands_due ON open_commands (state, due_at, action_no, agent_no);

CREATE TABLE agent_metadata (
    agent_no     BIGINT NOT NULL,
    key          TEXT COLLATE "C" NOT NULL,
    value        TEXT,
    error        TEXT,
    collected_at BIGINT NOT NULL,
    PRIMARY KEY (agent_no, key)
);

CREATE TABLE schedules (
    no         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL UNIQUE,
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
);

-- What targets ask, as `Target::evaluate` means it.

CREATE FUNCTION odoshi_label(labels JSON, key TEXT) RETURNS TEXT
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT labels ->> key $$;

-- The exponent is short so that the cast finds no number too large.
CREATE FUNCTION odoshi_number(text TEXT) RETURNS DOUBLE PRECISION
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN length(text) <= 64 AND text ~ '^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$'
        THEN text::DOUBLE PRECISION END
$$;

CREATE FUNCTION odoshi_like(text TEXT, pattern TEXT, ignore_case BOOLEAN) RETURNS BOOLEAN
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN ignore_case THEN text COLLATE "C" ILIKE pattern COLLATE "C"
        ELSE text COLLATE "C" LIKE pattern COLLATE "C" END
$$;
