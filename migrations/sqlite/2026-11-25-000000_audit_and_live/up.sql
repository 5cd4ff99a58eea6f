-- Who did what. A row is never changed, and deleted only when `retention.audit` keeps it no longer.
CREATE TABLE audit (
    no       INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    at       BIGINT NOT NULL,
    token_id TEXT,
    name     TEXT NOT NULL,
    role     TEXT NOT NULL,
    did      TEXT NOT NULL,
    subject  TEXT NOT NULL,
    detail   TEXT NOT NULL
);
CREATE INDEX audit_at ON audit (at);
CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

-- What signs the webhooks of an agent that doesn't connect by itself.
ALTER TABLE agents ADD COLUMN secret TEXT;

-- Actions that agents may still join.
CREATE INDEX actions_live ON actions (no) WHERE live AND ended_at IS NULL;
