ALTER TABLE agent_metadata DROP COLUMN written_at;
ALTER TABLE agent_metadata DROP COLUMN clamped;
