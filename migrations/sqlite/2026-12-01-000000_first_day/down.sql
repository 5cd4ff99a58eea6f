ALTER TABLE audit DROP COLUMN operations;
ALTER TABLE audit DROP COLUMN target;
ALTER TABLE audit DROP COLUMN address;
ALTER TABLE actions DROP COLUMN retry_of;
ALTER TABLE agent_sessions DROP COLUMN replaced;
ALTER TABLE agent_sessions DROP COLUMN instance;
ALTER TABLE agents DROP COLUMN duplicate_at;
ALTER TABLE agents DROP COLUMN set_labels;
