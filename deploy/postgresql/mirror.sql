-- The role of 'refresher mirror': it reads what is published, and demands rotations. It can read no refresh token.
-- Run it as the owner of the schema, after 'refresher store init':
--   psql --dbname refresher --file deploy/postgresql/mirror.sql
CREATE ROLE refresher_mirror LOGIN;
-- The names that the role may mirror: a pattern such as 'team-*'; repeat the line for another one.
SELECT refresher.allow_mirror('refresher_mirror', '*');
