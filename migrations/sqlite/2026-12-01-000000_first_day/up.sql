-- Labels that operators set (a text) or took away (null), by key, as JSON. They go before what the agent reports;
-- `labels` is both together.
ALTER TABLE agents ADD COLUMN set_labels TEXT NOT NULL DEFAULT '{}';
-- Agents that were added have only labels of operators.
UPDATE agents SET set_labels = labels WHERE transport <> 'stream';
-- When a second process with this agent's token was refused last.
ALTER TABLE agents ADD COLUMN duplicate_at BIGINT;
-- The agent's process, as its hello names it; and those that this connection and its predecessors have replaced, the
-- latest last, separated by spaces.
ALTER TABLE agent_sessions ADD COLUMN instance TEXT;
ALTER TABLE agent_sessions ADD COLUMN replaced TEXT NOT NULL DEFAULT '';
-- The action whose commands this one runs again.
ALTER TABLE actions ADD COLUMN retry_of TEXT;
-- From where, which agents, and what.
ALTER TABLE audit ADD COLUMN address TEXT;
ALTER TABLE audit ADD COLUMN target TEXT;
ALTER TABLE audit ADD COLUMN operations TEXT;
