-- The hash of the nonce under which an agent enrolled, until its token is used for the first time: as long as it is there
-- the same call is answered with a fresh token.
ALTER TABLE tokens ADD COLUMN enroll_nonce BLOB;
