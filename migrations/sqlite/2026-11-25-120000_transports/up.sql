-- Which transports a node has senders for. One of an older version has the stream, for all that is known of it. By itself:
-- while it is changed no node can say that it lives.
ALTER TABLE nodes ADD COLUMN transports TEXT NOT NULL DEFAULT '["stream"]';
