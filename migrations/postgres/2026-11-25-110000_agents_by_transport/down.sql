DROP INDEX tokens_agent;
DROP INDEX agents_by_transport;
