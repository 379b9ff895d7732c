-- The role of 'refresher mirror': it reads what is published, and demands rotations. It can read no refresh token.
-- Run it after 'refresher store init', as a superuser, or as the owner of the schema if that role has CREATEROLE:
--   psql --dbname refresher --file deploy/postgresql/mirror.sql
-- Then give the role a password ('\password refresher_mirror' in psql), or a client certificate.
CREATE ROLE refresher_mirror LOGIN;
-- A transaction that stays open would hold up the rotation of the grants that it demands.
ALTER ROLE refresher_mirror SET idle_in_transaction_session_timeout = '10s';
ALTER ROLE refresher_mirror SET statement_timeout = '60s';
-- The names that the role may mirror: a pattern such as 'team-*'; repeat the line for another one.
SELECT refresher.allow_mirror('refresher_mirror', '*');
