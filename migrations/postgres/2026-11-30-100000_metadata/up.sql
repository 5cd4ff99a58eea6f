-- The one table whose rows change at a rate: each page has room for the next version of its rows, so that an update touches
-- no index and vacuum has little to do.
ALTER TABLE agent_metadata SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1);
-- The agent gave a time in the future.
ALTER TABLE agent_metadata ADD COLUMN clamped BOOLEAN NOT NULL DEFAULT FALSE;
-- When it was written, for watchers that have read up to a time.
ALTER TABLE agent_metadata ADD COLUMN written_at BIGINT NOT NULL DEFAULT 0;
-- Whether somebody watches metadata there: other nodes tell it of what they write.
ALTER TABLE nodes ADD COLUMN watches BOOLEAN NOT NULL DEFAULT FALSE;
