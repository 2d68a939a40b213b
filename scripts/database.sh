#!/bin/bash
# Creates the stack's two roles and the database $DATABASE (docker-compose.yml): once, when PostgreSQL initializes its
# data, and for ./run restore. docs/production.md explains the roles, and has the same for an external database. What is
# there already stays.
set -euo pipefail

psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --set database="${DATABASE:-backstagetest1}" --username postgres <<'SQL'
\set owner_password `cat /run/secrets/owner_password`
\set app_password `cat /run/secrets/app_password`
SELECT 'CREATE ROLE ' || name || ' LOGIN' FROM unnest(ARRAY['backstagetest1_owner', 'backstagetest1']) AS name
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE backstagetest1_owner PASSWORD :'owner_password';
ALTER ROLE backstagetest1 PASSWORD :'app_password';
-- For a database per colour (docs/blue-green.md): replication both ways, and who keeps a slot from being made.
ALTER ROLE backstagetest1_owner REPLICATION;
GRANT pg_create_subscription, pg_monitor TO backstagetest1_owner;
SELECT format('CREATE DATABASE %I OWNER backstagetest1_owner', :'database')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO backstagetest1;
\connect :"database"
ALTER DEFAULT PRIVILEGES FOR ROLE backstagetest1_owner IN SCHEMA public
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO backstagetest1;
SQL
