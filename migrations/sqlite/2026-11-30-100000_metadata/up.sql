-- The agent gave a time in the future.
ALTER TABLE agent_metadata ADD COLUMN clamped BOOLEAN NOT NULL DEFAULT FALSE;
-- When it was written, for watchers that have read up to a time.
ALTER TABLE agent_metadata ADD COLUMN written_at BIGINT NOT NULL DEFAULT 0;
