-- Rows that wait for their agents to connect (0) are found by agent. By time are found those that are sent again (1), timed
-- out (2) or lie at a broker (3), so that a million absent agents are in nobody's way.
UPDATE open_commands p SET state = 1 FROM agents g WHERE p.state = 0 AND g.no = p.agent_no AND g.transport <> 'stream';
DROP INDEX open_commands_due;
CREATE INDEX open_commands_due ON open_commands (state, due_at, action_no, agent_no) WHERE state <> 0;

-- Actions some of whose commands have neither an outcome nor an open row.
CREATE INDEX actions_dispatching ON actions (no) WHERE ended_at IS NULL AND dispatched_through < resolved_through;

-- What is deleted when it is kept no longer.
CREATE INDEX agents_removed ON agents (removed_at) WHERE removed_at IS NOT NULL;
CREATE INDEX tokens_revoked ON tokens (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX tokens_expiring ON tokens (expires_at) WHERE expires_at IS NOT NULL;
