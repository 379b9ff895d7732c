-- What is published can be sealed: then its bytes are other ones each time, and its hash says whether it has changed.

ALTER TABLE refresher.record ADD COLUMN published_hash text;
COMMENT ON COLUMN refresher.record.published_hash IS
    'The SHA-256 of the token file in hex. NULL: there is none, or an earlier version wrote it.';
COMMENT ON COLUMN refresher.record.published IS
    'The token file, or an envelope that the hosts of agents open with the key for it. NULL: there is nothing to publish yet.';
COMMENT ON COLUMN refresher.lease.key_id IS 'Of the key that the record is sealed with; empty: it is plain.';

CREATE TABLE refresher.feeds (
    source text NOT NULL,
    name text NOT NULL REFERENCES refresher.lease ON DELETE CASCADE,
    PRIMARY KEY (source, name)
);
CREATE INDEX feeds_name ON refresher.feeds (name);
COMMENT ON TABLE refresher.feeds IS
    'The grants that use the next token of another one at once: they are due when it has one.';

-- An epoch is also which table this is: a dump that is restored makes another one.
UPDATE refresher.epoch SET timeline = timeline || '.' || 'refresher.lease'::regclass::oid WHERE timeline NOT LIKE '%.%';
