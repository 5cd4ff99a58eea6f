-- What hooks are to be told of (an outbox): one row for each event and hook, written in the transaction of the change.
CREATE TABLE hook_events (
    no         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    -- The `webhook-id`: the same for every attempt.
    id         TEXT NOT NULL,
    hook       TEXT NOT NULL,
    event      TEXT NOT NULL,
    payload    TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- When it is sent. Claiming a row moves this on: if the node that sends it dies, it is due again.
    due_at     BIGINT NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    failed_at  BIGINT,
    last_error TEXT,
    -- When it was delivered or given up.
    ended_at   BIGINT,
    given_up   BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX hook_events_due ON hook_events (hook, due_at, no) WHERE ended_at IS NULL;
CREATE INDEX hook_events_failed ON hook_events (hook, failed_at) WHERE failed_at IS NOT NULL;
CREATE INDEX hook_events_given_up ON hook_events (hook) WHERE given_up;
CREATE INDEX hook_events_ended ON hook_events (ended_at) WHERE ended_at IS NOT NULL;
