-- Actions that are kept no longer: their rows elsewhere go in small batches, and then this one.
CREATE TABLE purges (
    action_no INTEGER PRIMARY KEY NOT NULL
);
-- Agents that were removed, until all their commands are closed.
CREATE TABLE departures (
    agent_no INTEGER PRIMARY KEY NOT NULL
);
CREATE INDEX actions_ended ON actions (ended_at) WHERE ended_at IS NOT NULL;
