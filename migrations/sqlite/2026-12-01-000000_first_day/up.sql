-- `labels` is what these two are together: labels that the agent reports, and those that operators set (a text) or took away
-- (null), by key, as JSON. Those of operators go before.
ALTER TABLE agents ADD COLUMN reported_labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE agents ADD COLUMN set_labels TEXT NOT NULL DEFAULT '{}';
-- Agents that were added have only labels of operators.
UPDATE agents SET reported_labels = CASE WHEN transport = 'stream' THEN labels ELSE '{}' END,
    set_labels = CASE WHEN transport = 'stream' THEN '{}' ELSE labels END;
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
