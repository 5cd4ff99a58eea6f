-- Agents that don't connect by themselves are few beside those that do.
CREATE INDEX agents_by_transport ON agents (transport, no) WHERE transport <> 'stream';

-- Those of an agent go with it.
CREATE INDEX tokens_agent ON tokens (agent_no);
