-- Which transports a node has senders for. One of an older version has the stream, for all that is known of it.
ALTER TABLE nodes ADD COLUMN transports TEXT NOT NULL DEFAULT '["stream"]';

-- Agents that don't connect by themselves are few beside those that do.
CREATE INDEX agents_by_transport ON agents (transport, no) WHERE transport <> 'stream';
