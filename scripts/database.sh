#!/bin/bash
# Runs once, when the stack's PostgreSQL makes its data (docker-compose.yml): the app gets a role that owns its database
# and is no superuser.
set -euo pipefail

psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username postgres <<'SQL'
\set password `cat /run/secrets/app_password`
CREATE ROLE backstagetest1 LOGIN PASSWORD :'password';
CREATE DATABASE backstagetest1 OWNER backstagetest1;
REVOKE ALL ON DATABASE backstagetest1 FROM PUBLIC;
SQL
