ALTER TABLE actions DROP COLUMN scheduled_for;
DROP TABLE dropped_occurrences;
DROP TABLE occurrences;
DROP TABLE schedules;

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
