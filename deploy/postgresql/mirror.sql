-- The role of 'refresher mirror': it reads what is published, and demands rotations. It can read no refresh token.
-- Run it as the owner of the schema, after 'refresher store init':
--   psql --dbname refresher --file deploy/postgresql/mirror.sql
-- The role can read the access tokens of all grants: give each team a database of its own to separate them.
CREATE ROLE refresher_mirror LOGIN;
GRANT USAGE ON SCHEMA refresher TO refresher_mirror;
GRANT SELECT ON refresher.version TO refresher_mirror;
GRANT SELECT (name, generation, published, xid) ON refresher.record TO refresher_mirror;
GRANT INSERT ON refresher.demand, refresher.seen TO refresher_mirror;
