-- Versions before could not make schedules: these tables are empty.
DROP TABLE occurrences;
DROP TABLE schedules;

CREATE TABLE schedules (
    no             INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    name           TEXT NOT NULL UNIQUE,
    -- Grows with each change by an operator.
    version        BIGINT NOT NULL DEFAULT 1,
    document       TEXT NOT NULL,
    digest         BLOB NOT NULL,
    paused         BOOLEAN NOT NULL,
    -- Every occurrence up to and including this time is decided: made, or dropped.
    decided        BIGINT NOT NULL,
    -- The next one; none while it is paused.
    next_at        BIGINT,
    -- The release of the zone data by which it was computed.
    zone_data      TEXT,
    last_at        BIGINT,
    last_action_no BIGINT,
    -- The range of dropped occurrences after the last one, which further ones with the same reason extend.
    dropped_no     BIGINT,
    dropped_reason TEXT,
    error          TEXT,
    created_at     BIGINT NOT NULL,
    created_by     TEXT NOT NULL,
    changed_at     BIGINT NOT NULL
);
CREATE INDEX schedules_due ON schedules (next_at, no) WHERE next_at IS NOT NULL;

-- One row for each occurrence that was made. Its action may be deleted before it.
CREATE TABLE occurrences (
    schedule_no BIGINT NOT NULL,
    occurs_at   BIGINT NOT NULL,
    triggered   BOOLEAN NOT NULL,
    made_at     BIGINT NOT NULL,
    action_no   BIGINT,
    PRIMARY KEY (schedule_no, occurs_at, triggered)
);
CREATE INDEX occurrences_action ON occurrences (action_no) WHERE action_no IS NOT NULL;
CREATE INDEX occurrences_made ON occurrences (made_at);

-- Ranges of occurrences that were not made, and why.
CREATE TABLE dropped_occurrences (
    no          INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    schedule_no BIGINT NOT NULL,
    from_at     BIGINT NOT NULL,
    to_at       BIGINT NOT NULL,
    number      BIGINT NOT NULL,
    reason      TEXT NOT NULL,
    recorded_at BIGINT NOT NULL
);
CREATE INDEX dropped_occurrences_schedule ON dropped_occurrences (schedule_no, no);
CREATE INDEX dropped_occurrences_recorded ON dropped_occurrences (recorded_at);

-- The nominal time of the occurrence, if a schedule made it.
ALTER TABLE actions ADD COLUMN scheduled_for BIGINT;
