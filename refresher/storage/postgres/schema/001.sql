-- The first version. Every time is that of the database. A record is bytes; what a query needs of it is in columns, which
-- the same transaction writes.

CREATE TABLE refresher.epoch (
    system_identifier text NOT NULL,
    timeline text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    opens_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    known_until timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (system_identifier, timeline)
);
COMMENT ON TABLE refresher.epoch IS
    'The servers that this database has been: a promotion begins a timeline. opens_at: no claims before. known_until: what was committed before is not lost.';

CREATE TABLE refresher.server (
    origin text PRIMARY KEY,
    full_at double precision NOT NULL DEFAULT 0,
    held_until timestamptz NOT NULL DEFAULT '-infinity'
);
COMMENT ON TABLE refresher.server IS 'Authorization servers, and how many requests all refreshers together may send to each.';

-- Narrow and changed often: twice for each exchange.
CREATE TABLE refresher.lease (
    name text PRIMARY KEY,
    kind text NOT NULL DEFAULT 'empty' CHECK (kind IN ('empty', 'grant', 'tombstone', 'moved')),
    grant_id text,
    generation bigint NOT NULL DEFAULT -1,
    fingerprint text,
    server text NOT NULL DEFAULT '',
    next_at timestamptz NOT NULL DEFAULT 'infinity',
    key_id text NOT NULL DEFAULT '',
    attempt uuid,
    state text CHECK (state IN ('open', 'armed')),
    armed_at timestamptz,
    until timestamptz,
    doubt_at timestamptz,
    last_attempt uuid,
    looked_at timestamptz NOT NULL DEFAULT '-infinity',
    holder_pid integer,
    holder_start timestamptz,
    CHECK ((attempt IS NULL) = (state IS NULL)),
    CHECK ((state = 'armed') = (armed_at IS NOT NULL) OR state IS NULL)
) WITH (fillfactor = 60);
CREATE UNIQUE INDEX lease_fingerprint ON refresher.lease (fingerprint) WHERE fingerprint IS NOT NULL;
CREATE INDEX lease_due ON refresher.lease (next_at) WHERE next_at < 'infinity';
CREATE INDEX lease_next ON refresher.lease (server, next_at) WHERE next_at < 'infinity';

CREATE TABLE refresher.record (
    name text PRIMARY KEY REFERENCES refresher.lease ON DELETE CASCADE,
    bytes bytea NOT NULL,
    generation bigint NOT NULL,
    published bytea,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX record_xid ON refresher.record (xid);
COMMENT ON COLUMN refresher.record.published IS 'The token file. NULL: there is nothing to publish yet.';

CREATE TABLE refresher.spent (
    fingerprint text PRIMARY KEY,
    name text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX spent_name ON refresher.spent (name);

CREATE TABLE refresher.demand (
    name text NOT NULL,
    generation bigint NOT NULL,
    reason text CHECK (length(reason) <= 1024),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, generation)
);

CREATE TABLE refresher.orphan (
    attempt uuid PRIMARY KEY,
    name text NOT NULL,
    fingerprint text,
    bytes bytea NOT NULL,
    why text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE refresher.orphan IS 'What may be the only copy of a token, and fits no record: a person may find one in it.';

CREATE TABLE refresher.seen (
    name text NOT NULL,
    grant_id text NOT NULL,
    generation bigint NOT NULL CHECK (generation BETWEEN 0 AND 1e15),
    issued_at double precision CHECK (issued_at BETWEEN 0 AND 1e12),
    expires_at double precision CHECK (expires_at BETWEEN 0 AND 1e12),
    host text NOT NULL CHECK (length(host) <= 1024),
    PRIMARY KEY (name, grant_id, generation)
);
COMMENT ON TABLE refresher.seen IS 'Token files on hosts that are later than their records: this database was restored.';

-- A mirror may insert demands, and nothing else: the grant becomes due by this.
CREATE FUNCTION refresher.demanded() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    -- Of a lease too: so this waits for the transaction that ends one, which sees the demand, or is seen here.
    UPDATE refresher.lease SET next_at = CASE WHEN attempt IS NULL THEN least(next_at, clock_timestamp()) ELSE next_at END
    WHERE name = NEW.name AND kind = 'grant' AND generation = NEW.generation;
    IF NOT FOUND THEN
        -- It counts for nothing, and a role could fill the table. A host demands again what it still needs.
        DELETE FROM refresher.demand WHERE name = NEW.name AND generation = NEW.generation;
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION refresher.seen() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    -- Only the latest stays: a report of an earlier grant, or of an earlier generation, says nothing, and must hide no other.
    DELETE FROM refresher.seen s WHERE s.name = NEW.name AND (
        NOT EXISTS (SELECT FROM refresher.lease l WHERE l.name = s.name AND l.kind = 'grant'
            AND l.grant_id = s.grant_id AND l.generation < s.generation)
        OR EXISTS (SELECT FROM refresher.seen o WHERE o.name = s.name AND o.grant_id = s.grant_id
            AND o.generation > s.generation));
    UPDATE refresher.lease SET next_at = clock_timestamp()
    WHERE name = NEW.name AND kind = 'grant' AND generation < NEW.generation AND attempt IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER seen AFTER INSERT ON refresher.seen FOR EACH ROW EXECUTE FUNCTION refresher.seen();
CREATE TRIGGER demanded AFTER INSERT ON refresher.demand FOR EACH ROW EXECUTE FUNCTION refresher.demanded();

-- Roles for hosts of agents: they read what is published under their names, and insert demands. The owner of these tables
-- is the role of the refreshers, to whom no row security applies.
CREATE TABLE refresher.mirror (role name NOT NULL, pattern text NOT NULL, PRIMARY KEY (role, pattern));

CREATE FUNCTION refresher.may_mirror(who name, what text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT EXISTS (
        SELECT FROM refresher.mirror m
        WHERE pg_catalog.pg_has_role(who, m.role, 'MEMBER')
        AND what LIKE replace(replace(replace(replace(replace(
            m.pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'), '?', '_')
    )
$$;

ALTER TABLE refresher.record ENABLE ROW LEVEL SECURITY;
ALTER TABLE refresher.demand ENABLE ROW LEVEL SECURITY;
ALTER TABLE refresher.seen ENABLE ROW LEVEL SECURITY;
CREATE POLICY mirror ON refresher.record FOR SELECT USING (refresher.may_mirror(current_user, name));
CREATE POLICY mirror ON refresher.demand FOR INSERT WITH CHECK (refresher.may_mirror(current_user, name));
CREATE POLICY mirror ON refresher.seen FOR INSERT WITH CHECK (refresher.may_mirror(current_user, name));

CREATE FUNCTION refresher.allow_mirror(role name, pattern text) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION refresher.may_mirror TO %I', role);
    EXECUTE format('GRANT USAGE ON SCHEMA refresher TO %I', role);
    EXECUTE format('GRANT SELECT (name, generation, published, xid) ON refresher.record TO %I', role);
    EXECUTE format('GRANT INSERT (name, generation, reason) ON refresher.demand TO %I', role);
    EXECUTE format('GRANT INSERT (name, grant_id, generation, issued_at, expires_at, host) ON refresher.seen TO %I', role);
    INSERT INTO refresher.mirror VALUES (role, pattern) ON CONFLICT DO NOTHING;
END $$;
REVOKE EXECUTE ON FUNCTION refresher.allow_mirror, refresher.may_mirror FROM PUBLIC;
COMMENT ON FUNCTION refresher.allow_mirror IS
    'Let a role mirror the names that match a pattern such as team-*: it can read no record and no refresh token.';
