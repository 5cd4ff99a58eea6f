-- The number of the agent's newest connection: each one gets a higher one than all before, also when its row in
-- agent_sessions is gone.
ALTER TABLE agents ADD COLUMN session_epoch INTEGER NOT NULL DEFAULT 0;
