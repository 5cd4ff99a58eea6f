ALTER TABLE nodes DROP COLUMN watches;
ALTER TABLE agent_metadata DROP COLUMN written_at;
ALTER TABLE agent_metadata DROP COLUMN clamped;
ALTER TABLE agent_metadata RESET (fillfactor, autovacuum_vacuum_scale_factor);
