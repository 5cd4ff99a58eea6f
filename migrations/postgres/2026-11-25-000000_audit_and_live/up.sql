-- Who did what. A row is never changed, and deleted only when `retention.audit` keeps it no longer.
CREATE TABLE audit (
    no       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       BIGINT NOT NULL,
    token_id TEXT COLLATE "C",
    name     TEXT NOT NULL,
    role     TEXT NOT NULL,
    did      TEXT NOT NULL,
    subject  TEXT NOT NULL,
    detail   TEXT NOT NULL
);
CREATE INDEX audit_at ON audit (at);
CREATE FUNCTION odoshi_audit_is_append_only() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only';
END
$$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION odoshi_audit_is_append_only();

-- What signs the webhooks of an agent that doesn't connect by itself.
ALTER TABLE agents ADD COLUMN secret TEXT;

-- Actions that agents may still join.
CREATE INDEX actions_live ON actions (no) WHERE live AND ended_at IS NULL;
